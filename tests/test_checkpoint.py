"""Checkpoints: never half-written, never code, and loaded wholly or refused by name."""

import argparse
import pickle
from collections import OrderedDict
from fractions import Fraction

import pytest
import torch
from torch import nn

from common.checkpoint import load_checkpoint, load_model, load_model_that_fits, save_checkpoint
from common.errors import UserError

MAY_BE_NEW = ("class_embed", "W_prob")


class Model(nn.Module):
    def __init__(self, classes=3, width=4, depth=1, clustered=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.class_embed = nn.Linear(width, classes)
        if clustered:
            self.W_prob = nn.Linear(width, 1)


def copy_of(state_dict):
    return {key: value.clone() for key, value in state_dict.items()}


def differing(model, state_dict):
    return {key for key, value in model.state_dict().items() if not torch.equal(value, state_dict[key])}


@pytest.mark.parametrize(
    "error, raised",
    [
        (OSError("no space left on device"), UserError),
        (RuntimeError("file write failed"), UserError),
        (KeyboardInterrupt("stopped by SIGTERM"), KeyboardInterrupt),
    ],
)
def test_a_failed_write_leaves_the_former_checkpoint(tmp_path, monkeypatch, error, raised):
    """Protects days of training from a full disk or a scheduler's kill in the middle of a write."""
    path = tmp_path / "checkpoint.pth"
    save_checkpoint(path, {"model": {}, "epoch": 1})
    before = path.read_bytes()

    def fail(checkpoint, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(raised, match=str(error)) as info:
        save_checkpoint(path, {"model": {}, "epoch": 2})
    assert raised is KeyboardInterrupt or f"{path} cannot be written" in str(info.value)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_checkpoints_come_back_as_they_were(tmp_path):
    """Protects resuming: weights, optimiser, schedule and options survive, and the file needs no trust to be read."""
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    model.class_embed(torch.ones(4)).sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "args": {"lr": 0.1, "paths": ["a"]}}
    save_checkpoint(tmp_path / "checkpoint.pth", saved)
    loaded = load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert loaded.keys() == saved.keys() and (loaded["epoch"], loaded["args"]) == (3, saved["args"])
    torch.testing.assert_close(loaded["optimizer"]["state"], saved["optimizer"]["state"])
    assert not differing(model, loaded["model"])


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_bare_state_dict_is_a_checkpoint(tmp_path, kind):
    """Protects those who publish weights alone."""
    torch.save(kind(Model().state_dict()), tmp_path / "weights.pth")
    assert load_checkpoint(tmp_path / "weights.pth").keys() == {"model"}


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "does not exist"),
        (b"", "is not a checkpoint"),
        (b"<html>404</html>", "is not a checkpoint"),
        (
            pickle.dumps({"model": {}, "args": argparse.Namespace()}, protocol=2),
            "is not a checkpoint that PyTorch reads with weights_only",
        ),
        ({"model": {}, "args": Fraction(1, 2)}, "is not a checkpoint that PyTorch reads with weights_only"),
        ([1, 2], "holds no 'model'"),
        ({}, "holds no 'model'"),
        ({"state_dict": {"weight": torch.ones(1)}}, "holds no 'model'"),
        ({"model": 3}, "holds no 'model'"),
    ],
    ids=["missing", "empty", "page", "pickle", "object inside", "list", "empty dict", "another name", "no weights"],
)
def test_what_is_no_checkpoint_is_told_in_one_sentence(tmp_path, content, said):
    """Protects users from the unpickler's tracebacks, and from code that a file would run."""
    path = tmp_path / "checkpoint.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError) as raised:
        load_checkpoint(path)
    assert str(path) in str(raised.value) and said in str(raised.value) and "\n" not in str(raised.value)


def test_loading_is_all_or_nothing():
    """Protects evaluation from weights that are in part random: every problem is named, and nothing was loaded."""
    model, other = Model(classes=3, depth=2), Model(classes=5, depth=1, clustered=True)
    before = copy_of(model.state_dict())
    with pytest.raises(UserError) as raised:
        load_model(model, other.state_dict(), "x.pth")
    assert str(raised.value) == (
        "x.pth is not a checkpoint of this detector with these options (missing: layers.1.bias, layers.1.weight; "
        "unknown: W_prob.bias, W_prob.weight; of another shape: class_embed.bias, class_embed.weight)"
    )
    assert not differing(model, before)
    twin = Model(classes=3, depth=2)
    load_model(twin, model.state_dict(), "x.pth")
    assert not differing(twin, before)


@pytest.mark.parametrize("depth, listing", [(6, "layers.5.weight)"), (7, "layers.5.weight and 2 more)")])
def test_long_lists_of_keys_are_cut(depth, listing):
    """Protects the sentence from hundreds of keys where the checkpoint is of another detector: ten and a count."""
    with pytest.raises(UserError) as raised:
        load_model(Model(depth=depth), Model().state_dict(), "x.pth")
    assert str(raised.value).endswith(listing) and str(raised.value).count("layers.") == 10


@pytest.mark.parametrize(
    "ours, theirs, new",
    [
        ({}, {}, ""),
        ({"classes": 9}, {}, " but class_embed.bias, class_embed.weight, which start anew"),
        ({"clustered": True}, {}, " but W_prob.bias, W_prob.weight, which start anew"),
        ({}, {"clustered": True}, ""),
    ],
    ids=["the same", "other classes", "plain to clustered", "clustered to plain"],
)
def test_finetuning_loads_what_fits(ours, theirs, new):
    """Protects the warm start: a new class head or probability layer keeps its fresh weights and is reported, all else loads."""
    model, published = Model(**ours), Model(**theirs).state_dict()
    fresh = copy_of(model.state_dict())
    assert load_model_that_fits(model, published, "x.pth", MAY_BE_NEW) == f"x.pth: all weights loaded{new}"
    kept = {key for key in fresh if key in new}
    assert differing(model, {**fresh, **published} | {key: fresh[key] for key in kept}) == set()


@pytest.mark.parametrize("theirs", [{"depth": 2}, {"depth": 0}, {"width": 8}], ids=["unknown", "missing", "another shape"])
def test_finetuning_refuses_what_is_not_this_detectors(theirs):
    """Protects from fine-tuning a model that is random where nobody expects it; the keys are named, nothing was loaded."""
    model = Model()
    before = copy_of(model.state_dict())
    with pytest.raises(UserError, match=r"^x.pth is not a checkpoint of this detector .*layers\.\d\.bias"):
        load_model_that_fits(model, Model(**theirs).state_dict(), "x.pth", MAY_BE_NEW)
    assert not differing(model, before)

"""Checkpoints: never half-written, never code, and loaded wholly or refused by name."""

import argparse
import pickle
from collections import OrderedDict
from fractions import Fraction
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import nn

from common.boundary.checkpoints import load_checkpoint, save_checkpoint
from common.errors import UserError
from common.models.checkpoint import load_model

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
    assert load_model(twin, model.state_dict(), "x.pth") == []
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
    assert load_model(model, published, "x.pth", MAY_BE_NEW) == [f"x.pth: all weights loaded{new}"]
    kept = {key for key in fresh if key in new}
    assert differing(model, {**fresh, **published} | {key: fresh[key] for key in kept}) == set()


@pytest.mark.parametrize("theirs", [{"depth": 2}, {"depth": 0}, {"width": 8}], ids=["unknown", "missing", "another shape"])
def test_finetuning_refuses_what_is_not_this_detectors(theirs):
    """Protects from fine-tuning a model that is random where nobody expects it; the keys are named, nothing was loaded."""
    model = Model()
    before = copy_of(model.state_dict())
    with pytest.raises(UserError, match=r"^x.pth is not a checkpoint of this detector .*layers\.\d\.bias"):
        load_model(model, Model(**theirs).state_dict(), "x.pth", MAY_BE_NEW)
    assert not differing(model, before)


class Response:
    """What urllib hands to torch hub; one that breaks ends after half of the content."""

    def __init__(self, content: bytes, breaks: bool):
        self.content, self.breaks = [content[: len(content) // 2 if breaks else None]], breaks
        self.length = len(content)

    def __enter__(self) -> "Response":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def close(self) -> None:
        pass

    def info(self) -> Any:
        return argparse.Namespace(get_all=lambda name: [str(self.length)])

    def read(self, size: int) -> bytes:
        if self.content:
            return self.content.pop()
        if self.breaks:
            raise URLError("connection lost")
        return b""


def test_a_url_is_downloaded_once_and_a_broken_download_is_started_anew(monkeypatch, tmp_path):
    """Protects the cache: nothing half-downloaded stays, a hash in the name is checked, two files of one name are kept apart."""
    torch.save({"weight": torch.ones(3)}, tmp_path / "source.pth")
    content, calls = (tmp_path / "source.pth").read_bytes(), []
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def serve(breaks: bool) -> None:
        monkeypatch.setattr(torch.hub, "urlopen", lambda request: calls.append(request) or Response(content, breaks))

    serve(breaks=True)
    with pytest.raises(UserError, match="https://a.b/x.pth could not be downloaded.*network"):
        load_checkpoint("https://a.b/x.pth")
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]
    serve(breaks=False)
    for _ in range(2):
        assert torch.equal(load_checkpoint("https://a.b/x.pth")["model"]["weight"], torch.ones(3))
    assert len(calls) == 2
    load_checkpoint("https://c.d/x.pth")
    assert len(calls) == 3
    with pytest.raises(UserError, match="hash"):
        load_checkpoint("https://a.b/x-01234567.pth")
    with pytest.raises(UserError, match="https"):
        load_checkpoint("http://a.b/x.pth")

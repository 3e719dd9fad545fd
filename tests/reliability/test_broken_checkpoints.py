"""Checkpoints that are wrong: each case ends with one sentence that names what and says what to do, before anything is built."""

import math

import pytest
import torch

from common.boundary.checkpoints import load_checkpoint
from common.cli.restore import restore
from tests.detector_runs import EXAMPLE, run_here, tiny
from tests.reliability.said import said_by
from tests.tiny_checkpoints import tiny_checkpoint
from tools.detectors import DETECTORS

SPARSE = torch.eye(3).to_sparse()
CHECKPOINTS = {
    "ints": ({"model": {"a": 3}}, "'a'"),
    "None": ({"model": {"a": None}}, "'a'"),
    "texts": ({"model": {"a": "b" * 10**6}}, "'a'"),
    "numbers for names": ({"model": {3: torch.ones(1)}}, "3"),
    "sparse": ({"model": {"a": SPARSE}}, "sparse"),
    "quantised": ({"model": {"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}}, "'a'"),
    "meta": ({"model": {"a": torch.ones(2, device="meta")}}, "meta"),
    "complex": ({"model": {"a": torch.ones(2, dtype=torch.complex64)}}, "complex"),
    "NaN": ({"model": {"a": torch.ones(2), "b": torch.tensor([1, math.nan])}}, "holds NaN as 'b'"),
    "a billion classes": ({"model": {"class_embed.weight": torch.zeros(1).expand(10**9, 64)}}, "fewer"),
    "args a list": ({"model": {}, "args": [1]}, "args"),
    "names a text": ({"model": {}, "category_names": "cat"}, "category_names"),
    "names of texts": ({"model": {}, "category_names": {"a": "cat"}}, "category_names"),
    "detector a number": ({"model": {}, "detector": 3}, "detector"),
}


@pytest.mark.parametrize(("broken", "said"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints(broken, said, tmp_path):
    """Values of other types and sizes are refused before a model is built."""
    torch.save(broken, tmp_path / "x.pth")
    sentence = said_by(load_checkpoint, tmp_path / "x.pth")
    assert "x.pth is not a checkpoint" in sentence and said in sentence, sentence


@pytest.fixture(scope="module")
def tiny_content(tmp_path_factory) -> dict:
    path = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "x.pth", EXAMPLE, 0)
    return torch.load(path, weights_only=True)


OPTIONS = [("nheads", value) for value in ("4", 0, -4, 4.0, True, [4])]
OPTIONS += [("smoothing_sigma", value) for value in ("3", 0, math.nan, 1e30)]
OPTIONS += [("clustering", "ward"), ("clustering", 3), ("image_size", "64"), ("image_size", 10**9), ("backbone_weights", 3)]


@pytest.mark.parametrize(("name", "value"), OPTIONS, ids=str)
def test_options_of_a_checkpoint(name, value, tiny_content, tmp_path):
    """What the command line would refuse is refused, with the option's name."""
    torch.save(tiny_content | {"args": tiny_content["args"] | {name: value}}, tmp_path / "x.pth")
    sentence = said_by(restore, DETECTORS[EXAMPLE], tmp_path / "x.pth")
    assert f"--{name}" in sentence and "x.pth" in sentence, sentence


@pytest.mark.parametrize("end", ["class_embed.weight", "input_proj.weight", "query_embed.weight"])
@pytest.mark.parametrize(
    "value", [torch.zeros(()), torch.zeros(0), torch.zeros(0, 32), torch.zeros(2, 2, 2, 2, 2)], ids=lambda v: str(v.shape)
)
def test_weights_of_other_sizes(end, value, tiny_content, tmp_path):
    """Those that options are read from, too."""
    weights = {name: value if name.endswith(end) else weight for name, weight in tiny_content["model"].items()}
    torch.save(tiny_content | {"model": weights}, tmp_path / "x.pth")
    assert said_by(restore, DETECTORS[EXAMPLE], tmp_path / "x.pth")


def test_the_other_detector_is_named(tmp_path, capsys):
    """The one that wrote the file; and no output folder is left."""
    other = tiny_checkpoint(tmp_path / "other.pth", "Anchor-DETR-ENACT", 0)
    assert "is one of Anchor-DETR-ENACT, and not a checkpoint of" in said_by(restore, DETECTORS[EXAMPLE], other)
    argv = ("--demo", "--resume", other, "--output_dir", tmp_path / "out", "--device", "cpu")
    assert run_here(EXAMPLE, *argv) == 2 and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory) -> dict:
    """The checkpoint of a run of one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    argv = (*tiny(EXAMPLE), "--coco_path", dataset, "--batch_size", 8, "--epochs", 1, "--output_dir", folder)
    assert run_here(EXAMPLE, *argv) == 0
    return torch.load(folder / "checkpoint.pth", weights_only=True)


def of_the_optimiser(**changes):
    """Another state of the first parameter."""

    def change(checkpoint: dict) -> dict:
        state = checkpoint["optimizer"]["state"]
        return {"optimizer": checkpoint["optimizer"] | {"state": state | {0: state[0] | changes}}}

    return change


CONTINUATIONS = {
    "moments of another shape": (of_the_optimiser(exp_avg=torch.zeros(3)), "state of its optimiser"),
    "moments of another type": (of_the_optimiser(exp_avg_sq="much"), "state of its optimiser"),
    "steps for each weight": (of_the_optimiser(step=torch.zeros(1000)), "state of its optimiser"),
    "no optimiser": (lambda c: {"optimizer": None}, "optimizer"),
    "an optimiser of other groups": (lambda c: {"optimizer": {"state": {}, "param_groups": []}}, "state of its optimiser"),
    "an empty optimiser": (lambda c: {"optimizer": {}}, "state of its optimiser"),
    "a schedule that is a list": (lambda c: {"lr_scheduler": [1]}, "lr_scheduler"),
    "random states that are numbers": (lambda c: {"random_states": [1]}, "random_states"),
    "random states of another size": (lambda c: {"random_states": [{"cpu": torch.zeros(3)}]}, "random numbers"),
    "epoch -5": (lambda c: {"epoch": -5}, "epoch"),
    "epoch NaN": (lambda c: {"epoch": math.nan}, "epoch"),
    "epoch text": (lambda c: {"epoch": "last"}, "epoch"),
    "log text": (lambda c: {"log": "good"}, "log"),
    "lr NaN": (lambda c: {"args": c["args"] | {"lr": math.nan}}, "--lr"),
    "batch_size 0": (lambda c: {"args": c["args"] | {"batch_size": 0}}, "--batch_size"),
    "seed -1": (lambda c: {"args": c["args"] | {"seed": -1}}, "--seed"),
    "epochs text": (lambda c: {"args": c["args"] | {"epochs": "300"}}, "--epochs"),
}


@pytest.mark.parametrize(("change", "said"), CONTINUATIONS.values(), ids=CONTINUATIONS)
def test_continuations(change, said, finished, dataset, tmp_path, capsys):
    """A run that cannot go on says so before its first step."""
    torch.save(finished | change(finished), tmp_path / "x.pth")
    argv = ("--resume", tmp_path / "x.pth", "--coco_path", dataset, "--output_dir", tmp_path / "out", "--device", "cpu")
    more = () if said == "--epochs" else ("--epochs", 2)
    assert run_here(EXAMPLE, *argv, *more, "--num_workers", 0) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "x.pth" in message and said in message, message


def test_weights_alone_are_no_run(finished, dataset, tmp_path, capsys):
    """As published: ``--finetune`` is the way."""
    torch.save({name: finished[name] for name in ("model", "args", "optimizer", "epoch")}, tmp_path / "x.pth")
    argv = ("--resume", tmp_path / "x.pth", "--coco_path", dataset, "--output_dir", tmp_path / "out", "--device", "cpu")
    assert run_here(EXAMPLE, *argv, "--batch_size", 8, "--num_workers", 0) == 2
    assert "no run to continue: start from them with --finetune" in capsys.readouterr().err

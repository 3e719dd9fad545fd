"""A run that goes on is the run without a break: its precision, its steps, its random numbers, and what is given anew."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from common.models.model import DetectionModel
from detr.model import DETR
from tests.detector_runs import EXAMPLE, assert_same_state, read_checkpoint, read_log, run_here, tiny
from tests.tiny_checkpoints import tiny_checkpoint

OPTIONS = (*tiny(EXAMPLE), "--batch_size", 4, "--dropout", 0.2, "--seed", 3)


@dataclass
class Record:
    """What happened while runs went on: the steps that the model was told of, and the type of its products."""

    steps: list[tuple[int, int]] = field(default_factory=list)
    precisions: list[torch.dtype] = field(default_factory=list)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    found = Record()
    watch(found, monkeypatch)
    return found


def watch(found: Record, patch: pytest.MonkeyPatch) -> None:
    detect = DETR.detect

    def watched(model: DETR, src: torch.Tensor, mask: torch.Tensor) -> dict:
        found.precisions.append(src.dtype)  # of a convolution's output
        return detect(model, src, mask)

    patch.setattr(DETR, "detect", watched)
    patch.setattr(DetectionModel, "set_step", lambda model, seed, step: found.steps.append((seed, step)))


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Record]]:
    """A run of two epochs in mixed precision with images of similar shape, and what happened."""
    found, folder = Record(), tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        watch(found, patch)
        argv = ("--coco_path", dataset, *OPTIONS, "--amp", "bf16", "--bucket", "--weight_decay", 0.01)
        assert run_here(EXAMPLE, *argv, "--epochs", 2, "--output_dir", folder) == 0
    yield folder, found


@pytest.fixture(scope="module")
def half(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """The first epoch of such a run."""
    found, folder = Record(), tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        watch(found, patch)
        argv = ("--coco_path", dataset, *OPTIONS, "--amp", "bf16", "--bucket", "--weight_decay", 0.01)
        assert run_here(EXAMPLE, *argv, "--epochs", 1, "--output_dir", folder) == 0
    return folder, found


def go_on(folder: Path, dataset: Path, *argv: object) -> None:
    """Resumes a run for a second epoch, without saying again how it was trained."""
    last = folder / "checkpoint.pth"
    assert run_here(EXAMPLE, "--coco_path", dataset, "--num_workers", 0, "--device", "cpu", "--resume", last, *argv) == 0


def test_a_run_goes_on_in_its_precision_with_its_batches_and_random_numbers(whole, half, record, dataset, tmp_path):
    """Protects --resume of a run with --amp bf16, --bucket and dropout: the weights are those of the run without a break.

    The model is told of the same steps, and the last epoch has the same line in the log.
    """
    out, found = whole
    go_on(half[0], dataset, "--epochs", 2, "--output_dir", tmp_path)
    assert set(record.precisions) == set(found.precisions) == {torch.bfloat16}
    assert half[1].steps + record.steps == found.steps == [(3, step) for step in range(12)]
    assert_same_state(tmp_path, out)
    assert read_checkpoint(tmp_path / "checkpoint.pth")["args"]["amp"] == "bf16"
    assert read_log(half[0]) + read_log(tmp_path) == read_log(out)


def test_a_checkpoint_alone_is_enough(half, dataset, tmp_path, capsys):
    """The run goes on in its folder and on its data, and says so with its recipe; an evaluation finds the data, too."""
    folder = Path(shutil.copytree(half[0], tmp_path / "half"))
    last = folder / "checkpoint.pth"
    assert run_here(EXAMPLE, "--resume", last, "--epochs", 2, "--device", "cpu", "--num_workers", 0) == 0
    out = capsys.readouterr().out
    assert f"goes on in its folder {folder}" in out and f"on the data that {last} was trained on: {dataset}" in out
    assert "recipe: 2 epochs" in out and "precision bf16" in out and "weight decay 0.01" in out
    assert [line["epoch"] for line in read_log(folder)] == [0, 1]
    assert run_here(EXAMPLE, "--resume", last, "--eval", "--device", "cpu", "--output_dir", tmp_path / "eval") == 0


def test_a_drop_that_is_not_reached_is_said(half, tmp_path, capsys):
    """``--epochs`` alone keeps the recipe's drop."""
    argv = (*tiny(EXAMPLE), "--coco_path", read_checkpoint(half[0] / "checkpoint.pth")["args"]["coco_path"], "--epochs", 1)
    assert run_here(EXAMPLE, *argv, "--output_dir", tmp_path) == 0
    assert "a tenth after every 200 epochs, which this run does not reach" in capsys.readouterr().out


def test_what_is_given_anew_is_used(whole, half, dataset, tmp_path):
    """Protects --resume with another weight decay, other rates and another drop: they count from the next step on."""
    given = ("--weight_decay", 0.3, "--lr", 7e-4, "--lr_backbone", 2e-4, "--lr_drop", 1)
    go_on(half[0], dataset, "--epochs", 2, "--output_dir", tmp_path, *given)
    checkpoint = read_checkpoint(tmp_path / "checkpoint.pth")
    groups = checkpoint["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.3]
    assert [group["initial_lr"] for group in groups] == [7e-4, 2e-4]
    assert [group["lr"] for group in groups] == pytest.approx([7e-6, 2e-6])  # dropped after both epochs
    [line] = read_log(tmp_path)
    assert line["train_lr"] == pytest.approx(7e-5)
    assert checkpoint["args"]["weight_decay"] == 0.3

    # The decay is not only noted: at a rate of 0 it does nothing, else it shrinks what the gradient leaves alone.
    sizes = {}
    for decay in (0, 20):
        out = tmp_path / str(decay)
        go_on(half[0], dataset, "--epochs", 2, "--output_dir", out, "--weight_decay", decay, "--lr", 1e-3, "--lr_backbone", 1e-3)
        sizes[decay] = sum(v.square().sum() for v in read_checkpoint(out / "checkpoint.pth")["model"].values() if v.dim() > 1)
    assert sizes[20] < 0.9 * sizes[0]


@pytest.mark.parametrize("amp, expected", [((), torch.float32), (("--amp", "bf16"), torch.bfloat16)])
@pytest.mark.parametrize("use", ["--eval", "--predict"])
def test_what_is_no_training_has_the_precision_of_its_call(use, amp, expected, half, record, dataset, tmp_path):
    """Protects --eval and --predict: they run in mixed precision where that is asked for, and only there."""
    argv = ("--eval", "--coco_path", dataset) if use == "--eval" else ("--predict", dataset / "val2017" / "000000000001.jpg")
    resume = ("--resume", half[0] / "checkpoint.pth", "--device", "cpu", "--num_workers", 0)
    assert run_here(EXAMPLE, *argv, *amp, *resume, "--output_dir", tmp_path) == 0
    assert set(record.precisions) == {expected}


def test_finetuning_starts_a_run_of_its_own(record, dataset, tmp_path):
    """Protects --finetune from a run's steps, rates and precision: only the weights and the model are the checkpoint's."""
    start = tiny_checkpoint(tmp_path / "x.pth", EXAMPLE, 0, "--amp", "bf16")
    argv = ("--coco_path", dataset, "--finetune", start, "--batch_size", 12, "--epochs", 1, "--device", "cpu", "--num_workers", 0)
    assert run_here(EXAMPLE, *argv, "--output_dir", tmp_path / "out") == 0
    assert record.steps == [(42, 0), (42, 1)] and set(record.precisions) == {torch.float32}

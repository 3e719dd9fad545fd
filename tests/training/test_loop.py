"""What a run of training leaves behind, and when it evaluates. On one detector, since all share the loop."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.detector_runs import EXAMPLE, TIMINGS, read_checkpoint, read_log, run_here, tiny

EPOCHS = 4
LR_DROP = 3
OPTIONS = (*tiny(EXAMPLE), "--batch_size", "8", "--lr", "3e-4", "--lr_backbone", "3e-4", "--lr_drop", str(LR_DROP))


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The output folder of a run of 4 epochs."""
    folder = tmp_path_factory.mktemp("trained")
    assert run_here(EXAMPLE, "--coco_path", dataset, "--output_dir", folder, "--epochs", EPOCHS, *OPTIONS) == 0
    yield folder
    shutil.rmtree(folder)


def test_training_leaves_checkpoints_log_and_curves(trained):
    """The outputs that scripts of the DETR family expect: DETR's keys, and checkpoints that load without running code."""
    names = {path.name.partition(".tfevents")[0] for path in trained.iterdir()}
    kept = {"checkpoint.pth", f"checkpoint{LR_DROP - 1:04}.pth", "checkpoint_best.pth"}
    assert names == {*kept, "log.txt", "curves.png", "events.out"}

    last = read_checkpoint(trained / "checkpoint.pth")
    assert {"model", "optimizer", "lr_scheduler", "epoch", "args", "random_states", "num_classes", "category_names"} <= last.keys()
    assert (last["epoch"], last["num_classes"], last["args"]["lr_drop"]) == (EPOCHS - 1, 6, LR_DROP)
    assert read_checkpoint(trained / f"checkpoint{LR_DROP - 1:04}.pth")["epoch"] == LR_DROP - 1

    log = read_log(trained)
    assert [line["epoch"] for line in log] == list(range(EPOCHS))
    precisions = [line["test_coco_eval_bbox"][0] for line in log]
    assert read_checkpoint(trained / "checkpoint_best.pth")["epoch"] == precisions.index(max(precisions))
    for line in log:
        for split in ("train", "test"):
            losses = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_ce_unscaled", "class_error", "cardinality_error_unscaled")
            assert {f"{split}_{name}" for name in losses} <= line.keys()
        assert "train_loss_ce_0" in line and len(line["test_coco_eval_bbox"]) == 12
        assert line["n_parameters"] == trainable(last)
    assert [line["train_lr"] for line in log] == pytest.approx([3e-4] * LR_DROP + [3e-5] * (EPOCHS - LR_DROP))

    assert cv2.imread(str(trained / "curves.png")) is not None
    events = EventAccumulator(str(trained)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(EPOCHS))


def trainable(checkpoint: dict) -> int:
    """How many numbers are trained, where the backbone starts from nothing: all but batch norm's statistics."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(value.numel() for name, value in checkpoint["model"].items() if not name.endswith(statistics))


def test_the_log_tells_speed_waiting_and_memory(trained):
    """Protects users from guessing whether the images or the model are slow, and how large a batch may be."""
    for line in map(json.loads, (trained / "log.txt").read_text().splitlines()):
        assert TIMINGS <= line.keys() and line["train_images_per_second"] > 0
        assert 0 <= line["train_share_waited"] <= 1 and line["train_peak_memory"] > 2**20


def test_an_interrupted_evaluation_is_made_up_for(trained, dataset, tmp_path, capsys):
    """A run that was stopped after the checkpoint of an epoch and before its line in the log: the line comes first, the same.

    Here it is the last epoch, so that nothing but the evaluation is left to do, and nothing at all the second time.
    """
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    whole = (out / "log.txt").read_text().splitlines(keepends=True)
    (out / "log.txt").write_text("".join(whole[:-1]))
    argv = ("--coco_path", dataset, "--output_dir", out, "--resume", out / "checkpoint.pth", *OPTIONS)
    assert run_here(EXAMPLE, *argv) == 0
    assert read_log(out) == read_log(trained)
    assert run_here(EXAMPLE, *argv) == 2
    assert f"has finished epoch {EPOCHS - 1}" in capsys.readouterr().err
    assert len(read_log(out)) == EPOCHS
    with open(out / "log.txt", "a") as log:
        log.write('{"epo\n')  # by something else than a power cut, after which the line would not have an end
    assert run_here(EXAMPLE, *argv) == 2
    assert f"line {EPOCHS + 1} of the log" in capsys.readouterr().err


@pytest.mark.parametrize("every, expected", [(1, [0, 1, 2]), (2, [1, 2]), (5, [2])])
def test_evaluations_are_as_rare_as_asked_for(every, expected, dataset, tmp_path, capsys):
    """Protects --eval_every: the epochs in between have a line without precision, the last epoch is always evaluated."""
    argv = ("--coco_path", dataset, *OPTIONS, "--batch_size", 24, "--epochs", 3, "--eval_every", every)
    assert run_here(EXAMPLE, *argv, "--output_dir", tmp_path) == 0
    log = read_log(tmp_path)
    assert [line["epoch"] for line in log if "test_coco_eval_bbox" in line] == expected
    assert [line["epoch"] for line in log if "test_loss" in line] == expected
    assert [line["epoch"] for line in log if "train_loss" in line] == [0, 1, 2]
    assert [line.startswith("epoch") for line in capsys.readouterr().out.splitlines()].count(True) == 3
    assert cv2.imread(str(tmp_path / "curves.png")) is not None

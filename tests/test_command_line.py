"""Training, evaluation and prediction from the command line of every detector, and what happens when they are stopped."""

import contextlib
import io
import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.detector_runs import run_and_signal, run_command, run_here, tiny
from tools.detectors import ROOT

EPOCHS = 4
LR_DROP = 3
OPTIONS = ("--batch_size", "2", "--lr", "3e-4", "--lr_backbone", "3e-4", "--lr_drop", str(LR_DROP))


@pytest.fixture(scope="module")
def trained(detector: str, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The output folder of a run of 4 epochs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("trained")
    argv = ("--coco_path", dataset, "--output_dir", folder, "--epochs", EPOCHS, *tiny(detector), *OPTIONS)
    run_command(ROOT / detector / "main.py", *argv)
    yield folder
    shutil.rmtree(folder)


def read_checkpoint(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def assert_same_state(a: dict, b: dict) -> None:
    """Two checkpoints continue alike: weights, optimiser, schedule, epoch and random states are the same bits."""
    for part in ("model", "optimizer", "lr_scheduler", "epoch", "random_states"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0, msg=lambda text, part=part: f"{part}: {text}")


def test_training_leaves_checkpoints_log_and_curves(trained, detector):
    """The outputs that scripts of the DETR family expect: DETR's keys, and checkpoints that load without running code."""
    names = {path.name.partition(".tfevents")[0] for path in trained.iterdir()}
    assert names == {"checkpoint.pth", f"checkpoint{LR_DROP - 1:04}.pth", "log.txt", "curves.png", "events.out"}

    last = read_checkpoint(trained / "checkpoint.pth")
    assert {"model", "optimizer", "lr_scheduler", "epoch", "args", "random_states", "num_classes", "category_names"} <= last.keys()
    assert (last["epoch"], last["num_classes"], last["args"]["lr_drop"]) == (EPOCHS - 1, 7, LR_DROP)
    assert read_checkpoint(trained / f"checkpoint{LR_DROP - 1:04}.pth")["epoch"] == LR_DROP - 1

    log = read_log(trained)
    assert [line["epoch"] for line in log] == list(range(EPOCHS))
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
    """How many numbers are trained, where the backbone starts from nothing: all but batch norm's statistics, shared ones once."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    weights = {v.data_ptr(): v.numel() for k, v in checkpoint["model"].items() if not k.endswith(statistics)}
    return sum(weights.values())


def test_a_folder_runs_alone_and_a_run_continues_exactly(trained, detector, dataset, tmp_path):
    """A copy of the folder, somewhere else and called from somewhere else, trains two epochs and evaluates them.

    The repository continues the copy's run to four epochs, and gets the weights of the run that did four at once.
    """
    alone, out, elsewhere = tmp_path / "alone" / detector, tmp_path / "out", tmp_path / "elsewhere"
    shutil.copytree(ROOT / detector, alone, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    elsewhere.mkdir()
    argv = ("--coco_path", dataset, "--output_dir", out)
    run_command(alone / "main.py", *argv, "--epochs", 2, *tiny(detector), *OPTIONS, cwd=elsewhere)
    last = out / "checkpoint.pth"
    assert read_checkpoint(last)["epoch"] == 1

    printed = run_command(alone / "main.py", *argv, "--eval", "--resume", last, *tiny(detector), *OPTIONS, cwd=elsewhere)
    assert "5 images" in printed and not any(elsewhere.iterdir())
    evaluation, results = (json.loads((out / f"{name}.json").read_text()) for name in ("eval", "predictions"))
    logged = read_log(out)[-1]
    assert evaluation["coco_eval_bbox"] == logged["test_coco_eval_bbox"]
    assert evaluation["coco_eval_bbox"] == pytest.approx(coco_eval(dataset, results), abs=1e-12)
    assert evaluation["losses"] == {
        k.removeprefix("test_"): v for k, v in logged.items() if k.startswith("test_") and "coco" not in k
    }
    assert len({result["image_id"] for result in results}) == 5

    assert run_here(detector, *argv, "--epochs", EPOCHS, "--resume", last, *tiny(detector), *OPTIONS) == 0
    assert_same_state(read_checkpoint(last), read_checkpoint(trained / "checkpoint.pth"))


def coco_eval(dataset: Path, results: list[dict]) -> list[float]:
    """The 12 numbers of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(dataset / "annotations" / "instances_val2017.json"))
        evaluation = COCOeval(truth, truth.loadRes(results), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def test_the_evaluation_finds_what_was_predicted(trained, detector, dataset, tmp_path):
    """Where the truth is the best detection of each image, the precision is that of pycocotools, and it is not 0."""
    data, out = Path(shutil.copytree(dataset, tmp_path / "data")), tmp_path / "out"
    argv = ("--coco_path", data, "--output_dir", out, "--eval", "--resume", trained / "checkpoint.pth", *tiny(detector))
    assert run_here(detector, *argv) == 0
    results = json.loads((out / "predictions.json").read_text())
    best = {result["image_id"]: result for result in sorted(results, key=lambda result: result["score"])}
    path = data / "annotations" / "instances_val2017.json"
    truth = [result | {"id": i, "iscrowd": 0, "area": 99.0} for i, result in enumerate(best.values(), start=1)]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": truth}))

    assert run_here(detector, *argv) == 0
    assert json.loads((out / "predictions.json").read_text()) == results
    precision = json.loads((out / "eval.json").read_text())["coco_eval_bbox"]
    assert precision == pytest.approx(coco_eval(data, results), abs=1e-12)
    assert precision[0] > 0.1


def test_an_interrupted_run_continues_exactly(trained, detector, dataset, tmp_path):
    """Ctrl-C in epoch 0, SIGTERM in epoch 1, SIGKILL in epoch 2: each time the last checkpoint continues the run.

    In the end the weights are those of the run that was never interrupted, bit for bit, also with another number of workers.
    """
    out = tmp_path / "out"
    main = ROOT / detector / "main.py"
    argv = ("--coco_path", dataset, "--output_dir", out, "--epochs", EPOCHS, *tiny(detector), *OPTIONS)
    last = out / "checkpoint.pth"
    workers, resume = ("--num_workers", 1), ()
    for epoch, number, done in ((0, signal.SIGINT, "at its start"), (1, signal.SIGTERM, "after epoch 0")):
        code, err = run_and_signal(number, epoch, main, *argv, *workers, *resume)
        assert code == 130, err
        message = err.split("\r")[-1].strip()
        sentence = f"{detector}: stopped by {number.name}; {last} holds the run {done}: continue with --resume {last}"
        assert message == sentence
        assert read_checkpoint(last)["epoch"] == epoch - 1
        resume = tuple(re.search(r"(--resume) (\S+)$", message).groups())

    code, err = run_and_signal(signal.SIGKILL, 2, main, *argv, *workers, *resume)
    assert code == -signal.SIGKILL, err
    assert read_checkpoint(last)["epoch"] == 1, "the run was to be killed in the middle of epoch 2"
    assert run_here(detector, *argv, *resume) == 0
    assert_same_state(read_checkpoint(last), read_checkpoint(trained / "checkpoint.pth"))
    assert [line["epoch"] for line in read_log(out)] == list(range(EPOCHS))


def test_an_interrupted_evaluation_is_made_up_for(trained, detector, dataset, tmp_path, capsys):
    """A run that was stopped after the checkpoint of an epoch and before its line in the log: the line comes first, the same.

    Here it is the last epoch, so that nothing but the evaluation is left to do, and nothing at all the second time.
    """
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    lines = read_log(trained)
    (out / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    argv = ("--coco_path", dataset, "--output_dir", out, "--resume", out / "checkpoint.pth", *tiny(detector))
    assert run_here(detector, *argv) == 0
    assert read_log(out) == lines
    assert run_here(detector, *argv) == 2
    assert f"has finished epoch {EPOCHS - 1}" in capsys.readouterr().err
    assert len(read_log(out)) == EPOCHS
    with open(out / "log.txt", "a") as log:
        log.write('{"epo')  # a power cut
    assert run_here(detector, *argv) == 2
    assert f"line {EPOCHS + 1} is no JSON object with an epoch" in capsys.readouterr().err


def test_prediction_draws_one_picture_per_image(trained, detector, dataset, tmp_path):
    """``--predict`` takes folders and files, needs no dataset, and with ``--information`` draws the map beside the image."""
    images = [dataset / "val2017", dataset / "train2017" / "000000000009.jpg"]
    sizes = {}
    for name, option in (("plain", ()), ("information", ("--information",))):
        argv = ("--predict", *images, "--resume", trained / "checkpoint.pth", "--score_threshold", 0, "--device", "cpu")
        assert run_here(detector, *argv, *option, "--output_dir", tmp_path / name) == 0
        pictures = {path.name: cv2.imread(str(path)).shape for path in (tmp_path / name / "predictions").iterdir()}
        assert pictures.keys() == {f"{i:012d}.png" for i in (1, 2, 3, 4, 5, 9)}
        sizes[name] = pictures
    assert all(sizes["information"][name][1] > 1.5 * width for name, (_, width, _) in sizes["plain"].items())

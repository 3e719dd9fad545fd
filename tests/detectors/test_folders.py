"""Each detector's folder is a program of its own."""

import shutil
from pathlib import Path

from tests.detector_runs import assert_same_state, read_checkpoint, read_log, run_command, run_here, tiny
from tools.detectors import ROOT

OPTIONS = ("--batch_size", "8", "--lr", "3e-4", "--lr_backbone", "3e-4", "--lr_drop", "1")


def test_a_folder_runs_alone_and_its_run_continues_exactly(detector: str, dataset: Path, tmp_path: Path):
    """A copy of the folder, somewhere else and called from somewhere else, trains and evaluates an epoch.

    The repository continues the copy's run, and gets the weights of the run that did two epochs at once.
    """
    alone, out, elsewhere = tmp_path / "alone" / detector, tmp_path / "out", tmp_path / "elsewhere"
    shutil.copytree(ROOT / detector, alone, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    elsewhere.mkdir()
    options, last = (*tiny(detector), *OPTIONS), out / "checkpoint.pth"
    argv = ("--coco_path", dataset, "--output_dir", out)
    run_command(alone / "main.py", *argv, "--epochs", 1, *options, cwd=elsewhere)
    assert read_checkpoint(last)["epoch"] == 0

    assert len(read_log(out)[0]["test_coco_eval_bbox"]) == 12 and not any(elsewhere.iterdir())

    assert run_here(detector, *argv, "--epochs", 2, "--resume", last, *options) == 0
    whole = tmp_path / "whole"
    assert run_here(detector, "--coco_path", dataset, "--output_dir", whole, "--epochs", 2, *options) == 0
    assert_same_state(out, whole)

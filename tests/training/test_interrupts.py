"""Ctrl-C, a scheduler's SIGTERM and a power cut: each time the last checkpoint continues the run."""

import re
import signal
import sys
from pathlib import Path

from common.training import interrupts
from tests.detector_runs import EXAMPLE, assert_same_state, read_checkpoint, read_log, run_and_signal, run_here, tiny
from tools.detectors import ROOT

EPOCHS = 3
OPTIONS = (*tiny(EXAMPLE), "--batch_size", "3", "--lr", "3e-4", "--lr_backbone", "3e-4", "--lr_drop", "2")


def test_an_interrupted_run_continues_exactly(dataset: Path, tmp_path: Path):
    """Ctrl-C in epoch 0, SIGTERM in epoch 1, SIGKILL in epoch 2: each time the last checkpoint continues the run.

    In the end the weights are those of the run that was never interrupted, bit for bit, also with another number of workers.
    """
    out, main = tmp_path / "out", ROOT / EXAMPLE / "main.py"
    argv = ("--coco_path", dataset, "--epochs", EPOCHS, *OPTIONS)
    last = out / "checkpoint.pth"
    workers, resume = ("--num_workers", 1, "--output_dir", out), ()
    for epoch, number, done in ((0, signal.SIGINT, "at its start"), (1, signal.SIGTERM, "after epoch 0")):
        code, err = run_and_signal(number, epoch, main, *argv, *workers, *resume)
        assert code == 130, err
        message = err.split("\r")[-1].strip()
        sentence = f"{EXAMPLE}: stopped by {number.name}; {last} holds the run {done}: continue with --resume {last}"
        assert message == sentence
        assert read_checkpoint(last)["epoch"] == epoch - 1
        resume = tuple(re.search(r"(--resume) (\S+)$", message).groups())

    code, err = run_and_signal(signal.SIGKILL, 2, main, *argv, *workers, *resume)
    assert code == -signal.SIGKILL, err
    assert read_checkpoint(last)["epoch"] == 1, "the run was to be killed in the middle of epoch 2"
    assert run_here(EXAMPLE, *argv, *resume, "--output_dir", out) == 0
    assert [line["epoch"] for line in read_log(out)] == list(range(EPOCHS))

    assert run_here(EXAMPLE, *argv, "--output_dir", tmp_path / "whole") == 0
    assert_same_state(out, tmp_path / "whole")
    assert read_log(out) == read_log(tmp_path / "whole")


def test_nothing_follows_the_last_sentence(monkeypatch, capsys):
    """Protects it from tracebacks of what the interrupt left half-made, such as a loader whose workers were being started."""

    class HalfMade:
        def __del__(self) -> None:
            raise AttributeError("workers")

    monkeypatch.setattr(sys, "unraisablehook", interrupts._report_all_but_interrupts)
    for received, printed in (([], True), (["SIGINT"], False)):
        monkeypatch.setattr(interrupts, "_received", received)
        HalfMade()
        assert ("Exception ignored" in capsys.readouterr().err) is printed

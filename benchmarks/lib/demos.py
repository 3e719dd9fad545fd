"""Training runs of the demos, which several benchmarks compare: kept, resumed, several at once."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.lib.cli import ROOT
from common.boundary.checkpoints import load_checkpoint
from common.boundary.downloads import is_url
from common.boundary.logs import read_log
from common.data.shapes import CONTEXT, OUTLINE
from common.errors import UserError

# What the demos are trained with on the built-in shapes of a task. Classes that far-away things tell are learned after the boxes.
TASK_OPTIONS = {OUTLINE: (), CONTEXT: ("--epochs", "12", "--lr_drop", "10", "--cls_loss_coef", "5")}


@dataclass(frozen=True)
class Demo:
    """A run of ``python <detector>/main.py --demo``.

    Attributes:
        detector: its folder.
        options: beside ``--demo``.
        epochs: how long it takes.
        folder: where it is kept.
        finetune: the checkpoint that it starts from, a path or URL; None: the demo's random weights.
    """

    detector: str
    options: tuple[str, ...]
    epochs: int
    folder: Path
    finetune: str | None = None

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pth"

    def records(self) -> dict[int, dict[str, Any]]:
        """Epoch -> its line of the log, of the epochs that are done."""
        path = self.folder / "log.txt"
        records = read_log(path) if path.is_file() else {}
        return {epoch: record for epoch, record in records.items() if epoch < self.epochs}

    def log(self) -> dict[int, list[float]]:
        """Epoch -> COCO's 12 numbers, of the epochs that are done and were evaluated."""
        key = "test_coco_eval_bbox"
        return {epoch: record[key] for epoch, record in self.records().items() if key in record}

    def done(self) -> bool:
        return self.epochs - 1 in self.log()

    def check(self, coco_path: Path) -> None:
        """UserError where the folder holds a run on other data or from another start, as far as its checkpoint tells.

        The checkpoint is read for that, which takes a fraction of a second: once per run, and not whenever ``done`` is asked.
        """
        if not self.checkpoint.is_file():
            return
        kept = load_checkpoint(self.checkpoint).get("args") or {}
        data, start = kept.get("coco_path"), kept.get("finetune")
        if data and _differ(data, coco_path):
            raise UserError(f"{self.folder} holds a run on {data}, not on {coco_path}: move it away or pass another --runs")
        # A run that was continued does not keep what it had started from.
        if "finetune" in kept and not kept.get("resume") and _differ(start, self.finetune):
            other, asked = start or "random weights", self.finetune or "random weights"
            raise UserError(f"{self.folder} holds a run from {other}, not from {asked}: move it away or pass another --runs")

    def train(self, device: str, coco_path: Path) -> None:
        """Trains to the end, from where it stands; UserError where that fails."""
        command = [sys.executable, str(ROOT / self.detector / "main.py"), "--demo", *self.options]
        command += ["--epochs", str(self.epochs), "--device", device, "--coco_path", _place(coco_path)]
        command += ["--output_dir", str(self.folder)]
        if self.checkpoint.is_file():
            command += ["--resume", str(self.checkpoint)]
        elif self.finetune:
            command += ["--finetune", _place(self.finetune)]
        run_quietly(command, f"the run {self.folder}")
        if not self.done():
            raise UserError(f"the run {self.folder} failed: its log lacks the last epoch: remove the folder")


def _place(source: str | Path) -> str:
    """A URL, or the path behind all links, which stays when a checkout that led there is removed."""
    return str(source) if is_url(source) else str(Path(source).resolve())


def _differ(kept: str | None, asked: str | Path | None) -> bool:
    """Whether a run's data or start are others than those asked for. What a path that is gone has led to, nobody knows."""
    if kept is None or asked is None:
        return kept != asked
    return _place(kept) != _place(asked) and (is_url(kept) or Path(kept).exists())


def run_quietly(command: Sequence[str], what: str) -> None:
    """Runs a command on as many threads as this process; UserError with its last line where it fails."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    if done.returncode:
        raise UserError(f"{what} failed: {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}")


def train_all(demos: Sequence[Demo], jobs: int, device: str, coco_path: Path) -> None:
    """Trains what is not done, ``jobs`` at a time, and stops at the first failure; before it all, looks whose the runs are."""
    for demo in demos:
        demo.check(coco_path)
    missing = [demo for demo in demos if not demo.done()]
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(demo.train, device, coco_path) for demo in missing]
        try:
            for future in tqdm(as_completed(futures), total=len(missing), desc="runs", leave=False):
                future.result()
        except (UserError, KeyboardInterrupt):
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def share_threads(jobs: int) -> None:
    """Gives each of several runs its part of the cores, unless the user has said how many threads there are."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // jobs))

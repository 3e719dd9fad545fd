"""What a run leaves in its output folder."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.tensorboard import SummaryWriter

from ..boundary.checkpoints import load_checkpoint
from ..boundary.logs import append_record, read_log
from ..boundary.outputs import make_folder, whole_file
from ..errors import UserError
from ..evaluation.coco import METRICS
from ..evaluation.evaluate import Evaluation
from .curves import plot_curves


def prepare_output(folder: Path, accelerator: Accelerator, starts: bool = False, demo: bool = False) -> None:
    """Creates the output folder.

    Args:
        starts: a run starts, which must not write into another's files.
        demo: a run of the demo, which may overwrite an earlier one of its own.
    """
    problem = ""
    if accelerator.is_main_process:
        try:
            make_folder(folder)
            if starts:
                _make_way(folder, demo)
        except UserError as error:
            problem = str(error)
    [problem] = broadcast_object_list([problem])
    if problem:
        raise UserError(problem)


def _make_way(folder: Path, demo: bool) -> None:
    """Removes an earlier demo; UserError where the folder holds another run."""
    last, log = folder / "checkpoint.pth", folder / "log.txt"
    if not (last.exists() or log.exists()):
        return
    if not (demo and _is_demo(last)):
        way = f"continue it with --resume {last}" if last.exists() else f"remove its {log.name}"
        raise UserError(f"{folder} holds a run already: {way} or choose another --output_dir")
    for old in (log, *folder.glob("events.out.tfevents.*"), *folder.glob("checkpoint*.pth")):
        old.unlink(missing_ok=True)


def _is_demo(path: Path) -> bool:
    try:
        return bool((load_checkpoint(path).get("args") or {}).get("demo"))
    except UserError:
        return False


def write_json(path: Path, content: Any) -> None:
    """Writes atomically, so that an interrupted run leaves no half file; UserError where that fails."""
    with whole_file(path) as file:
        file.write(json.dumps(content).encode())


def keep_best(folder: Path, rows: Mapping[str, Any]) -> None:
    """Copies ``checkpoint.pth`` to ``checkpoint_best.pth`` where no epoch of the log, which lacks this one, has a larger AP."""
    log, last = folder / "log.txt", folder / "checkpoint.pth"
    if "test_coco_eval_bbox" not in rows:
        return
    before = [r["test_coco_eval_bbox"][0] for r in (read_log(log) if log.exists() else {}).values() if r.get("test_coco_eval_bbox")]
    if rows["test_coco_eval_bbox"][0] > max(before, default=-math.inf):
        with whole_file(folder / "checkpoint_best.pth") as target, open(last, "rb") as source:
            shutil.copyfileobj(source, target)


def write_log(folder: Path, log: dict[str, Any], writer: SummaryWriter) -> None:
    """Adds an epoch to ``log.txt`` and to TensorBoard's events, and draws the curves anew."""
    append_record(folder / "log.txt", log)
    for name, value in log.items():
        if isinstance(value, float):
            writer.add_scalar(name.replace("_", "/", 1), value, log["epoch"])
    for name, value in zip(METRICS, log.get("test_coco_eval_bbox", ())):
        writer.add_scalar(f"coco/{name}", value, log["epoch"])
    for name, value in log.get("test_PQ_all", {}).items():
        writer.add_scalar(f"coco/panoptic {name}", value, log["epoch"])
    plot_curves(folder / "log.txt", folder / "curves.png")


def summaries(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """The average precisions and panoptic qualities, a line for each evaluation, behind its name where it has one."""
    lines = []
    for name, evaluation in evaluations.items():
        parts = []
        for kind, numbers in evaluation.stats.items():
            if kind == "PQ_all":
                parts.append(", ".join(f"{metric.upper()} {numbers[metric]:.3f}" for metric in ("pq", "sq", "rq")))
            elif kind.startswith("coco_eval"):
                shown = ", ".join(f"{metric} {value:.3f}" for metric, value in zip(METRICS[:6], numbers) if value >= 0)
                shown = shown or "no objects, so no precision"
                parts.append(shown if kind == "coco_eval_bbox" else f"masks {shown}")
        lines.append((f"{name.replace('_', ' ')}: " if name else "") + "; ".join(parts))
    return lines

"""What a run leaves in its output folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.tensorboard import SummaryWriter

from ..errors import UserError
from ..evaluation.coco import METRICS
from ..evaluation.evaluate import Evaluation
from ..models.checkpoint import load_checkpoint
from .curves import plot_curves


def prepare_output(folder: Path, accelerator: Accelerator, starts: bool = False, demo: bool = False) -> None:
    """Creates the output folder.

    Args:
        starts: a run starts, which must not overwrite another's checkpoint.
        demo: a run of the demo, which may overwrite an earlier one of its own.
    """
    problem = ""
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            problem = f"--output_dir {folder} cannot be written ({error.strerror}): choose another folder"
        last = folder / "checkpoint.pth"
        if not problem and starts and last.exists():
            if demo and _is_demo(last):
                for old in (folder / "log.txt", *folder.glob("events.out.tfevents.*"), *folder.glob("checkpoint*.pth")):
                    old.unlink(missing_ok=True)
            else:
                problem = f"{folder} holds a run already: continue it with --resume {last} or choose another --output_dir"
    [problem] = broadcast_object_list([problem])
    if problem:
        raise UserError(problem)


def _is_demo(path: Path) -> bool:
    try:
        return bool(load_checkpoint(path).get("args", {}).get("demo"))
    except UserError:
        return False


def write_json(path: Path, content: Any) -> None:
    """Writes atomically, so that an interrupted run leaves no half file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def write_log(folder: Path, log: dict[str, Any], writer: SummaryWriter) -> None:
    """Adds an epoch to ``log.txt`` and to TensorBoard's events, and draws the curves anew."""
    with open(folder / "log.txt", "a") as file:
        file.write(json.dumps(log) + "\n")
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
                parts.append(shown if kind == "coco_eval_bbox" else f"masks {shown}")
        lines.append((f"{name.replace('_', ' ')}: " if name else "") + "; ".join(parts))
    return lines

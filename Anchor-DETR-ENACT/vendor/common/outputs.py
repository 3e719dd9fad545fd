"""What a run leaves in its output folder."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.tensorboard import SummaryWriter

from .checkpoint import load_checkpoint
from .drawing import plot_curves
from .errors import UserError
from .evaluation import METRICS


def prepare_output(args: Namespace, accelerator: Accelerator) -> None:
    """Creates the output folder; starting a run must not overwrite another's checkpoint, the demo's own excepted."""
    folder, problem = args.output_dir, ""
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            problem = f"--output_dir {folder} cannot be written ({error.strerror}): choose another folder"
        starts = not (args.eval or args.predict or args.resume)
        last = folder / "checkpoint.pth"
        if not problem and starts and last.exists():
            if args.demo and _is_demo(last):
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
    with open(folder / "log.txt", "a") as file:
        file.write(json.dumps(log) + "\n")
    for name, value in log.items():
        if isinstance(value, float):
            writer.add_scalar(name.replace("_", "/", 1), value, log["epoch"])
    for name, value in zip(METRICS, log["test_coco_eval_bbox"], strict=True):
        writer.add_scalar(f"coco/{name}", value, log["epoch"])
    plot_curves(folder / "log.txt", folder / "curves.png")


def summary(stats: list[float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in zip(METRICS[:6], stats, strict=False) if value >= 0)

"""Detectors as the benchmarks look into them: with the weights of any checkpoint, and with those that training starts from."""

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.cli import ROOT
from common.cli.restore import Restored, restore
from common.data.loading import Batch
from common.data.shapes import OUTLINE, TASKS, ensure_shapes_dataset
from common.data.shapes_drawing import CLASSES
from common.data.sources import find_sources
from common.detector import Detector
from common.errors import UserError
from common.models.model import DetectionModel
from tools.detectors import DETECTORS, options


@dataclass(frozen=True)
class Loaded:
    """A detector with weights, in evaluation.

    Attributes:
        detector: its parts.
        args: its options.
        num_classes: those that it tells apart.
        source: the checkpoint; None where the weights are random.
        model: on its device.
    """

    detector: Detector
    args: Namespace
    num_classes: int
    source: str | None
    model: DetectionModel

    @property
    def state(self) -> str:
        """Which side of training the weights are from."""
        return "after" if self.source else "before"

    @property
    def label(self) -> str:
        """What the model is called in tables and charts."""
        return f"{self.detector.name}, {self.args.clustering}, \u03c3 = {self.args.smoothing_sigma:g}"

    @property
    def settings(self) -> dict[str, Any]:
        """The options that the results depend on."""
        return {name: getattr(self.args, name) for name in ("clustering", "smoothing_sigma", "image_size", "seed")}

    @torch.no_grad()
    def observe(self, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        """Runs as in evaluation: name of the probability layer -> its clusters, layer by layer; outputs."""
        batch = batch.to(next(self.model.parameters()).device)
        with self.detector.record(self.model) as clusters:
            outputs = self.model(batch.images, batch.mask)
        return clusters, outputs


def demo(detector: str, device: torch.device, changes: dict[str, Any]) -> Loaded:
    """The model of ``--demo`` as training starts it, but for the options that ``changes`` holds a value for."""
    return _untrained(DETECTORS[detector], options(detector, ["--demo", *_argv(changes)]), len(CLASSES) + 1, device)


def trained(
    checkpoint: dict[str, Any], source: str | Path, detectors: Iterable[str], device: torch.device, changes: dict[str, Any]
) -> Loaded:
    """The clustered detector of a checkpoint, published or of this repository, with the options that it tells.

    Args:
        checkpoint: what ``load_checkpoint(source)`` read.
        source: where it is from.
        detectors: those that it may be of. It is of the one that it names; if it names none, of the first whose weights it holds.
        device: for the model.
        changes: option -> value, or None to leave it; none of those that shape the weights.

    Raises:
        UserError: it is of none of these detectors, or has no clustering.
    """
    named, detectors = checkpoint.get("detector"), list(detectors)
    if named in DETECTORS and named not in detectors:
        raise UserError(f"{source} is a checkpoint of {named}, not of {' or '.join(detectors)}: choose another")
    name, found = _restore([named] if named in detectors else detectors, source, checkpoint, changes)
    if found.args.clustering == "none":
        raise UserError(f"{source} is of a plain detector: choose a checkpoint of --clustering region, region+ or window")
    return Loaded(DETECTORS[name], found.args, found.num_classes, str(source), found.model.to(device).eval())


def before_training(loaded: Loaded) -> Loaded | None:
    """The model with the weights that its training started from; None, and a line that says so, where ImageNet's are missing."""
    device = next(loaded.model.parameters()).device
    try:
        return _untrained(loaded.detector, loaded.args, loaded.num_classes, device)
    except UserError as error:
        print(f"{loaded.source}: not measured before training: {error}", flush=True)
        return None


def images_of(folder: Path | None, count: int) -> list[Path]:
    """The first images of a folder; of the built-in shapes for validation where there is none."""
    if folder is None:
        folder = shapes() / "val2017"
    if not folder.is_dir():
        raise UserError(f"--images {folder} is not a folder: pass one with images")
    return [source.path for source in find_sources([folder])][:count]


def shapes(task: str = OUTLINE, quick: bool = False) -> Path:
    """The built-in dataset of a task, drawn on first use; for a quick look a small one."""
    small = {"train": 80, "val": 40} if quick else {}
    return ensure_shapes_dataset(ROOT / "data" / (TASKS[task].folder + "_quick" * quick), task=task, **small)


def _untrained(detector: Detector, args: Namespace, num_classes: int, device: torch.device) -> Loaded:
    """As ``common.cli.run`` starts: the seed right before the weights, and ImageNet's where the recipe has them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        model = detector.build_model(args, num_classes, True)
    return Loaded(detector, args, num_classes, None, model.to(device).eval())


def _restore(
    candidates: list[str], source: str | Path, checkpoint: dict[str, Any], changes: dict[str, Any]
) -> tuple[str, Restored]:
    """The first candidate whose weights these are; the error of the only one, or of all."""
    for name in candidates:
        try:
            return name, restore(DETECTORS[name], source, _argv(changes), checkpoint)
        except UserError:
            if len(candidates) == 1:
                raise
    raise UserError(f"{source} is not a checkpoint of {', '.join(candidates)}: choose one of these detectors")


def _argv(changes: dict[str, Any]) -> list[str]:
    """Options of a command line, of those that have a value."""
    return [f"--{name}={value}" for name, value in changes.items() if value is not None]

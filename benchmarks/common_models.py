"""Detectors as the benchmarks look into them: with the weights of any checkpoint, and with those that training starts from."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common_cli import ROOT
from common.arguments import follow_checkpoint
from common.checkpoint import load_model
from common.detector import Detector
from common.errors import UserError
from common.predict import find_images
from common.shapes import CLASSES, ensure_shapes_dataset
from tools.detectors import DETECTORS, load, options


@dataclass(frozen=True)
class Loaded:
    """A detector with weights, in evaluation.

    Attributes:
        about: its parts.
        args: its options.
        num_classes: those that it tells apart.
        source: the checkpoint; None where the weights are random.
        model: on its device.
    """

    about: Detector
    args: Namespace
    num_classes: int
    source: str | None
    model: nn.Module

    @property
    def state(self) -> str:
        """Which side of training the weights are from."""
        return "after" if self.source else "before"

    @property
    def label(self) -> str:
        """What the model is called in tables and charts."""
        return f"{self.about.name}, {self.args.clustering}, \u03c3 = {self.args.smoothing_sigma:g}"

    @property
    def settings(self) -> dict[str, Any]:
        """The options that the results depend on."""
        return {name: getattr(self.args, name) for name in ("clustering", "smoothing_sigma", "image_size", "seed")}

    @torch.no_grad()
    def look(self, image: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """Runs on an image (3, H, W) as in evaluation: name of the probability layer -> its clusters, layer by layer; outputs."""
        images = image[None].to(next(self.model.parameters()).device)
        mask = torch.zeros(1, *image.shape[1:], dtype=torch.bool, device=images.device)
        with self.about.record(self.model) as clusters:
            outputs = self.model(images, mask)
        return clusters, outputs


def demo(detector: str, device: torch.device, changes: dict[str, Any]) -> Loaded:
    """The model of ``--demo`` as training starts it, but for the options that ``changes`` holds a value for."""
    args = _changed(options(detector, ["--demo"]), changes)
    return _start(load(detector).DETECTOR, args, len(CLASSES) + 1, device)


def trained(
    checkpoint: dict[str, Any], source: str | Path, detectors: Sequence[str], device: torch.device, changes: dict[str, Any]
) -> Loaded:
    """The clustered detector of a checkpoint, published or of this repository, with the options that it tells.

    Args:
        checkpoint: what ``common.checkpoint.load_checkpoint`` read.
        source: where it is from, for messages.
        detectors: those that it may be of. It is of the one that it names; if it names none, of the first whose weights it holds.
        device: for the model.
        changes: option -> value, or None to leave it; none of those that shape the weights.

    Raises:
        UserError: it is of none of these detectors, or has no clustering.
    """
    named = checkpoint.get("detector")
    if named in DETECTORS and named not in detectors:
        raise UserError(f"{source} is a checkpoint of {named}, not of {' or '.join(detectors)}: choose another")
    candidates = [named] if named in detectors else detectors
    for detector in candidates:
        try:
            found = _load(detector, checkpoint, str(source), changes)
            break
        except UserError:
            if len(candidates) == 1:
                raise
    else:
        raise UserError(f"{source} is not a checkpoint of {', '.join(candidates)}: choose one of these detectors")
    if found.args.clustering == "none":
        raise UserError(f"{source} is of a plain detector: choose a checkpoint of --clustering region or window")
    return replace(found, model=found.model.to(device).eval())


def before_training(found: Loaded) -> Loaded | None:
    """The model with the weights that its training started from; None, and a line that says so, where ImageNet's are missing."""
    device = next(found.model.parameters()).device
    try:
        return _start(found.about, found.args, found.num_classes, device)
    except UserError as error:
        print(f"{found.source}: not measured before training: {error}", flush=True)
        return None


def images_of(folder: Path | None, count: int) -> list[Path]:
    """The first images of a folder; of the built-in shapes for validation where there is none."""
    if folder is None:
        folder = shapes() / "val2017"
    if not folder.is_dir():
        raise UserError(f"--images {folder} is not a folder: pass one with images")
    return find_images([folder])[:count]


def shapes() -> Path:
    """The built-in dataset, drawn on first use."""
    return ensure_shapes_dataset(ROOT / "data" / "shapes")


def _start(about: Detector, args: Namespace, num_classes: int, device: torch.device) -> Loaded:
    """As ``common.run`` starts: the seed right before the weights, and ImageNet's where the recipe has them."""
    with torch.random.fork_rng(devices=[]), _errors_of(about.name):
        torch.manual_seed(args.seed)
        model = about.build_model(args, num_classes, True)
    return Loaded(about, args, num_classes, None, model.to(device).eval())


def _load(detector: str, checkpoint: dict[str, Any], source: str, changes: dict[str, Any]) -> Loaded:
    about, args = load(detector).DETECTOR, options(detector, ["--resume", source])
    try:
        revealed = about.reveal(checkpoint["model"])
    except (KeyError, AttributeError, IndexError) as error:
        raise UserError(f"{source} is not a checkpoint of {detector}: {error} is missing") from error
    follow_checkpoint(args, set(), checkpoint, revealed, source, about.architecture)
    args = _changed(args, changes)
    with _errors_of(detector):
        model = about.build_model(args, revealed["num_classes"], False)
    load_model(model, about.adapt(checkpoint["model"], args.nheads), source)
    return Loaded(about, args, revealed["num_classes"], source, model)


def _changed(args: Namespace, changes: dict[str, Any]) -> Namespace:
    return Namespace(**vars(args) | {name: value for name, value in changes.items() if value is not None})


@contextmanager
def _errors_of(detector: str) -> Iterator[None]:
    """Raises the errors of a detector's folder, which has a copy of the class, as those of the repository."""
    try:
        yield
    except load(detector, "vendor.common.errors").UserError as error:
        raise UserError(str(error)) from error

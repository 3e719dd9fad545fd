"""Checkpoints of small models that nobody trained, for tests of what reads checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.detector_runs import tiny
from tools.detectors import DETECTORS, options

NUM_CLASSES = 7


def tiny_model(detector: str, seed: int, *argv: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model in evaluation with random weights and feature maps that begin at stride 8, and those of its options that a checkpoint
    keeps."""
    single_scale = getattr(options(detector), "num_feature_levels", 1) == 1
    stride_8 = ("--no-dilation", "--last_stage", "2") if single_scale else ()
    args = options(detector, [*tiny(detector), *stride_8, *argv])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DETECTORS[detector].build_model(args, NUM_CLASSES, False).eval()
    return model, {name: value for name, value in vars(args).items() if isinstance(value, (bool, int, float, str))}


def tiny_checkpoint(path: Path, detector: str, seed: int, *argv: str) -> Path:
    """Writes such a model as training does."""
    model, args = tiny_model(detector, seed, *argv)
    torch.save({"model": model.state_dict(), "args": args, "num_classes": NUM_CLASSES, "detector": detector}, path)
    return path


def tiny_published(path: Path, detector: str, seed: int) -> Path:
    """Writes such a model, with windows, under the published names: the file does not say what it is."""
    model, args = tiny_model(detector, seed, "--clustering", "window")
    weights = DETECTORS[detector].export(model.state_dict(), args["nheads"])
    torch.save({"model": weights, "args": {"nheads": args["nheads"]}}, path)
    return path

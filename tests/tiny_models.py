"""Small models of the detectors, and what it takes to train them for a few steps."""

from pathlib import Path

import torch
from torch import Tensor

from common.data.loading import Batch, build_dataset, collate
from common.losses.criterion import Criterion
from common.models.model import DetectionModel
from tests.detector_runs import tiny
from tools.detectors import DETECTORS, options

NUM_CLASSES = 6  # of the shapes dataset


def build(detector: str, *argv: str) -> tuple[DetectionModel, Criterion]:
    """A tiny model without dropout, and its losses."""
    args = options(detector, [*tiny(detector), "--dropout", "0", *argv])
    torch.manual_seed(0)
    model = DETECTORS[detector].build_model(args, NUM_CLASSES, True)
    return model, DETECTORS[detector].build_criterion(args, NUM_CLASSES)


def bytes_of(dataset: Path, image_size: int = 64) -> Batch:
    """The first training images, of different sizes, as they are in the first epoch and before they are on a device."""
    images = build_dataset(dataset, "train", image_size, seed=0)
    return collate([images[i] for i in range(4)])


def batch_of(dataset: Path, image_size: int = 64) -> Batch:
    """These images as a model takes them."""
    return bytes_of(dataset, image_size).to(torch.device("cpu"))


def loss_of(model: DetectionModel, criterion: Criterion, batch: Batch) -> Tensor:
    """The total, with the same random numbers in every call."""
    torch.manual_seed(0)
    return criterion(model(batch.images, batch.mask, batch.targets), batch.targets, criterion.count(batch.targets))[0]

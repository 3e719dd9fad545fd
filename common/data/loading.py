"""From a dataset to batches.

Shapes: B images, H x W pixels of the padded batch.
"""

import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..errors import UserError
from .coco import CocoDetection
from .layouts import Layout, recognise
from .panoptic import CocoPanoptic
from .sampling import BucketSampler, EvaluationSampler, ShuffledSampler
from .transforms import evaluation_transforms, normalize, training_transforms

TIMEOUT = 600  # seconds without a batch, after which its workers count as hanging


class Batch(NamedTuple):
    """Images padded to a common size at their right and bottom.

    Attributes:
        images: (B, 3, H, W) uint8 as they are loaded, float32 and normalised once they are on the device; 0 at padding.
        mask: (B, H, W) bool, True = padding.
        targets: one dict per image, see :class:`CocoDetection`.
    """

    images: Tensor
    mask: Tensor
    targets: list[dict[str, Any]]

    def to(self, device: torch.device) -> "Batch":
        """On the device, as a model takes it: the images travel as bytes and are normalised there."""
        targets = [{k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in t.items()} for t in self.targets]
        images, mask = self.images.to(device, non_blocking=True), self.mask.to(device, non_blocking=True)
        return Batch(normalize(images, mask) if images.dtype == torch.uint8 else images, mask, targets)


def pad_batch(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Images (3, h, w) of any sizes -> (B, 3, H, W) and its mask (B, H, W), True = padding."""
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    # Channels innermost, as the images are: each row is copied in one piece.
    batch = images[0].new_zeros(len(images), height, width, 3).permute(0, 3, 1, 2)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        _, h, w = image.shape
        batch[i, :, :h, :w] = image
        mask[i, :h, :w] = False
    return batch, mask


def collate(samples: list[tuple[Tensor, dict[str, Any]]]) -> Batch:
    images, targets = zip(*samples, strict=True)
    return Batch(*pad_batch(list(images)), list(targets))


def build_dataset(
    data: Path | Layout, split: str, image_size: int, seed: int, masks: bool = False, panoptic_path: Path | None = None
) -> CocoDetection:
    """The images of a split with their instances, or with their panoptic segments where these have a folder.

    Args:
        data: a folder in any layout, or what was recognised.
        split: "train" (with DETR's augmentation) or "val".
        masks: objects have masks, too.
        panoptic_path: the folder of panoptic segments of COCO 2017's layout.
    """
    layout = data if isinstance(data, Layout) else recognise(data)
    transforms = training_transforms(image_size) if split == "train" else evaluation_transforms(image_size)
    part = layout.train if split == "train" else layout.val
    if panoptic_path is None:
        return CocoDetection(part.images, part.annotations, transforms, seed, masks, part.read() if part.read else None)
    segments, annotations = panoptic_path / f"panoptic_{split}2017", panoptic_path / "annotations" / f"panoptic_{split}2017.json"
    truth = part.annotations if split == "val" else None
    return CocoPanoptic(part.images, annotations, segments, transforms, seed, masks, truth)


def training_loader(
    dataset: CocoDetection,
    batch_size: int,
    num_workers: int,
    seed: int,
    rank: int,
    world_size: int,
    pin_memory: bool,
    bucket: bool = False,
) -> DataLoader:
    """Batches of ``batch_size`` images per process, shuffled by (seed, epoch); the last incomplete batch is dropped.

    Args:
        rank, world_size: this process, and how many there are: together they see the batches of one process with a batch
            ``world_size`` times as large.
        pin_memory: batches in memory from which a GPU can copy by itself.
        bucket: the images of a batch have similar shapes.

    Raises:
        UserError: the dataset does not fill one batch.
    """
    if len(dataset) < batch_size * world_size:
        raise UserError(
            f"the training set has {len(dataset)} images, fewer than one batch of {batch_size * world_size}: "
            "choose a smaller --batch_size"
        )
    if bucket:
        sampler = BucketSampler(dataset.aspect_ratios(), batch_size, seed, rank, world_size)
    else:
        sampler = ShuffledSampler(len(dataset), seed, rank, world_size)
    return _loader(dataset, sampler, batch_size, num_workers, pin_memory, drop_last=True)


def evaluation_loader(
    dataset: CocoDetection, batch_size: int, num_workers: int, rank: int, world_size: int, pin_memory: bool
) -> DataLoader:
    """Batches in the order of the dataset."""
    sampler = EvaluationSampler(len(dataset), rank, world_size)
    return _loader(dataset, sampler, batch_size, num_workers, pin_memory, drop_last=False)


def _loader(
    dataset: CocoDetection, sampler: Sampler, batch_size: int, num_workers: int, pin_memory: bool, drop_last: bool
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        drop_last=drop_last,
        worker_init_fn=_follow_the_main_process,
        persistent_workers=num_workers > 0,
        timeout=TIMEOUT if num_workers > 0 else 0,
        generator=torch.Generator(),  # else the loader draws its workers' seed from the generator that dropout uses
    )


def _follow_the_main_process(worker: int) -> None:
    """Leaves Ctrl-C to the main process, and keeps quiet about a connection that breaks because that one has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    report = sys.excepthook
    sys.excepthook = lambda kind, error, trace: None if issubclass(kind, ConnectionError) else report(kind, error, trace)

"""What annotations in COCO's format say: categories and masks."""

from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from torchvision import tv_tensors

from ..errors import UserError

FAR = 10  # sizes of the image, beyond which no point of an outline lies


def stuff_of(coco: COCO) -> list[int]:
    """The categories without instances, such as sky; none in a dataset that does not tell."""
    return sorted(category["id"] for category in coco.dataset["categories"] if not category.get("isthing", 1))


def category_names(coco: COCO) -> dict[int, str]:
    """Category id -> name."""
    return {category["id"]: str(category.get("name", category["id"])) for category in coco.dataset["categories"]}


def check_segmentations(coco: COCO, path: Path) -> None:
    """Raises UserError where an annotation has no mask."""
    for annotation in coco.dataset["annotations"]:
        if not annotation.get("segmentation"):
            raise UserError(f"{path}: annotation {annotation['id']} has no segmentation: train and evaluate without --masks")


def masks_of(annotations: list[dict], height: int, width: int) -> tv_tensors.Mask:
    """The masks (n, H, W) of annotations, polygons or run lengths, which follow their image through the transforms.

    Raises:
        UserError: a segmentation is neither, or of another size.
    """
    masks = np.zeros((len(annotations), height, width), dtype=bool)
    for i, annotation in enumerate(annotations):
        try:
            masks[i] = _decode(annotation["segmentation"], height, width)
        except Exception as error:  # whatever pycocotools raises
            raise UserError(
                f"the segmentation of annotation {annotation['id']} is neither polygons nor run lengths of an image of "
                f"{width} x {height} pixels: mend it, or leave out --masks"
            ) from error
    return tv_tensors.Mask(torch.from_numpy(masks))


def _decode(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """ValueError and the like where it is none: pycocotools would take what does not fit for addresses in memory."""
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, dtype=float) for polygon in segmentation]
        far = FAR * max(height, width)
        if not all(p.ndim == 1 and len(p) >= 6 and len(p) % 2 == 0 and (np.abs(p) <= far).all() for p in polygons):
            raise ValueError("no polygons")
        return rle.decode(rle.merge(rle.frPyObjects([p.tolist() for p in polygons], height, width)))
    counts = segmentation["counts"]
    runs = np.asarray(counts if isinstance(counts, list) else _runs(counts), dtype=np.int64)
    if list(segmentation["size"]) != [height, width] or runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError("no run lengths of this image")
    return np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T


def _runs(text: str) -> list[int]:
    """COCO's compressed run lengths as numbers: digits of 5 bits, the lowest first, a sixth bit if more follow; the last one has
    the sign; from the fourth number on the difference to the one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        digit = code - 48
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (digit & 16 and 1) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs

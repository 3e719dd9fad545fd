"""What annotations in COCO's format say: categories and masks."""

from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from torchvision import tv_tensors

from ..errors import UserError


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
    if isinstance(segmentation, list):
        segmentation = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = rle.frPyObjects(segmentation, *segmentation["size"])
    return rle.decode(segmentation)

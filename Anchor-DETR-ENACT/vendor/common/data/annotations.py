"""Annotations in COCO's format, read with pycocotools and checked before any work starts."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from torchvision import tv_tensors

from ..errors import UserError


def read_annotations(path: Path) -> COCO:
    """Reads an annotation file.

    Raises:
        UserError: the file is missing, is not JSON, or is not a COCO detection dataset.
    """
    return indexed(read_json(path, "--coco_path must hold train2017/, val2017/ and annotations/"), path)


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """What an annotation file holds; UserError where it is missing or is no JSON object."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: {advice}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not an annotation file in COCO's JSON format ({error!r})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not an annotation file in COCO's JSON format: it holds a {type(content).__name__}")
    return content


def indexed(content: dict[str, Any], path: Path) -> COCO:
    """The content of an annotation file as pycocotools has it; UserError where it is not a COCO detection dataset."""
    coco = COCO()
    coco.dataset = content
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress with print
            coco.createIndex()
        _check(coco)
    except KeyError as error:
        raise UserError(f"{path} is not a COCO detection dataset: an entry lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not a valid COCO detection dataset: {error}") from error
    return coco


def _check(coco: COCO) -> None:
    """Raises KeyError, TypeError or ValueError where an entry that detection needs is missing or contradicts another.

    Fills in ``iscrowd`` and ``area``, which exports of other tools leave out and COCO's evaluation needs.
    """
    for part in ("images", "annotations", "categories"):
        if not isinstance(coco.dataset[part], list):
            raise ValueError(f"'{part}' is not a list")
    if not coco.dataset["images"]:
        raise ValueError("it lists no images")
    if not coco.dataset["categories"]:
        raise ValueError("it lists no categories")
    for image in coco.dataset["images"]:
        image["id"], image["file_name"]  # noqa: B018 - the look-up is the check
    if any(not isinstance(category["id"], int) or category["id"] < 0 for category in coco.dataset["categories"]):
        raise ValueError("a category id is not a whole number of at least 0")
    for annotation in coco.dataset["annotations"]:
        if annotation["image_id"] not in coco.imgs:
            raise ValueError(f"annotation {annotation['id']} belongs to image {annotation['image_id']}, which is not listed")
        if annotation["category_id"] not in coco.cats:
            raise ValueError(f"annotation {annotation['id']} has category {annotation['category_id']}, which is not listed")
        if len(annotation["bbox"]) != 4 or not np.isfinite(np.asarray(annotation["bbox"], dtype=float)).all():
            raise ValueError(f"the bbox of annotation {annotation['id']} is not four finite numbers [x, y, width, height]")
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])


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

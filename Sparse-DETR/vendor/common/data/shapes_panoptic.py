"""The panoptic form of the built-in shapes dataset: every pixel belongs to a shape or to the ground, dark or light."""

from collections.abc import Sequence

import cv2
import numpy as np

from .panoptic import digits_of

STUFF: tuple[str, ...] = ("dark ground", "light ground")
LIGHT = 57  # least CIELAB lightness of a light ground, the middle of those that are drawn
SPREAD = 0x9E3779  # odd, so that products with it modulo 2**24 are distinct: segments that can be told apart by eye


def categories(classes: Sequence[str]) -> list[dict]:
    """Things, as in the instance annotations, and stuff behind them."""
    names = [*classes, *STUFF]
    kind = {True: "shape", False: "ground"}
    return [
        {"id": i, "name": name, "supercategory": kind[i <= len(classes)], "isthing": int(i <= len(classes))}
        for i, name in enumerate(names, start=1)
    ]


def panoptic_annotation(owner: np.ndarray, lightness: float, annotations: list[dict], things: int) -> tuple[np.ndarray, list[dict]]:
    """COCO's panoptic annotation of an image: what is seen of each object, without overlaps.

    Args:
        owner: (H, W) int, 0 for the ground and k for annotation k - 1.
        lightness: of the ground in CIELAB, 0 to 100.
        annotations: of the instances.
        things: number of their classes.

    Returns:
        The RGB (H, W, 3) of its PNG, and ``segments_info``.
    """
    ground = {"category_id": things + 1 + int(lightness >= LIGHT), "iscrowd": 0}
    segments = []
    for k, annotation in enumerate([ground, *annotations]):
        mask = owner == k
        if mask.any():
            x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
            kept = {name: annotation[name] for name in ("category_id", "iscrowd")}
            segments.append({"id": (k + 1) * SPREAD % 2**24, "area": int(mask.sum()), "bbox": [x, y, w, h], **kept})
    return digits_of((owner + 1) * SPREAD % 2**24), segments

"""COCO's panoptic annotations: every pixel belongs to a segment, of things such as cars or of stuff such as sky.

    <root>/annotations/panoptic_train2017.json     <root>/panoptic_train2017/000000000009.png ...

A PNG holds the id of each pixel's segment, red + 256 green + 65536 blue; 0 belongs to none.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pycocotools.coco import COCO
from pydantic import Field, TypeAdapter, with_config
from torchvision import tv_tensors
from typing_extensions import TypedDict

from ..boundary.annotations import FileName, indexed, read_annotations, read_json
from ..boundary.schema import OPEN, Whole, conform
from ..errors import UserError
from .coco import CocoDetection
from .images import open_image

VOID = 0


@with_config(OPEN)
class Segment(TypedDict):
    """A segment: ``id`` in the PNG."""

    id: Annotated[int, Field(gt=VOID, lt=2**24)]


@with_config(OPEN)
class SegmentedImage(TypedDict):
    """The segments of an image."""

    image_id: Whole
    file_name: FileName
    segments_info: list[Segment]


@with_config(OPEN)
class Panoptic(TypedDict):
    """What a panoptic file holds; the rest is checked as in :func:`indexed`."""

    annotations: list[SegmentedImage]


PANOPTIC = TypeAdapter(Panoptic)


class CocoPanoptic(CocoDetection):
    """Images, boxes and masks of all segments, stuff like things.

    Args:
        image_folder, transforms, seed, masks: as for :class:`CocoDetection`.
        annotation_file: COCO's panoptic JSON.
        segment_folder: its PNGs, which are opened for masks alone.
        instance_file: COCO's instances of the same images, which average precision is measured on (DETR); where it is measured.

    Raises:
        UserError: as of :class:`CocoDetection`; the PNGs are missing or do not fit.
    """

    def __init__(
        self,
        image_folder: Path,
        annotation_file: Path,
        segment_folder: Path,
        transforms: Callable,
        seed: int = 0,
        masks: bool = False,
        instance_file: Path | None = None,
    ):
        self.annotation_file, self.segment_folder = annotation_file, segment_folder
        super().__init__(image_folder, annotation_file, transforms, seed, masks)
        if instance_file:
            self.truth = read_annotations(instance_file)
            if self.truth.imgs.keys() != self.coco.imgs.keys():
                raise UserError(f"{instance_file} and {annotation_file} are of different images: pass the two files of one dataset")

    def _read(self, annotation_file: Path) -> COCO:
        return read_panoptic(annotation_file)

    def _check_masks(self, annotation_file: Path) -> None:
        present = set(os.listdir(self.segment_folder)) if self.segment_folder.is_dir() else set()
        for name in self.coco.segment_files.values():
            if name not in present:
                raise UserError(f"{annotation_file} lists the segments {name}, which are not in {self.segment_folder}")

    def _masks(self, image_id: int, annotations: Sequence[dict], height: int, width: int) -> tv_tensors.Mask:
        segments, ids = self.segments(image_id), torch.tensor([a["segment"] for a in annotations], dtype=torch.long)
        if segments.shape != (height, width):
            raise UserError(
                f"{self.segment_file(image_id)} has {segments.shape[1]} x {segments.shape[0]} pixels and its image "
                f"{width} x {height}: pass the PNGs of these images"
            )
        return tv_tensors.Mask(torch.from_numpy(segments) == ids[:, None, None])

    def segment_file(self, image_id: int) -> Path:
        """The PNG of an image."""
        return self.segment_folder / self.coco.segment_files[image_id]

    def segments(self, image_id: int) -> np.ndarray:
        """(H, W) int64: the id of each pixel's segment.

        Raises:
            UserError: the PNG cannot be read, or its segments are not those of the annotations.
        """
        path = self.segment_file(image_id)
        with open_image(path) as image:
            image.load()
            digits = np.asarray(image.convert("RGB") if image.mode == "P" else image)
        if digits.ndim != 3 or digits.dtype != np.uint8:
            raise UserError(f"{path} has the mode {image.mode}, and segments are told by RGB: pass COCO's PNGs")
        ids = digits[..., :3].astype(np.int64) @ np.array([1, 256, 65536])
        drawn, listed = set(np.unique(ids).tolist()) - {VOID}, {a["segment"] for a in self.coco.imgToAnns[image_id]}
        for wrong, where, lacks in ((drawn - listed, path, self.annotation_file), (listed - drawn, self.annotation_file, path)):
            if wrong:
                advice = "pass the PNGs and the JSON of one dataset"
                raise UserError(f"{where} has the segment {min(wrong)}, which {lacks} lacks: {advice}")
        return ids


def digits_of(ids: np.ndarray) -> np.ndarray:
    """Ids of segments (H, W) -> the uint8 RGB (H, W, 3) of their PNG."""
    return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def read_panoptic(path: Path) -> COCO:
    """Reads a panoptic annotation file: its segments as annotations, ``segment`` being their id in the PNG, which the attribute
    ``segment_files`` names for every image.

    Raises:
        UserError: the file is missing, is not JSON, or is not a COCO panoptic dataset.
    """
    advice = "--coco_panoptic_path must hold annotations/ and panoptic_train2017/, panoptic_val2017/"
    content = conform(PANOPTIC, read_json(path, advice), path, "a COCO panoptic dataset")
    files = {entry["image_id"]: entry["file_name"] for entry in content["annotations"]}
    segments = [
        segment | {"id": i, "segment": segment["id"], "image_id": entry["image_id"]}
        for i, (entry, segment) in enumerate(((e, s) for e in content["annotations"] for s in e["segments_info"]), start=1)
    ]
    coco = indexed(content | {"annotations": segments}, path)
    if lacking := [image_id for image_id in coco.imgs if image_id not in files]:
        raise UserError(f"{path} lists the image {lacking[0]} without segments: remove it or add them")
    coco.segment_files = files
    return coco

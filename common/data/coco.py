"""Detection datasets in COCO's format."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert

from ..boundary.annotations import indexed, read_annotations
from ..errors import UserError
from .annotations import category_names, check_segmentations, masks_of
from .coco_names import number_classes
from .images import open_image, read_image
from .transforms import boxes_of

OPENED = 200  # images that are looked at before they are read


class CocoDetection(Dataset):
    """Images and boxes of one split.

    Args:
        image_folder: folder of the images.
        annotation_file: COCO's JSON.
        transforms: ``(image, target) -> (image (3, H, W), target)``.
        seed: the transforms of image i in epoch e draw from a generator seeded with (seed, e, i): what an image looks like depends
            neither on the number of workers or processes nor on where a run was interrupted.
        masks: objects have masks, too.
        content: of the annotation file, where it is known already or was made from files of another format.

    An item is asked for by its index, or by (epoch, index) as the samplers do; the index alone means epoch 0. It is
    ``(image (3, H, W) uint8, target)``; target holds ``boxes`` (n, 4) cxcywh in [0, 1], ``labels`` (n,) class numbers,
    ``image_id`` int, ``orig_size`` and ``size`` (2,), height and width in pixels before and after the transforms; with masks
    ``masks`` (n, H, W) bool. Crowds are left out.

    Attributes:
        coco: the annotations that are trained on.
        truth: those that average precision is measured on, the same.
        category_ids: the category id of each class number, at first by :func:`number_classes`.

    Raises:
        UserError: missing folder, annotation file or image; unreadable annotation file.
    """

    def __init__(
        self,
        image_folder: Path,
        annotation_file: Path,
        transforms: Callable,
        seed: int = 0,
        masks: bool = False,
        content: dict[str, Any] | None = None,
    ):
        if not image_folder.is_dir() or not any(image_folder.iterdir()):
            raise UserError(f"{image_folder} is missing or empty: it must hold the images of {annotation_file}")
        self.coco = self.truth = self._read(annotation_file) if content is None else indexed(content, annotation_file)
        self.number_classes(number_classes(category_names(self.coco)))
        self.ids = sorted(self.coco.imgs)
        self.image_folder = image_folder
        self.transforms = transforms
        self.seed = seed
        self.masks = masks
        self._check_files(annotation_file)
        if masks:
            self._check_masks(annotation_file)

    def number_classes(self, category_ids: Sequence[int]) -> None:
        """Gives classes the numbers of a model: ``category_ids`` has the id of each."""
        self.category_ids = category_ids
        self._numbers = {category_id: number for number, category_id in enumerate(category_ids)}

    def _read(self, annotation_file: Path) -> COCO:
        return read_annotations(annotation_file)

    def _check_masks(self, annotation_file: Path) -> None:
        check_segmentations(self.coco, annotation_file)

    def _masks(self, image_id: int, annotations: Sequence[dict[str, Any]], height: int, width: int) -> tv_tensors.Mask:
        return masks_of(annotations, height, width)

    def _check_files(self, annotation_file: Path) -> None:
        present = set(os.listdir(self.image_folder))
        for i in self.ids:
            name = self.coco.imgs[i]["file_name"]
            if name not in present and not (self.image_folder / name).is_file():
                raise UserError(f"{annotation_file} lists the image {name}, which is not in {self.image_folder}")

    def remarks(self) -> list[str]:
        """What is skipped or kept out of the ordinary, counted; empty when nothing is."""
        annotations = self.coco.dataset["annotations"]
        empty = sum(not self.coco.imgToAnns[i] for i in self.ids)
        crowds = sum(bool(a["iscrowd"]) for a in annotations)
        flat = sum(not self._has_area(a) for a in annotations)
        other = sum(self._is_of_another_size(i) for i in self.ids[:OPENED])
        counts = (
            (other, f"images of another size than their entries say (of the first {OPENED}), whose boxes may lie elsewhere"),
            (self.truth.repaired, "objects whose area COCO's evaluation would leave out, reckoned from their boxes"),
            (flat, "boxes without area inside their image, skipped"),
            (crowds, "crowd annotations, left out of training and kept for evaluation"),
            (empty, "images without annotations, kept as negatives"),
        )
        return [f"{n} {what}" for n, what in counts if n]

    def _is_of_another_size(self, image_id: int) -> bool:
        """Such as a picture that its EXIF data rotate, annotated upright, or one that was resized without its annotations."""
        width, height = (self.coco.imgs[image_id].get(side) for side in ("width", "height"))
        if not (width and height):
            return False
        try:
            with open_image(self.path(image_id)) as image:  # which reads no pixels
                return image.size != (width, height)
        except UserError:  # said when it is read
            return False

    def _has_area(self, annotation: dict[str, Any]) -> bool:
        image = self.coco.imgs[annotation["image_id"]]
        width, height = image.get("width", np.inf), image.get("height", np.inf)
        x, y, w, h = annotation["bbox"]
        return min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0)

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, image_id: int) -> Path:
        """The file of an image."""
        return self.image_folder / self.coco.imgs[image_id]["file_name"]

    def aspect_ratios(self) -> list[float]:
        """Width / height of every image: as its entry says, or its file where the entry does not."""
        return [self._aspect_ratio(i) for i in self.ids]

    def _aspect_ratio(self, image_id: int) -> float:
        width, height = (self.coco.imgs[image_id].get(side) for side in ("width", "height"))
        if not (width and height):
            with open_image(self.path(image_id)) as image:  # which reads no pixels
                width, height = image.size
        return width / height

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[torch.Tensor, dict[str, Any]]:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        image_id = self.ids[index]
        image = read_image(self.path(image_id))
        width, height = image.size
        annotations = [a for a in self.coco.imgToAnns[image_id] if not a["iscrowd"]]
        xywh = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        boxes = box_convert(xywh, "xywh", "xyxy")
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        labels = torch.tensor([self._numbers[a["category_id"]] for a in annotations], dtype=torch.long)
        target = {
            "boxes": boxes_of(boxes[kept], height, width),
            "labels": labels[kept],
            "image_id": image_id,
            "orig_size": torch.tensor([height, width]),
        }
        if self.masks:
            chosen = [a for a, keep in zip(annotations, kept.tolist()) if keep]
            target["masks"] = self._masks(image_id, chosen, height, width)
        with torch.random.fork_rng(devices=[]):
            # The host's generator alone: torch.manual_seed would seed those of the GPUs too, which dropout uses, and takes longer.
            torch.default_generator.manual_seed(int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0]))
            return self.transforms(image, target)

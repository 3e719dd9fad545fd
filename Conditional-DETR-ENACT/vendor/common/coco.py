"""Detection datasets in COCO's format, read with pycocotools and checked before any work starts."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch.utils.data import Dataset
from torchvision.ops import box_convert
from tqdm import tqdm

from .errors import UserError
from .transforms import boxes_of


def read_annotations(path: Path) -> COCO:
    """Reads an annotation file.

    Raises:
        UserError: the file is missing, is not JSON, or is not a COCO detection dataset.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: --coco_path must hold train2017/, val2017/ and annotations/")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress with print
            coco = COCO(str(path))
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not an annotation file in COCO's JSON format ({error!r})") from error
    try:
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


def category_names(coco: COCO) -> dict[int, str]:
    """Category id -> name."""
    return {category["id"]: str(category.get("name", category["id"])) for category in coco.dataset["categories"]}


class CocoDetection(Dataset):
    """Images and boxes of one split.

    Args:
        image_folder: folder of the images.
        annotation_file: COCO's JSON.
        transforms: ``(image, target) -> (tensor (3, H, W), target)``.
        seed: the transforms of image i in epoch e draw from a generator seeded with (seed, e, i): what an image looks like depends
            neither on the number of workers or processes nor on where a run was interrupted.

    Items are ``(tensor (3, H, W), target)``; target holds ``boxes`` (n, 4) cxcywh in [0, 1], ``labels`` (n,) category ids,
    ``image_id`` int, and ``orig_size`` (2,) height and width in pixels. Crowds are left out.

    Raises:
        UserError: missing folder, annotation file or image; unreadable annotation file.
    """

    def __init__(self, image_folder: Path, annotation_file: Path, transforms: Callable, seed: int = 0):
        if not image_folder.is_dir() or not any(os.scandir(image_folder)):
            raise UserError(f"{image_folder} is missing or empty: --coco_path must hold train2017/, val2017/ and annotations/")
        self.coco = read_annotations(annotation_file)
        self.ids = sorted(self.coco.imgs)
        self.image_folder = image_folder
        self.transforms = transforms
        self.seed = seed
        self.epoch = 0
        self.files: Files | None = None
        self._check_files(annotation_file)

    def _check_files(self, annotation_file: Path) -> None:
        present = {entry.name for entry in os.scandir(self.image_folder)}
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
        counts = (
            (flat, "boxes without area inside their image, skipped"),
            (crowds, "crowd annotations, left out of training and kept for evaluation"),
            (empty, "images without annotations, kept as negatives"),
        )
        return [f"{n} {what}" for n, what in counts if n]

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

    def keep_files(self, progress: bool = True) -> None:
        """Reads the files of all images into memory, where every later item comes from. Workers that start afterwards share them.

        Raises:
            UserError: they do not fit, or one cannot be read.
        """
        self.files = Files([self.path(i) for i in self.ids], self.image_folder, progress)

    def aspect_ratios(self) -> list[float]:
        """Width / height of every image: as its entry says, or its file where the entry does not."""
        return [self._aspect_ratio(i) for i in self.ids]

    def _aspect_ratio(self, image_id: int) -> float:
        width, height = (self.coco.imgs[image_id].get(side) for side in ("width", "height"))
        if not all(isinstance(side, (int, float)) and 0 < side < np.inf for side in (width, height)):
            with open_image(self.path(image_id)) as image:  # which reads no pixels
                width, height = image.size
        return width / height

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        image_id = self.ids[index]
        image = read_image(self.path(image_id), self.files and self.files[index])
        width, height = image.size
        annotations = [a for a in self.coco.imgToAnns[image_id] if not a["iscrowd"]]
        xywh = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        boxes = box_convert(xywh, "xywh", "xyxy")
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        labels = torch.tensor([a["category_id"] for a in annotations], dtype=torch.long)
        target = {
            "boxes": boxes_of(boxes[kept], height, width),
            "labels": labels[kept],
            "image_id": image_id,
            "orig_size": torch.tensor([height, width]),
        }
        with torch.random.fork_rng(devices=[]):
            # The host's generator alone: torch.manual_seed would seed those of the GPUs too, which dropout uses, and takes longer.
            torch.default_generator.manual_seed(int(np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)[0]))
            return self.transforms(image, target)


class Files:
    """What files hold, in one block of memory.

    One object for each of them would be copied into every worker in time: Python writes to an object that it only reads, to count
    its references.

    Args:
        paths: of the files.
        folder: their folder, for messages.
        progress: show a progress bar.

    Raises:
        UserError: they do not fit into the memory, or one cannot be read.
    """

    def __init__(self, paths: list[Path], folder: Path, progress: bool = True):
        sizes = [path.stat().st_size for path in paths]
        total, available = sum(sizes), psutil.virtual_memory().available
        if total > available:
            raise UserError(
                f"the images of {folder} take {total / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB of memory are free: "
                "leave out --cache_mode"
            )
        self.ends = np.cumsum(sizes)
        self.content = torch.empty(total, dtype=torch.uint8)
        block = memoryview(self.content.numpy())
        with tqdm(total=total, desc=f"reading {folder.name}", unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
            for path, end, size in zip(paths, self.ends.tolist(), sizes):
                try:
                    with open(path, "rb") as file:
                        file.readinto(block[end - size : end])
                except OSError as error:
                    raise UserError(f"{path} cannot be read ({error.strerror}): repair it or remove it from the dataset") from error
                bar.update(size)

    def __getitem__(self, index: int) -> bytes:
        start = self.ends[index - 1] if index else 0
        return self.content[start : self.ends[index]].numpy().tobytes()


@contextlib.contextmanager
def open_image(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """An image whose pixels are not read yet; ``content`` is what the file holds, if that is known.

    Raises:
        UserError: not an image, or, inside the context, a truncated one.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image ({error}): repair it or remove it from the dataset") from error


def read_image(path: Path, content: bytes | None = None) -> Image.Image:
    """An image as RGB, whatever its mode; its EXIF rotation is ignored, as COCO's annotations do.

    Args:
        path: of the file.
        content: what it holds, if that is known.

    Raises:
        UserError: not an image, or a truncated one.
    """
    with open_image(path, content) as image:
        if image.mode.startswith("I;16"):  # which Pillow would cut off at 255, leaving a white image
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")

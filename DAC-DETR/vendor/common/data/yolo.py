"""YOLO's datasets: a ``data.yaml``, images, and beside them a text file each.

    <root>/data.yaml                  path: .   train: images/train   val: images/val   names: [cat, dog]
    <root>/images/train/0001.jpg      or train/images/0001.jpg, as Roboflow has it
    <root>/labels/train/0001.txt      0 0.5 0.5 0.2 0.3: class, middle and size of a box, in parts of the image;
                                      or class and corners of an outline

``train`` and ``val`` are folders, text files that list images, or several of them. An image without a text file has no objects.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, with_config
from tqdm import tqdm
from typing_extensions import NotRequired, TypedDict

from ..boundary.schema import OPEN, conform
from ..errors import UserError, quoted
from .images import SUFFIXES, open_image

ADVICE = "it must hold the names of the classes and, as train and val, where the images are"
OUTSIDE = 0.01  # by which a coordinate may lie outside the image, by rounding
Paths = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value or [])]


def _listed(names: Any) -> Any:
    """Class number -> name, of a list, too; a name may look like a number or a truth value to YAML."""
    names = dict(enumerate(names)) if isinstance(names, list) else names
    return {number: str(name) for number, name in names.items()} if isinstance(names, dict) else names


@with_config(OPEN)
class Description(TypedDict):
    """What ``data.yaml`` holds."""

    names: Annotated[dict[Annotated[int, Field(ge=0, lt=2**31)], str], Field(min_length=1), BeforeValidator(_listed)]
    path: NotRequired[Annotated[str, BeforeValidator(lambda value: value or "")]]
    train: NotRequired[Paths]
    val: NotRequired[Paths]
    nc: NotRequired[int]


DESCRIPTION = TypeAdapter(Description)


def read_yolo(file: Path, split: str) -> dict[str, Any]:
    """The images, objects and categories of a split, "train" or "val", as COCO's JSON has them, file names being absolute; images
    are numbered from 1 in the order of their paths.

    Raises:
        UserError: ``data.yaml``, a folder or a text file is missing or wrong.
    """
    description = _read_description(file)
    images, annotations = [], []
    paths = sorted({image for given in description.get(split, ()) for image in _images(_find(given, file, description), file)})
    if not paths:
        raise UserError(f"{file} names no images as {split}: {ADVICE}")
    if not any(_labels_of(path).is_file() for path in paths):
        raise UserError(f"no image that {file} names as {split} has its text file, which would be {_labels_of(paths[0])}: add them")
    for image_id, path in enumerate(tqdm(paths, desc=f"{split} labels", unit="image", leave=False, delay=1), start=1):
        image: dict[str, Any] = {"id": image_id, "file_name": str(path)}
        rows = list(_rows(_labels_of(path), description["names"], "kpt_shape" in description))
        if rows:  # else nothing here needs the size
            with open_image(path) as opened:
                image["width"], image["height"] = opened.size
        images.append(image)
        for category, values in rows:
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category}
            annotations.append(entry | _shape(values, image["width"], image["height"]))
    categories = [{"id": number, "name": name} for number, name in sorted(description["names"].items())]
    return {"images": images, "annotations": annotations, "categories": categories}


def _read_description(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not YAML ({quoted(error)}): {ADVICE}") from error
    description = conform(DESCRIPTION, content, file, "a description of a YOLO dataset")
    if description.get("nc", len(description["names"])) != len(description["names"]):
        raise UserError(f"{file} says nc: {description['nc']} and names {len(description['names'])} classes: give as many names")
    return description


def _find(given: str, file: Path, description: dict[str, Any]) -> Path:
    """The folder or list that an entry means. ``path`` is often that of the machine that wrote the file, and Roboflow's entries
    begin with a ``../`` too many: what is not there is looked for beside the file.
    """
    root = file.parent / description.get("path", "")
    for path in (root / given, file.parent / given, file.parent / re.sub(r"^(\.\./)+", "", given)):
        if os.path.exists(path):  # False where a name is too long, too, unlike Path.exists
            return Path(os.path.abspath(path))  # and not what a link leads to, beside which no labels may be
    raise UserError(f"{file} names {quoted(given)}, which is neither in {root} nor in {file.parent}: mend the file's path")


def _images(path: Path, file: Path) -> Iterator[Path]:
    """Those below a folder, or those that a text file lists."""
    if path.is_dir():
        yield from (image for image in path.rglob("*") if image.suffix.lower() in SUFFIXES)
        return
    if path.suffix != ".txt":
        raise UserError(f"{file} names {path}, which is neither a folder nor a text file that lists images: mend it")
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            image = path.parent / line.strip()
            if not os.path.isfile(image):
                raise UserError(f"{path} lists in line {number} {quoted(line.strip())}, which is no file: mend or remove it")
            yield Path(os.path.abspath(image))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as text ({quoted(error)}): mend it or remove it") from error


def _labels_of(image: Path) -> Path:
    """The text file of an image: in its path, the last folder ``images`` becomes ``labels``."""
    *folders, name = image.with_suffix(".txt").parts
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return Path(*folders, name)


def _rows(path: Path, names: dict[int, str], keypoints: bool) -> Iterator[tuple[int, list[float]]]:
    """Class, and a box or an outline, of every line that is not blank; of a file with keypoints, the box before them."""
    for number, line in enumerate(_lines(path) if path.exists() else (), start=1):
        if not line.strip():
            continue
        try:
            category, *values = map(float, line.split())
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {quoted(line)} should be numbers: mend or remove the line") from error
        values = values[:4] if keypoints else values
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            what = "a class and the four numbers of a box, or at least three corners of an outline"
            raise UserError(f"{path}, line {number}: {len(values) + 1} numbers are not {what}: mend or remove the line")
        if category not in names:
            raise UserError(f"{path}, line {number}: the class {category:g} has no name in data.yaml: mend the line or the names")
        if not all(-OUTSIDE <= value <= 1 + OUTSIDE for value in values):
            wrong = next(value for value in values if not -OUTSIDE <= value <= 1 + OUTSIDE)
            raise UserError(f"{path}, line {number}: {wrong:g} is not in [0, 1]: give parts of the image's width and height")
        yield int(category), values


def _shape(values: list[float], width: int, height: int) -> dict[str, Any]:
    """``bbox`` xywh and ``area``, and of an outline its ``segmentation``, in pixels."""
    if len(values) == 4:
        x, y, w, h = values
        w, h = w * width, h * height
        return {"bbox": [x * width - w / 2, y * height - h / 2, w, h], "area": max(w, 0) * max(h, 0)}
    outline = np.reshape(values, (-1, 2)) * (width, height)
    corner, size = outline.min(0), np.ptp(outline, axis=0)
    area = cv2.contourArea(outline.astype(np.float32))
    return {"bbox": [*corner.tolist(), *size.tolist()], "area": area, "segmentation": [outline.ravel().tolist()]}

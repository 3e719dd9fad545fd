"""Annotation files in COCO's format, read with pycocotools and checked before any work starts."""

import contextlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pycocotools.coco import COCO
from pydantic import AfterValidator, Field, TypeAdapter, with_config
from typing_extensions import NotRequired, TypedDict

from ..errors import UserError, quoted
from .schema import OPEN, CategoryId, Real, Whole, conform

Coordinate = Annotated[float, Field(strict=True, ge=-1e9, le=1e9)]
LARGEST = 1e10  # square pixels, above which COCO's evaluation leaves an object out


def _file_name(name: str) -> str:
    if not name or "\0" in name or len(name.encode(errors="surrogatepass")) > 4096:
        raise ValueError("should be the name of a file")
    return name


FileName = Annotated[str, Field(strict=True), AfterValidator(_file_name)]


@with_config(OPEN)
class Image(TypedDict):
    """An image; width and height, where they are no sizes, are left out: what needs them measures the file."""

    id: Whole
    file_name: FileName


@with_config(OPEN)
class Category(TypedDict):
    """A category; ``isthing`` in panoptic files."""

    id: CategoryId
    isthing: NotRequired[Annotated[int, Field(ge=0, le=1)]]


@with_config(OPEN)
class Annotation(TypedDict):
    """An object; its area is reckoned from its box where it is missing."""

    id: Whole
    image_id: Whole
    category_id: Whole
    bbox: Annotated[list[Coordinate], Field(min_length=4, max_length=4)]
    iscrowd: NotRequired[Whole]
    area: NotRequired[Real]


@with_config(OPEN)
class Instances(TypedDict):
    """What an annotation file holds."""

    images: Annotated[list[Image], Field(min_length=1)]
    annotations: list[Annotation]
    categories: Annotated[list[Category], Field(min_length=1)]


INSTANCES = TypeAdapter(Instances)


def read_annotations(path: Path) -> COCO:
    """Reads an annotation file.

    Raises:
        UserError: the file is missing, is not JSON, or is not a COCO detection dataset.
    """
    return indexed(read_json(path, "it must list the images and their objects in COCO's format"), path)


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """What an annotation file holds; UserError where it is missing or is no JSON object."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: {advice}")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not an annotation file in COCO's JSON format ({quoted(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not an annotation file in COCO's JSON format: it holds a {type(content).__name__}")
    return content


def indexed(content: dict[str, Any], path: Path) -> COCO:
    """The content of an annotation file as pycocotools has it, its attribute ``repaired`` being the number of areas that COCO's
    evaluation would leave out, which are reckoned anew; UserError where it is not a COCO detection dataset.

    ``iscrowd`` and ``area``, which exports of other tools leave out and COCO's evaluation needs, are filled in.
    """
    coco = COCO()
    coco.dataset = conform(INSTANCES, content, path, "a COCO detection dataset")
    for part, name in (("images", "image"), ("annotations", "annotation"), ("categories", "category")):
        twice = [i for i, n in Counter(entry["id"] for entry in coco.dataset[part]).items() if n > 1]
        if twice:
            raise UserError(f"{path} is not a COCO detection dataset: it lists the {name} id {twice[0]} twice: remove one")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress with print
        coco.createIndex()
    coco.repaired = 0
    for annotation in coco.dataset["annotations"]:
        for name, known in (("image", coco.imgs), ("category", coco.cats)):
            if annotation[f"{name}_id"] not in known:
                what = f"annotation {annotation['id']} belongs to {name} {annotation[f'{name}_id']}, which is not listed"
                raise UserError(f"{path} is not a COCO detection dataset: {what}")
        annotation["iscrowd"] = int(bool(annotation.get("iscrowd", 0)))
        area = annotation.get("area")
        if area is None or not 0 <= area <= LARGEST:
            annotation["area"] = max(annotation["bbox"][2], 0) * max(annotation["bbox"][3], 0)
            coco.repaired += area is not None
    for image in coco.dataset["images"]:
        for side in ("width", "height"):
            if not (isinstance(image.get(side), (int, float)) and 0 < image[side] <= 1e9):
                image.pop(side, None)
    return coco

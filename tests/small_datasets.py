"""Annotation files of a few images of one size, in COCO's format."""

from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, HEIGHT = 40, 30


def content(annotations: tuple = (), images: int = 2) -> dict[str, Any]:
    """What an annotation file holds; each annotation is given by its box and what else differs from the usual."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(images, 0, -1)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 3, "bbox": bbox, "area": 1.0, "iscrowd": 0} | rest
            for i, (bbox, rest) in enumerate(annotations, start=1)
        ],
    }


def write_images(folder: Path, count: int) -> None:
    """The images of :func:`content`, told apart by a shade of red."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(1, count + 1):
        Image.new("RGB", (WIDTH, HEIGHT), (i, 0, 0)).save(folder / f"{i}.png")


def sentence(error: Exception) -> str:
    """The message of an error, which has to be one line without a traceback."""
    text = str(error)
    assert "\n" not in text and "Traceback" not in text and text == text.strip()
    return text

"""Annotation files of a few images of one size, in COCO's format."""

from typing import Any

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


def sentence(error: Exception) -> str:
    """The message of an error, which has to be one line without a traceback."""
    text = str(error)
    assert "\n" not in text and "Traceback" not in text and text == text.strip()
    return text

"""Image files, whatever their mode, as RGB."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def is_image(path: Path) -> bool:
    """Whether a file begins as an image does, of whatever name; it may be broken all the same."""
    try:
        with Image.open(path) as image:
            return image.format != "MPEG"  # which Pillow knows and cannot read
    except UnidentifiedImageError:
        return False
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True  # of which open_image tells why it cannot be read


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """An image whose pixels are not read yet.

    Raises:
        UserError: not an image, or, inside the context, a truncated one.
    """
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image ({error}): repair it or leave it out") from error


def read_image(path: Path) -> Image.Image:
    """An image as RGB, whatever its mode; its EXIF rotation is ignored, as COCO's annotations do.

    Raises:
        UserError: not an image, or a truncated one.
    """
    with open_image(path) as image:
        return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """The same in RGB, whatever its mode."""
    if image.mode.startswith("I;16"):  # which Pillow would cut off at 255, leaving a white image
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")

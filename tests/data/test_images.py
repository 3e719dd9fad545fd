"""Reading images: every kind becomes RGB, and every broken file is told."""

import numpy as np
import pytest
from PIL import Image

from common.data.images import read_image
from common.errors import UserError

WIDTH, HEIGHT = 40, 30


@pytest.mark.parametrize(
    "mode, suffix, colour",
    [
        ("RGB", "png", (204, 102, 51)),
        ("P", "png", (204, 102, 51)),
        ("RGBA", "png", (204, 102, 51)),
        ("CMYK", "jpg", (204, 102, 51)),
        ("L", "jpg", (90, 90, 90)),
        ("LA", "png", (90, 90, 90)),
        ("I;16", "png", (90, 90, 90)),
        ("I;16", "tiff", (90, 90, 90)),
        ("1", "png", (255, 255, 255)),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, suffix, colour):
    """Protects datasets that mix kinds of images: the colours stay, also those of 16 bits, which are not to be cut off at 255."""
    path = tmp_path / f"image.{suffix}"
    if mode == "I;16":
        Image.fromarray(np.full((HEIGHT, WIDTH), 257 * colour[0], np.uint16)).save(path)
    else:
        Image.new("RGB", (WIDTH, HEIGHT), colour).convert(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    image = read_image(path)
    assert image.mode == "RGB" and image.size == (WIDTH, HEIGHT)
    assert np.allclose(np.asarray(image), colour, rtol=0, atol=2)


def test_exif_rotation_is_ignored(tmp_path):
    """Protects the boxes, which COCO annotates on the pixels as they are stored."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    exif = image.getexif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees
    image.save(tmp_path / "image.jpg", exif=exif)
    assert read_image(tmp_path / "image.jpg").size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tiff", "gif"])
def test_whatever_a_broken_file_provokes_in_pillow_is_told(tmp_path, suffix, monkeypatch):
    """Protects against the many exceptions of the decoders: cut anywhere, of another kind, or too large to be meant."""
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for part in (b"", b"not an image", *(whole[: len(whole) * i // 10] for i in range(1, 10))):
        path.write_bytes(part)
        with pytest.raises(UserError, match=f"{path} is not a readable image"):
            read_image(path)
    path.write_bytes(whole)
    assert read_image(path).size == (WIDTH, HEIGHT)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=f"{path} is not a readable image"):
        read_image(path)

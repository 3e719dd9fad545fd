"""DETR's augmentation: its sizes, its interpolation, and boxes that stay on what they frame."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from common.data.transforms import (
    RandomSizeCrop,
    ResizeShortestSide,
    boxes_of,
    detr_size,
    evaluation_transforms,
    normalize,
    training_transforms,
)

SCALES = range(480, 801, 32)
SIDES = (1, 2, 3, 31, 240, 333, 427, 480, 500, 640, 799, 800, 801, 1333, 1334, 2000, 6001)
# ImageNet's, as every published checkpoint expects them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def sample(image, boxes=(), labels=()):
    boxes = boxes_of(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), image.height, image.width)
    return image, {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.long)}


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def published_size(width, height, size, longest):
    """DETR's rule in exact arithmetic: the longest side follows the shortest, rounded down; where it exceeds the bound, the
    shortest is what the bound leaves of it, rounded to the nearest whole number."""
    short, long = sorted((width, height))
    if longest and Fraction(size * long, short) > longest:
        size = round(Fraction(longest * short, long))
    other = size * long // short
    return (other, size) if width < height else (size, other)


@pytest.mark.parametrize("longest", [1333, None])
def test_sizes_are_detrs_to_the_pixel(longest):
    """Protects the comparison with published numbers; only where DETR's rule leaves no pixel is there one all the same."""
    for width, height, size in product(SIDES, SIDES, SCALES):
        expected = tuple(max(side, 1) for side in published_size(width, height, size, longest))
        assert detr_size(width, height, size, longest) == expected, (width, height, size)


@pytest.mark.parametrize("size", [24, 61, 150])
@pytest.mark.parametrize("width, height", [(97, 61), (61, 97), (61, 61)])
def test_resizing_is_pillows_bilinear_filter_bit_for_bit(width, height, size):
    """Protects the pixels that published models were trained on: antialiased, unlike a bilinear resize of tensors by default."""
    image = noise(width, height)
    h, w = published_size(width, height, size, None)
    expected = image.resize((w, h), Image.Resampling.BILINEAR)
    assert ResizeShortestSide([size])(image).tobytes() == expected.tobytes()


@pytest.mark.parametrize("width, height", [(40, 30), (30, 90)], ids=["shortest side", "longest side"])
def test_evaluation_resizes(width, height):
    """Protects evaluation: sizes 800 and 1333, the bytes of the image, boxes as centre and size, empty ones dropped with labels."""
    image = noise(width, height)
    boxes = [[0, 0, width, height], [5, 3, 5, 9], [5, 3, 15, 27]]
    tensor, target = evaluation_transforms()(*sample(image, boxes, [7, 8, 9]))
    h, w = published_size(width, height, 800, 1333)
    resized = torch.from_numpy(np.array(image.resize((w, h), Image.Resampling.BILINEAR))).permute(2, 0, 1)
    assert tensor.dtype == torch.uint8 and torch.equal(tensor, resized)
    expected = [[0.5, 0.5, 1, 1], [10 / width, 15 / height, 10 / width, 24 / height]]
    torch.testing.assert_close(target["boxes"], torch.tensor(expected))
    assert type(target["boxes"]) is torch.Tensor and target["labels"].tolist() == [7, 9]


def test_normalisation_is_torchvisions_and_padding_is_zero():
    """Protects published weights, whose features hang on ImageNet's constants; the bytes themselves are not touched."""
    images = torch.randint(256, (2, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 9, 7, dtype=torch.bool)
    mask[1, 5:] = mask[1, :, 4:] = True
    before = images.clone()
    normalised = normalize(images, mask)
    expected = TF.normalize(TF.to_dtype(images, torch.float32, scale=True), MEAN, STD)
    torch.testing.assert_close(normalised[0], expected[0])
    torch.testing.assert_close(normalised[1, :, :5, :4], expected[1, :, :5, :4])
    assert not normalised[1, :, 5:].any() and not normalised[1, :, :, 4:].any()
    assert torch.equal(images, before)


def test_training_draws_detrs_sizes():
    """Protects the recipe: every scale is drawn, about half of the images are cropped, and their sizes follow the same rule."""
    image = Image.new("RGB", (64, 48))
    whole = {published_size(64, 48, size, 1333): size for size in SCALES}
    transforms = training_transforms()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [tuple(transforms(*sample(image))[0].shape[1:]) for _ in range(70)]
    assert {whole[size] for size in drawn if size in whole} == set(SCALES)
    cropped = [size for size in drawn if size not in whole]
    assert 0.3 < len(cropped) / len(drawn) < 0.7
    # The shortest side is rounded: where the longest is bound, it is off by up to half the aspect ratio.
    assert all(min(size) in SCALES or abs(max(size) - 1333) <= 1 + 0.5 * max(size) / min(size) for size in cropped)


def test_crops_have_all_sides_and_places_and_no_others():
    """Protects the crop's bounds: both ends of the range and all four borders are reached, and small images are not padded."""
    image = Image.fromarray(np.arange(4 * 7, dtype=np.uint8).reshape(4, 7))
    crop, crops = RandomSizeCrop(3, 5), set()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(400):
            pixels = np.asarray(crop(image))
            top, left = divmod(int(pixels[0, 0]), 7)
            assert (pixels == np.asarray(image)[top:, left:][: pixels.shape[0], : pixels.shape[1]]).all()
            crops.add((top, left, *pixels.shape))
    assert crops == {
        (top, left, height, width)
        for height in (3, 4)
        for width in (3, 4, 5)
        for top in range(4 - height + 1)
        for left in range(7 - width + 1)
    }
    assert RandomSizeCrop(10, 20)(image).size == (7, 4)


def extent(pixels, colour):
    """xyxy of the pixels (3, H, W) that are nearer to a colour than to the grey around it; None where there are none."""
    distance = (pixels - torch.tensor(colour).view(3, 1, 1) / 255).norm(dim=0)
    rows, columns = torch.nonzero(distance < (pixels - 128 / 255).norm(dim=0), as_tuple=True)
    if not len(rows):
        return None
    return torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)).float()


def test_boxes_stay_on_what_they_frame():
    """Protects training from boxes that a flip, crop or resize leaves behind: they are compared with the pixels of each draw."""
    rectangles = {1: ([30, 40, 130, 120], (255, 0, 0)), 2: ([200, 90, 280, 190], (0, 0, 255))}
    image = Image.new("RGB", (300, 220), (128, 128, 128))
    for (left, top, right, bottom), colour in rectangles.values():
        image.paste(colour, (left, top, right, bottom))
    transforms = training_transforms(160)
    missing, centres = 0, set()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(150):
            tensor, target = transforms(*sample(image, [box for box, _ in rectangles.values()], list(rectangles)))
            _, height, width = tensor.shape
            pixels = tensor / 255
            boxes = dict(zip(target["labels"].tolist(), target["boxes"], strict=True))
            for label, (box, colour) in rectangles.items():
                found = extent(pixels, colour)
                if label not in boxes:
                    missing += 1
                    assert found is None
                    continue
                cx, cy, w, h = boxes[label].tolist()
                corners = torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
                assert w > 0 and h > 0 and corners.min() >= -1e-6 and corners.max() <= 1 + 1e-6
                corners *= torch.tensor([width, height, width, height])
                if found is None:  # a sliver at the border of a crop
                    assert min(corners[2] - corners[0], corners[3] - corners[1]) < 2
                else:
                    torch.testing.assert_close(corners, found, rtol=0, atol=2)
                if label == 1 and np.allclose([w, h], [(box[2] - box[0]) / 300, (box[3] - box[1]) / 220]):
                    centres.add(round(cx * 300))
    assert missing > 0 and centres == {80, 220}  # some were cropped away, and whole images come both ways round


@pytest.mark.parametrize("width, height", [(1, 1), (1, 400), (400, 1), (1, 9000)])
def test_the_smallest_images_work(width, height):
    """Protects a run from the one image of a dataset that is a pixel or a line."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for transforms in [evaluation_transforms(64)] + [training_transforms(64)] * 8:
            tensor, target = transforms(*sample(noise(width, height), [[0, 0, width, height]], [1]))
            assert min(tensor.shape[1:]) >= 1 and len(tensor) == 3
            torch.testing.assert_close(target["boxes"], torch.tensor([[0.5, 0.5, 1, 1]]))

"""DETR's image and box transforms, on PIL images and ``tv_tensors.BoundingBoxes``, built from torchvision's.

Images stay uint8 until they are on the device, where :func:`normalize` makes them what the models take.

A sample is ``(image, target)`` with ``target["boxes"]`` (n, 4) xyxy pixels, ``target["labels"]`` (n,), and perhaps
``target["masks"]`` (n, H, W).
All sizes follow from one number, the shortest side at evaluation: at 800 they are exactly DETR's.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def detr_size(width: int, height: int, size: int, max_size: int | None) -> tuple[int, int]:
    """Height and width after resizing the shortest side to ``size``, the longest at most ``max_size`` (DETR's exact rounding)."""
    short, long = min(width, height), max(width, height)
    if max_size is not None and long / short * size > max_size:
        size = round(max_size * short / long)
    if width < height:
        return max(int(size * height / width), 1), max(size, 1)
    return max(size, 1), max(int(size * width / height), 1)


class ResizeShortestSide(v2.Transform):
    """Resizes the shortest side to one of ``sizes``, drawn at random, the longest to at most ``max_size`` pixels."""

    def __init__(self, sizes: list[int], max_size: int | None = None):
        super().__init__()
        self.sizes = sizes
        self.max_size = max_size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = TF.get_size(flat_inputs[0])
        size = self.sizes[int(torch.randint(len(self.sizes), ()))] if len(self.sizes) > 1 else self.sizes[0]
        return {"size": list(detr_size(width, height, size, self.max_size))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(TF.resize, inpt, **params)


class RandomSizeCrop(v2.Transform):
    """Crops a rectangle whose sides are drawn uniformly from ``min_size`` to ``max_size`` pixels, at most the image's."""

    def __init__(self, min_size: int, max_size: int):
        super().__init__()
        self.min_size = min_size
        self.max_size = max_size

    def _draw(self, side: int) -> tuple[int, int]:
        """Length and start of the crop along a side of the image."""
        longest = min(side, self.max_size)
        length = int(torch.randint(min(self.min_size, longest), longest + 1, ()))
        return length, int(torch.randint(side - length + 1, ()))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = TF.get_size(flat_inputs[0])
        crop_width, left = self._draw(width)
        crop_height, top = self._draw(height)
        return {"top": top, "left": left, "height": crop_height, "width": crop_width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(TF.crop, inpt, **params)


class ToTensor(torch.nn.Module):
    """Image to uint8 (3, H, W); boxes to (cx, cy, w, h) in [0, 1]; empty boxes go, with their labels and masks.

    The pixels keep the order in which they were decoded, channels innermost, which the backbone wants too.
    """

    def forward(self, image: Image.Image, target: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        width, height = image.size
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        boxes = target["boxes"].as_subclass(torch.Tensor)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes = boxes[kept]
        boxes = box_convert(boxes, "xyxy", "cxcywh") / torch.tensor([width, height, width, height], dtype=torch.float32)
        found = {"boxes": boxes, "labels": target["labels"][kept], "size": torch.tensor([height, width])}
        if "masks" in target:
            found["masks"] = target["masks"].as_subclass(torch.Tensor)[kept]
        return tensor, target | found


def normalize(images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) uint8 -> float, normalised by ImageNet's mean and deviation; 0 where mask (B, H, W) is True: padding."""
    mean, std = (torch.tensor(x)[:, None, None].to(images.device, non_blocking=True) for x in (MEAN, STD))
    return images.float().div_(255).sub_(mean).div_(std).masked_fill_(mask[:, None], 0.0)


def training_transforms(image_size: int = 800) -> v2.Compose:
    """Flip; shortest side 480..800 step 32, longest 1333; with probability 1/2 a crop of 384..600 after resizing to 400/500/600."""
    scale = image_size / 800
    sizes = [round(s * scale) for s in range(480, 801, 32)]
    longest = round(1333 * scale)
    crop = v2.Compose(
        [
            ResizeShortestSide([round(s * scale) for s in (400, 500, 600)]),
            RandomSizeCrop(round(384 * scale), round(600 * scale)),
            ResizeShortestSide(sizes, longest),
        ]
    )
    resize = v2.RandomChoice([ResizeShortestSide(sizes, longest), crop])
    return v2.Compose([v2.RandomHorizontalFlip(), resize, ToTensor()])


def evaluation_transforms(image_size: int = 800) -> v2.Compose:
    """Shortest side 800, longest at most 1333."""
    return v2.Compose([ResizeShortestSide([image_size], round(1333 * image_size / 800)), ToTensor()])


def boxes_of(boxes: torch.Tensor, height: int, width: int) -> tv_tensors.BoundingBoxes:
    """(n, 4) xyxy pixels as boxes that follow their image through the transforms."""
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width), dtype=torch.float32)

"""What ``--predict --information`` shows: where the queries of both decoders gather, the argument of the paper.

Shapes: Q queries, H x W pixels of the finest level.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .model import DACDETR


@contextmanager
def record(model: DACDETR) -> Iterator[dict[str, Any]]:
    """While the context lasts, the model runs its C-decoder in evaluation, too; it finds the same."""
    model.gather = True
    try:
        yield {}
    finally:
        model.gather = False


def pictures(records: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Tensor]:
    """How many queries have the centres of their boxes where, of each decoder, in an image alone: caption -> (H, W).

    Roots of the numbers, which bring out single queries beside crowds.
    """
    decoders = {"Queries of the O-decoder": outputs} | ({"of the C-decoder": outputs["cross"]} if "cross" in outputs else {})
    size = outputs["feature_size"]
    return {caption: _count(found["pred_boxes"][-1, 0, :, :2], size).sqrt() for caption, found in decoders.items()}


def _count(centres: Tensor, size: tuple[int, int]) -> Tensor:
    """centres (Q, 2) x, y in [0, 1] -> how many lie in each cell of a grid (H, W)."""
    height, width = size
    scale = torch.tensor([width, height], device=centres.device)
    x, y = torch.minimum((centres * scale).long(), scale - 1).clamp(min=0).unbind(-1)
    return torch.bincount(y * width + x, minlength=height * width).view(size).float()

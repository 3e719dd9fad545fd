"""From the masks of queries to masks of the original images.

Shapes: B images, Q queries, K of them, H x W pixels of the padded batch.
"""

from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torch.nn import functional as F

from ..models.mask_head import QueryMasks

CHUNK = 20  # queries whose masks exist at once as numbers


def image_masks(
    masks: QueryMasks, image: int, queries: Tensor, padded: tuple[int, int], size: tuple[int, int], orig_size: tuple[int, int]
) -> Tensor:
    """The masks of some queries of an image (DETR): enlarged bilinearly to the padded batch, cut off at probability 0.5, cropped to
    the image, and brought to its original size by nearest neighbours.

    Args:
        masks: of the batch.
        image: its index.
        queries: (K,).
        padded: H, W.
        size, orig_size: height and width of the image as the model sees it, and originally.

    Returns:
        (K, h, w) bool, of the original size.
    """
    parts = [torch.zeros(0, *orig_size, dtype=torch.bool, device=queries.device)]
    for query in queries.split(CHUNK):
        logits = masks(torch.full_like(query, image), query)[:, None].float()
        inside = F.interpolate(logits, padded, mode="bilinear")[:, :, : size[0], : size[1]] > 0
        parts.append(F.interpolate(inside.to(torch.uint8), orig_size)[:, 0].bool())
    return torch.cat(parts)


def run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """masks (K, h, w) bool -> COCO's run lengths."""
    flat = np.asfortranarray(masks.to(torch.uint8).permute(1, 2, 0).cpu().numpy())
    return [{"size": r["size"], "counts": r["counts"].decode()} for r in rle.encode(flat)]

"""From the masks of queries to masks of the original images.

Shapes: B images, Q queries, K of them, H x W pixels of the padded batch.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torch.nn import functional as F

from ..data.loading import Batch
from ..models.mask_head import QueryMasks

# Height and width of each image as the model sees it, and originally.
Sizes: TypeAlias = list[tuple[tuple[int, int], tuple[int, int]]]
CHUNK = 20  # queries whose masks exist at once as numbers


def image_masks(
    masks: QueryMasks,
    image: int,
    queries: Tensor,
    padded: tuple[int, int],
    size: tuple[int, int],
    orig_size: tuple[int, int],
    chunk: int = CHUNK,
) -> Tensor:
    """The masks of some queries of an image (DETR): enlarged bilinearly to the padded batch, cut off at probability 0.5, cropped to
    the image, and brought to its original size by nearest neighbours.

    Args:
        masks: of the batch.
        image: its index.
        queries: (K,).
        padded: H, W.
        size, orig_size: height and width of the image as the model sees it, and originally.
        chunk: how many are computed at once.

    Returns:
        (K, h, w) bool, of the original size.
    """
    parts = [torch.zeros(0, *orig_size, dtype=torch.bool, device=queries.device)]
    for logits in enlarged(masks, image, queries, padded, size, chunk):
        parts.append(F.interpolate((logits > 0).to(torch.uint8)[:, None], orig_size)[:, 0].bool())
    return torch.cat(parts)


def enlarged(
    masks: QueryMasks, image: int, queries: Tensor, padded: tuple[int, int], size: tuple[int, int], chunk: int = CHUNK
) -> Iterator[Tensor]:
    """The logits of the same as the model sees the image, (k, height, width), a part of the queries after the other."""
    for query in queries.split(chunk):
        logits = masks(torch.full_like(query, image), query)[:, None].float()
        yield F.interpolate(logits, padded, mode="bilinear")[:, 0, : size[0], : size[1]]


def sizes_of(batch: Batch) -> Sizes:
    """Height and width of each image as the model sees it, and originally; one device synchronisation."""
    sizes = torch.stack([torch.cat((t["size"], t["orig_size"])) for t in batch.targets]).tolist()
    return [((height, width), (orig_height, orig_width)) for height, width, orig_height, orig_width in sizes]


def run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """masks (K, h, w) bool -> COCO's run lengths."""
    flat = np.asfortranarray(masks.to(torch.uint8).permute(1, 2, 0).cpu().numpy())
    return [{"size": r["size"], "counts": r["counts"].decode()} for r in rle.encode(flat)]

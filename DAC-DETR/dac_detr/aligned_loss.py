"""The IoU-aware classification loss, IA-BCE (Cai et al., 2023; "ice" in the names of the published models).

Shapes: L decoder layers, B images, Q queries, C classes, K pairs of all layers, T objects of the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou

from common.losses.matching import Matching

CLASS_SHARE = 0.25  # exponent of the probability; that of the IoU is the rest
LEAST_QUALITY = 0.01
RANK_SCALE = 1.5


@torch.no_grad()
def qualities(logits: Tensor, boxes: Tensor, matching: Matching, targets: list[dict]) -> Tensor:
    """How good the predictions of the pairs are, in class and place: p^0.25 IoU^0.75, at least 0.01; (K,)."""
    labels, target_boxes = (torch.cat([t[name] for t in targets])[matching.target] for name in ("labels", "boxes"))
    place = (matching.layer, matching.image, matching.query)
    probability = logits[(*place, labels)].float().sigmoid()
    corners, target_corners = (box_convert(x.float(), "cxcywh", "xyxy")[:, None] for x in (boxes[place], target_boxes))
    iou = torch.vmap(box_iou)(corners, target_corners).flatten()
    return (probability**CLASS_SHARE * iou ** (1 - CLASS_SHARE)).clamp(min=LEAST_QUALITY)


@torch.no_grad()
def rank_weights(quality: Tensor, matching: Matching) -> Tensor:
    """exp(-rank / 1.5) of the pairs (K,), the best of each object in each layer having rank 0. No synchronisation."""
    order = quality.argsort(descending=True, stable=True)
    group = matching.layer * (1 + matching.target.amax() if len(quality) else 1) + matching.target
    order = order[group[order].argsort(stable=True)]
    ordered = group[order]
    place = torch.arange(len(order), device=order.device)
    rank = torch.empty_like(place).scatter_(0, order, place - torch.searchsorted(ordered, ordered))
    return (-rank.float() / RANK_SCALE).exp()


@dataclass(frozen=True)
class AlignedLoss:
    """Binary cross-entropy whose targets say how good a pair's prediction is, and that takes sure mistakes for the worst.

    Attributes:
        targets: (K,) in [0, 1] of the pairs.

    Of several pairs at one entry, query and class alike, that of the last object counts.
    """

    targets: Tensor

    def __call__(self, logits: Tensor, matching: Matching, labels: Tensor) -> Tensor:
        """logits (L, B, Q, C), labels (K,) of the pairs -> (L,), summed over queries and classes."""
        entry = (matching.layer, matching.image, matching.query, labels)
        flat = _flat_index(entry, logits.shape)
        last = torch.zeros(logits.numel(), dtype=torch.long, device=logits.device)
        last = last.scatter_reduce(0, flat, matching.target + 1, "amax")
        counts = (last[flat] == matching.target + 1).to(logits.dtype)
        x = logits[entry]
        pairs = counts * (self.targets * F.softplus(-x) + (1 - self.targets) * F.softplus(x))
        others = (logits.sigmoid() ** 2 * F.softplus(logits)).masked_fill(last.view_as(logits) > 0, 0.0)
        return others.flatten(1).sum(1).index_add(0, matching.layer, pairs)


def _flat_index(index: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
    flat = torch.zeros_like(index[0])
    for part, size in zip(index, shape, strict=True):
        flat = flat * size + part
    return flat

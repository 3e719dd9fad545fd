"""Bipartite matching of predictions and objects (DETR, eq. 1), all decoder layers and images at once.

Shapes: L decoder layers, B images, Q queries, C classes, T objects of the batch, K matched pairs of all layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

ALPHA, GAMMA = 0.25, 2.0  # of the focal cost, as published whatever the loss has
FORBIDDEN = 1e6  # cost of a pair that must not be; more than any other


class Matching(NamedTuple):
    """The K matched pairs, as index tensors (K,).

    Attributes:
        layer, image, query: where the prediction is.
        target: index of the object among the concatenated objects of the batch.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor


class PredictedSet(NamedTuple):
    """Predictions that compete for the same objects.

    Attributes:
        logits: (L, B, Q, C), boxes: (L, B, Q, 4) cxcywh in [0, 1].
        targets: per image ``labels`` (n,) and ``boxes`` (n, 4).
        allowed: (B, Q) bool, predictions that may be matched; None for all.
    """

    logits: Tensor
    boxes: Tensor
    targets: list[dict]
    allowed: Tensor | None = None

    @classmethod
    def of(cls, outputs: dict[str, Tensor], targets: list[dict], allowed: Tensor | None = None) -> "PredictedSet":
        """The predictions ``pred_logits`` and ``pred_boxes`` of a model, in float32."""
        return cls(outputs["pred_logits"].float(), outputs["pred_boxes"].float(), targets, allowed)


@dataclass(frozen=True)
class HungarianMatcher:
    """The assignment of least cost, ``class + bbox * L1 - giou * GIoU``.

    Args:
        cost_class, cost_bbox, cost_giou: weights of the three terms.
        focal: the class term is the focal loss' difference between a positive and a negative (sigmoid detectors) instead of minus
            the probability (softmax detectors).
    """

    cost_class: float
    cost_bbox: float
    cost_giou: float
    focal: bool

    @torch.no_grad()
    def match(self, sets: Sequence[PredictedSet]) -> list[Matching]:
        """Matches every layer of every set on its own.

        The costs leave the device in one transfer, whatever the number of sets and layers.
        """
        costs = fetch([self.costs(s) for s in sets])
        return [self.assign(cost, s.targets, s.logits.device) for cost, s in zip(costs, sets, strict=True)]

    @torch.no_grad()
    def costs(self, s: PredictedSet) -> Tensor:
        """Of every pair, (L, Q, T), the objects image after image."""
        costs = [self._cost(s.logits[:, i], s.boxes[:, i], t["labels"], t["boxes"]) for i, t in enumerate(s.targets)]
        if s.allowed is not None:
            costs = [cost.masked_fill(~s.allowed[i, :, None], FORBIDDEN) for i, cost in enumerate(costs)]
        return torch.cat(costs, dim=-1)

    @staticmethod
    def assign(cost: np.ndarray, targets: list[dict], device: torch.device) -> Matching:
        """cost (L, Q, T) on the host -> the pairs of least cost, of each layer and image."""

        def least_cost(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            query, target = linear_sum_assignment(costs)
            found = costs[query, target] < FORBIDDEN / 2  # else there were too few predictions
            return query[found], target[found]

        # A diverged model has no best assignment; any will do, since the loop stops at its loss.
        return pair(np.nan_to_num(cost, nan=0.0, posinf=0.0, neginf=0.0), targets, device, least_cost)

    def _cost(self, logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
        """One image: logits (L, Q, C), boxes (L, Q, 4), its n objects -> (L, Q, n)."""
        layers, queries, _ = logits.shape
        boxes = boxes.flatten(0, 1)
        if self.focal:
            p = logits[..., labels].sigmoid()
            positive = ALPHA * (1 - p) ** GAMMA * -(p + 1e-8).log()
            negative = (1 - ALPHA) * p**GAMMA * -(1 - p + 1e-8).log()
            cost_class = positive - negative
        else:
            cost_class = -logits.softmax(-1)[..., labels]
        cost_bbox = torch.cdist(boxes, target_boxes, p=1)
        corners, target_corners = box_convert(boxes, "cxcywh", "xyxy"), box_convert(target_boxes, "cxcywh", "xyxy")
        cost_giou = -generalized_box_iou(corners, target_corners)
        geometry = self.cost_bbox * cost_bbox + self.cost_giou * cost_giou
        return self.cost_class * cost_class + geometry.view(layers, queries, -1)


def pair(
    numbers: np.ndarray,
    targets: list[dict],
    device: torch.device,
    choose: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> Matching:
    """The pairs of every image and layer.

    Args:
        numbers: (L, Q, T) of every pair, on the host, the objects image after image.
        targets: per image ``labels`` (n,).
        device: for the result.
        choose: of one layer and image, numbers (Q, n) -> queries and objects of its pairs, (k,) each.
    """
    pairs, start = [], 0
    for image, size in enumerate(len(t["labels"]) for t in targets):
        for layer, own in enumerate(numbers[:, :, start : start + size]):
            query, target = choose(own)
            pairs.append(np.stack((np.full_like(query, layer), np.full_like(query, image), query, target + start)))
        start += size
    index = torch.from_numpy(np.concatenate(pairs, axis=1).astype(np.int64))
    return Matching(*index.to(device, non_blocking=True))


def fetch(numbers: Sequence[Tensor]) -> list[np.ndarray]:
    """Tensors of one device on the host, in one transfer."""
    flat = torch.cat([x.detach().flatten() for x in numbers]).cpu().numpy()
    parts = np.split(flat, np.cumsum([x.numel() for x in numbers])[:-1])
    return [part.reshape(x.shape) for part, x in zip(parts, numbers, strict=True)]

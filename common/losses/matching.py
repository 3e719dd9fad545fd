"""Bipartite matching of predictions and objects (DETR, eq. 1), all decoder layers and images at once.

Shapes: L decoder layers, B images, Q queries, C classes, T objects of the batch, K matched pairs of all layers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou


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


@dataclass(frozen=True)
class HungarianMatcher:
    """The assignment of least cost, ``class + bbox * L1 - giou * GIoU``.

    Args:
        cost_class, cost_bbox, cost_giou: weights of the three terms.
        focal: the class term is the focal loss' difference between a positive and a negative (sigmoid detectors) instead of minus
            the probability (softmax detectors).
        alpha, gamma: of the focal loss.
    """

    cost_class: float
    cost_bbox: float
    cost_giou: float
    focal: bool
    alpha: float = 0.25
    gamma: float = 2.0

    @torch.no_grad()
    def __call__(self, pred_logits: Tensor, pred_boxes: Tensor, targets: list[dict]) -> Matching:
        """pred_logits (L, B, Q, C), pred_boxes (L, B, Q, 4) cxcywh; targets with ``labels`` (n,) and ``boxes`` (n, 4).

        The costs leave the device in one transfer, whatever the number of layers.
        """
        sizes = [len(t["labels"]) for t in targets]
        costs = [self._cost(pred_logits[:, i], pred_boxes[:, i], t["labels"], t["boxes"]) for i, t in enumerate(targets)]
        cost = torch.cat(costs, dim=-1).cpu().numpy()
        # A diverged model has no best assignment; any will do, since the loop stops at its loss.
        cost = np.nan_to_num(cost, nan=0.0, posinf=0.0, neginf=0.0)
        pairs, start = [], 0
        for image, size in enumerate(sizes):
            for layer in range(len(cost)):
                query, target = linear_sum_assignment(cost[layer, :, start : start + size])
                pairs.append(np.stack((np.full_like(query, layer), np.full_like(query, image), query, target + start)))
            start += size
        index = torch.from_numpy(np.concatenate(pairs, axis=1).astype(np.int64))
        return Matching(*index.to(pred_logits.device, non_blocking=True))

    def _cost(self, logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
        """One image: logits (L, Q, C), boxes (L, Q, 4), its n objects -> (L, Q, n)."""
        layers, queries, _ = logits.shape
        logits, boxes = logits.float(), boxes.float().flatten(0, 1)
        if self.focal:
            p = logits[..., labels].sigmoid()
            positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
            negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
            cost_class = positive - negative
        else:
            cost_class = -logits.softmax(-1)[..., labels]
        cost_bbox = torch.cdist(boxes, target_boxes, p=1)
        corners, target_corners = box_convert(boxes, "cxcywh", "xyxy"), box_convert(target_boxes, "cxcywh", "xyxy")
        cost_giou = -generalized_box_iou(corners, target_corners)
        geometry = self.cost_bbox * cost_bbox + self.cost_giou * cost_giou
        return self.cost_class * cost_class + geometry.view(layers, queries, -1)

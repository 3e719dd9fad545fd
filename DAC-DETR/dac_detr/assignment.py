"""One-to-many assignment of the C-decoder's queries (Hu et al., NeurIPS 2023, section 3.3).

Shapes: L decoder layers, B images, Q queries, C classes, n objects of an image, T of the batch.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

IOU_SHARE = 0.7  # of a score, the rest is the probability of the object's class
LEAST_SCORE = 0.4  # of a candidate
MOST_CANDIDATES = 75
MOST_QUERIES = 6  # of an object


@torch.no_grad()
def assignment_scores(logits: Tensor, boxes: Tensor, targets: list[dict[str, Any]]) -> Tensor:
    """How well queries fit objects: (L, Q, T), the objects image after image.

    Args:
        logits: (L, B, Q, C) of the C-decoder.
        boxes: (L, B, Q, 4) cxcywh in [0, 1] of the O-decoder, as published.
        targets: per image ``labels`` (n,) and ``boxes`` (n, 4).
    """
    scores = []
    for image, target in enumerate(targets):
        corners = box_convert(boxes[:, image].float().flatten(0, 1), "cxcywh", "xyxy")
        iou = box_iou(corners, box_convert(target["boxes"], "cxcywh", "xyxy")).view(*boxes.shape[0:3:2], -1)
        probability = logits[:, image].float().sigmoid()[..., target["labels"]]
        scores.append(IOU_SHARE * iou + (1 - IOU_SHARE) * probability)
    return torch.cat(scores, dim=-1)


def assign_image(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scores (Q, n) of one layer and image -> queries and objects of its pairs, (K,) each.

    A query is a candidate of its best object if it scores enough there, or if some object has no better query. An object gets
    as many queries as it has candidates, but at most six: those with the highest scores of all, which others may get, too.
    Of more than 75 candidates, some are dropped by torch's generator.
    """
    scores = np.nan_to_num(scores)
    queries, objects = scores.shape
    if not objects:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    owner = scores.argmax(1)
    candidate = scores.max(1) >= np.float32(LEAST_SCORE)
    candidate[scores.argmax(0)] = True
    found = np.flatnonzero(candidate)
    if len(found) > MOST_CANDIDATES:
        found = found[torch.randperm(len(found))[:MOST_CANDIDATES].numpy()]
    counts = np.bincount(owner[found], minlength=objects).clip(max=MOST_QUERIES)
    best = np.argsort(-scores, axis=0, kind="stable")
    chosen = [best[:count, index] for index, count in enumerate(counts)]
    return np.concatenate(chosen), np.repeat(np.arange(objects), counts)

"""From a model's outputs to boxes in pixels of the original images.

Shapes: L decoder layers, B images, Q queries, C classes, k detections.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

# Outputs of a model, and original sizes (B, 2), height and width -> per image what :func:`softmax_detections` returns.
PostProcess = Callable[[dict[str, Any], Tensor], list[dict[str, Tensor]]]


def softmax_detections(outputs: dict[str, Any], orig_sizes: Tensor) -> list[dict[str, Tensor]]:
    """One detection per query: its best class that is not "no object", the last one (DETR).

    Args:
        outputs: ``pred_logits`` (L, B, Q, C + 1), ``pred_boxes`` (L, B, Q, 4) cxcywh in [0, 1]; the last layer counts.
        orig_sizes: (B, 2) height and width of the original images in pixels.

    Returns:
        Per image ``scores`` (Q,), ``labels`` (Q,), ``boxes`` (Q, 4) xyxy in pixels.
    """
    scores, labels = outputs["pred_logits"][-1].float().softmax(-1)[..., :-1].max(-1)
    return _detections(scores, labels, outputs["pred_boxes"][-1].float(), orig_sizes)


def sigmoid_detections(outputs: dict[str, Any], orig_sizes: Tensor, k: int = 100) -> list[dict[str, Tensor]]:
    """The best k of all (query, class) pairs of the sigmoid detectors; otherwise as :func:`softmax_detections`."""
    probabilities = outputs["pred_logits"][-1].float().sigmoid()
    num_classes = probabilities.shape[-1]
    scores, index = probabilities.flatten(1).topk(min(k, probabilities[0].numel()), dim=1)
    query = index.div(num_classes, rounding_mode="floor")
    boxes = outputs["pred_boxes"][-1].float().gather(1, query[..., None].expand(-1, -1, 4))
    return _detections(scores, index % num_classes, boxes, orig_sizes)


def _detections(scores: Tensor, labels: Tensor, boxes: Tensor, orig_sizes: Tensor) -> list[dict[str, Tensor]]:
    height, width = orig_sizes.to(boxes).unbind(1)
    scale = torch.stack((width, height, width, height), dim=1)
    boxes = box_convert(boxes, "cxcywh", "xyxy") * scale[:, None]
    return [{"scores": s, "labels": label, "boxes": b} for s, label, b in zip(scores, labels, boxes, strict=True)]

"""From a model's outputs to boxes, by class-wise non-maximum suppression, as the published numbers are.

Shapes: B images, Q queries, C classes.
"""

from typing import Any

from torch import Tensor
from torchvision.ops import batched_nms

from common.evaluation.postprocess import sigmoid_detections

CANDIDATES = 10000
MOST_IOU = 0.8
MOST_DETECTIONS = 300


def suppressed_detections(outputs: dict[str, Any], orig_sizes: Tensor) -> list[dict[str, Tensor]]:
    """The best 300 of the best 10000 (query, class) pairs, without those that overlap a better one of their class by more than 0.8.

    Arguments and result as of :func:`common.evaluation.postprocess.sigmoid_detections`.
    """
    detections = []
    for found in sigmoid_detections(outputs, orig_sizes, k=CANDIDATES):
        kept = batched_nms(found["boxes"], found["scores"], found["labels"], MOST_IOU)[:MOST_DETECTIONS]
        detections.append({name: values[kept] for name, values in found.items()})
    return detections

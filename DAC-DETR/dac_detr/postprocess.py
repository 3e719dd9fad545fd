"""Class-wise non-maximum suppression, with which the published numbers are.

Shapes: k detections.
"""

from torch import Tensor
from torchvision.ops import batched_nms

CANDIDATES = 10000
MOST_IOU = 0.8
MOST_DETECTIONS = 300


def unsuppressed(found: dict[str, Tensor]) -> Tensor:
    """The best 300 of an image's detections that do not overlap a better one of their class by more than 0.8.

    Args:
        found: ``boxes`` (k, 4) xyxy, ``scores`` (k,), ``labels`` (k,).

    Returns:
        Their indices, (300,) or fewer, the best first.
    """
    return batched_nms(found["boxes"], found["scores"], found["labels"], MOST_IOU)[:MOST_DETECTIONS]

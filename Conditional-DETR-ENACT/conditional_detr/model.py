"""Conditional DETR (Meng et al., ICCV 2021) with ENACT in its encoder.

Shapes: L decoder layers, B images, H x W pixels of the feature map, N = H * W, Q queries, C classes, d features.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.models.layers import init_sigmoid_heads
from common.models.single_scale import SingleScaleDetector


class ConditionalDETR(SingleScaleDetector):
    """Detects the objects of an image as a set of boxes around learned reference points.

    The parts are those of :class:`SingleScaleDetector`.
    """

    def __init__(self, **parts: Any):
        super().__init__(**parts)
        init_sigmoid_heads(self.class_embed, self.bbox_embed)

    def detect(self, src: Tensor, mask: Tensor) -> dict[str, Any]:
        """See :class:`SingleScaleDetector`."""
        tokens, feature_size = src.flatten(2).transpose(1, 2), tuple(src.shape[-2:])
        hs, reference = self.transformer(tokens, mask.flatten(1), self.query_embed.weight, self.positions(mask), feature_size)
        return self.predictions(hs, src, anchor=F.pad(torch.logit(reference, eps=1e-5), (0, 2)))

"""DETR (Carion et al., ECCV 2020) with ENACT in its encoder.

Shapes: L decoder layers, B images, H x W pixels of the feature map, N = H * W, Q queries, C classes, d features.
"""

from typing import Any

from torch import Tensor

from common.models.single_scale import SingleScaleDetector


class DETR(SingleScaleDetector):
    """Detects the objects of an image as a set. ``pred_logits`` are (L, B, Q, C + 1); the last class is "no object"."""

    def detect(self, src: Tensor, mask: Tensor) -> dict[str, Any]:
        """See :class:`SingleScaleDetector`."""
        tokens, feature_size = src.flatten(2).transpose(1, 2), tuple(src.shape[-2:])
        hs, memory = self.transformer(tokens, mask.flatten(1), self.query_embed.weight, self.positions(mask), feature_size)
        outputs = self.predictions(hs, src)
        return outputs | {"hs": hs[-1], "memory": memory} if self.for_masks else outputs

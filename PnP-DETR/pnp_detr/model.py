"""PnP-DETR (Wang et al., ICCV 2021), with or without ENACT in its encoder.

Shapes: L decoder layers, B images, H x W pixels of the feature map, N = H * W, S polled pixels, Q queries, C classes, d features.
"""

from typing import Any

import numpy as np
from torch import Tensor

from common.models.single_scale import SingleScaleDetector


class PnPDETR(SingleScaleDetector):
    """Detects in a sample of the feature map. ``pred_logits`` are (L, B, Q, C + 1); the last class is "no object".

    Args:
        sample_topk_ratio: share of an image's pixels that is polled in evaluation, in (0, 1).
        sample_ratio_bounds: in training each step draws it anew, uniformly between these.
        parts: see :class:`SingleScaleDetector`.
    """

    def __init__(self, sample_topk_ratio: float, sample_ratio_bounds: tuple[float, float], **parts: Any):
        super().__init__(**parts)
        self.sample_topk_ratio = sample_topk_ratio
        self.sample_ratio_bounds = sample_ratio_bounds
        self.step_ratio = sample_topk_ratio

    def set_step(self, seed: int, step: int) -> None:
        """See :class:`DetectionModel`. Draws the ratio of the step."""
        self.step_ratio = float(np.random.default_rng((seed, step)).uniform(*self.sample_ratio_bounds))

    def detect(self, src: Tensor, mask: Tensor) -> dict[str, Any]:
        """See :class:`SingleScaleDetector`; beside that, with a sampler, ``scores`` (B, N) in (0, 1) of the pixels, ``tokens`` and
        ``kept`` (B, S) of the polled ones, and in training ``mean_scores`` (B,) of these."""
        ratio = self.step_ratio if self.training else self.sample_topk_ratio
        hs, memory, sampled = self.transformer(src, mask.flatten(1), self.query_embed.weight, self.positions(mask), ratio)
        outputs = self.predictions(hs, src)
        if sampled:
            outputs |= {"scores": sampled.scores, "tokens": sampled.tokens, "kept": sampled.kept}
            if self.training:
                outputs["mean_scores"] = sampled.mean_scores()
        if self.for_masks:
            outputs |= {"hs": hs[-1], "memory": sampled.unpool(memory) if sampled else memory}
        return outputs

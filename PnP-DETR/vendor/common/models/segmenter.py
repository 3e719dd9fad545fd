"""A detector with a mask head: instance and panoptic segmentation (DETR, section 4.4).

Shapes: B images, H x W pixels of the feature map, Q queries, d features.
"""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .layers import full_precision
from .mask_head import AttentionMaps, MaskHead, QueryMasks
from .model import DetectionModel
from .single_scale import SingleScaleDetector


class Segmenter(DetectionModel):
    """Detects, and has a mask for each query.

    Args:
        detr: the detector; its backbone returns all stages up to the one that is detected in.
        nhead: heads of the attention that the masks start from.
        attention_gain: see :class:`MaskHead`.
        frozen: train the mask head alone.
    """

    def __init__(self, detr: SingleScaleDetector, nhead: int, attention_gain: float = 1.0, frozen: bool = False):
        super().__init__()
        d_model = detr.transformer.d_model
        detr.for_masks = True
        self.detr = detr.requires_grad_(False) if frozen else detr  # the names of the published weights
        self.bbox_attention = AttentionMaps(d_model, nhead)
        self.mask_head = MaskHead(d_model, nhead, detr.backbone[0].num_channels[-2::-1], attention_gain)

    @property
    def detector(self) -> nn.Module:
        return self.detr

    def set_step(self, seed: int, step: int) -> None:
        """See :class:`DetectionModel`."""
        self.detr.set_step(seed, step)

    def forward(self, images: Tensor, mask: Tensor, targets: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """See :class:`DetectionModel`; beside that as :meth:`segment`."""
        *finer, (last, mask) = self.detr.backbone[0](images, mask)
        return self.segment(self.detr.input_proj(last), mask, [feature for feature, _ in reversed(finer)])

    def segment(self, src: Tensor, mask: Tensor, features: Sequence[Tensor]) -> dict[str, Any]:
        """Detects, and prepares the masks.

        Args:
            src: (B, d, H, W), the projected features.
            mask: (B, H, W) bool, True = padding.
            features: of the finer stages, the coarsest first.

        Returns:
            What the detector returns, and ``masks``: a :class:`QueryMasks`.
        """
        outputs = self.detr.detect(src, mask)
        # The masks are asked for later, outside of mixed precision: by the losses, for matched queries.
        src, hs, memory, *features = map(full_precision, (src, outputs.pop("hs"), outputs.pop("memory"), *features))
        return outputs | {"masks": QueryMasks(self.bbox_attention, self.mask_head, src, hs, memory, mask, tuple(features))}


def build_segmenter(args: Namespace, detector: SingleScaleDetector) -> SingleScaleDetector | Segmenter:
    """The detector, with a mask head where the options want one."""
    if not args.masks:
        return detector
    return Segmenter(detector, args.nheads, args.mask_attention_gain, frozen=bool(args.frozen_weights))

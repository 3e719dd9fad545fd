"""The part of DETR that detectors with one feature map and learned queries have in common.

Shapes: L decoder layers, B images, H x W pixels of the feature map, N = H * W, Q queries, C classes, d features.
"""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from .backbone import Backbone
from .layers import MLP, in_full_precision
from .model import DetectionModel


class SingleScaleDetector(DetectionModel):
    """Backbone, projection, queries and heads, under DETR's names; a detector adds what lies between.

    Args:
        backbone: images to features.
        position_embedding: mask (B, H, W) to positions (B, H, W, d).
        transformer: with ``d_model``.
        num_logits: of a query: C, or C + 1 where the last is "no object".
        num_queries: Q, the most objects that can be found.
        aux_loss: return the predictions of all decoder layers in training, not only the last.

    Attributes:
        for_masks: return what a mask head needs, too: ``hs`` (B, Q, d) of the last decoder layer and ``memory`` (B, N, d).
    """

    def __init__(
        self,
        backbone: Backbone,
        position_embedding: nn.Module,
        transformer: nn.Module,
        num_logits: int,
        num_queries: int,
        aux_loss: bool = True,
    ):
        super().__init__()
        hidden_dim = transformer.d_model
        self.aux_loss, self.for_masks = aux_loss, False
        self.backbone = nn.ModuleList([backbone, position_embedding])  # the names of the published weights
        self.input_proj = nn.Conv2d(backbone.num_channels[-1], hidden_dim, kernel_size=1)
        self.transformer = transformer
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_logits)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, num_layers=3)

    def forward(self, images: Tensor, mask: Tensor, targets: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """See :class:`DetectionModel`. The targets are not looked at."""
        features, mask = self.backbone[0](images, mask)[-1]
        return self.detect(self.input_proj(features), mask)

    @abstractmethod
    def detect(self, src: Tensor, mask: Tensor) -> dict[str, Any]:
        """src (B, d, H, W), the projected features, and their mask (B, H, W), True = padding -> as :meth:`forward`."""

    def positions(self, mask: Tensor) -> Tensor:
        """mask (B, H, W) -> (B, N, d)."""
        return self.backbone[1](mask).flatten(1, 2)

    def predictions(self, hs: Tensor, src: Tensor, anchor: Tensor | float = 0.0) -> dict[str, Any]:
        """What the heads make of the decoder's outputs.

        Args:
            hs: (L, B, Q, d). Of these all layers count in training with auxiliary losses, else the last.
            src: (B, d, H, W), for its size.
            anchor: added to the logits of the boxes, (B, Q, 4).
        """
        if not (self.training and self.aux_loss):
            hs = hs[-1:]
        return {
            "pred_logits": self.class_embed(hs),
            "pred_boxes": (in_full_precision(self.bbox_embed, hs) + anchor).sigmoid(),
            "feature_size": tuple(src.shape[-2:]),
        }

"""DETR (Carion et al., ECCV 2020) with ENACT in its encoder.

Shapes: L decoder layers, B images, H x W pixels of the feature map, N = H * W, Q queries, C classes, d features.
"""

from typing import Any

from torch import Tensor, nn

from common.models.backbone import Backbone
from common.models.layers import MLP, in_full_precision
from common.models.model import DetectionModel

from .transformer import Transformer


class DETR(DetectionModel):
    """Detects the objects of an image as a set.

    Args:
        backbone: images to features.
        position_embedding: mask (B, H, W) to positions (B, H, W, d).
        transformer: encoder and decoder.
        num_classes: C; the class head has one more output, "no object".
        num_queries: Q, the most objects that can be found.
        aux_loss: return the predictions of all decoder layers in training, not only the last.
    """

    def __init__(
        self,
        backbone: Backbone,
        position_embedding: nn.Module,
        transformer: Transformer,
        num_classes: int,
        num_queries: int,
        aux_loss: bool = True,
    ):
        super().__init__()
        hidden_dim = transformer.d_model
        self.aux_loss = aux_loss
        self.backbone = nn.ModuleList([backbone, position_embedding])  # the names of the published weights
        self.input_proj = nn.Conv2d(backbone.num_channels[-1], hidden_dim, kernel_size=1)
        self.transformer = transformer
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, num_layers=3)

    def forward(self, images: Tensor, mask: Tensor, targets: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """See :class:`DetectionModel`; ``pred_logits`` are (L, B, Q, C + 1). The targets are not looked at."""
        backbone, _ = self.backbone
        features, mask = backbone(images, mask)[-1]
        return self.detect(self.input_proj(features), mask)

    def detect(self, src: Tensor, mask: Tensor) -> dict[str, Any]:
        """src (B, d, H, W), the projected features, and their mask (B, H, W) -> as :meth:`forward`."""
        _, position_embedding = self.backbone
        pos = position_embedding(mask)
        hs = self.transformer(src.flatten(2).transpose(1, 2), mask.flatten(1), self.query_embed.weight, pos.flatten(1, 2))
        if not (self.training and self.aux_loss):
            hs = hs[-1:]
        return {
            "pred_logits": self.class_embed(hs),
            "pred_boxes": in_full_precision(self.bbox_embed, hs).sigmoid(),
            "feature_size": tuple(src.shape[-2:]),
        }

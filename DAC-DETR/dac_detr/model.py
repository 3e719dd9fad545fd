"""DAC-DETR: Divide the Attention Layers and Conquer (Hu et al., NeurIPS 2023).

Shapes: L decoder layers, B images, N tokens of S feature levels, P denoising and Q matching queries, C classes, d features.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.models.backbone import Backbone
from common.models.deformable_transformer import ABSENT
from common.models.layers import build_heads
from common.models.levels import InputProjections, flatten_levels
from common.models.model import DetectionModel
from common.models.positions import PositionEmbeddingSine

from .denoising import Denoising, Noise, denoising_queries
from .transformer import Stream, Transformer


class DACDETR(DetectionModel):
    """Detects with the O-decoder; trains it beside the C-decoder, which shares its weights.

    Args:
        backbone: images to features, one or three stages.
        transformer: encoder and decoders.
        num_classes: C.
        num_queries: Q.
        num_levels: S.
        dac: train the C-decoder, too.
        noise: of the denoising queries; None for no such queries.

    Attributes:
        gather: run the C-decoder in evaluation, too, for a look at its queries.
    """

    def __init__(
        self,
        backbone: Backbone,
        transformer: Transformer,
        num_classes: int,
        num_queries: int,
        num_levels: int,
        dac: bool = True,
        noise: Noise | None = None,
    ):
        super().__init__()
        d_model = transformer.d_model
        self.num_classes, self.dac, self.noise = num_classes, dac, noise
        self.gather = False
        # The names of the published weights, as with all that follows.
        self.backbone = nn.ModuleList([backbone, PositionEmbeddingSine(d_model, shift=-0.5)])
        self.input_proj = InputProjections(backbone.num_channels, d_model, num_levels)
        self.transformer = transformer
        self.query_embed = nn.Embedding(num_queries, d_model)
        if noise:
            self.label_enc = nn.Embedding(num_classes + 1, d_model)
        heads = len(transformer.decoder.layers) + 1  # the last for the proposals
        self.class_embed, self.bbox_embed = build_heads(d_model, num_classes, heads, separate=True)

    def forward(self, images: Tensor, mask: Tensor, targets: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """See :class:`DetectionModel`; beside that as :meth:`detect`."""
        return self.detect(self.input_proj(self.backbone[0](images, mask), mask), targets)

    def detect(self, features: Sequence[tuple[Tensor, Tensor]], targets: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Detects in projected features.

        Args:
            features: per level (B, d, H_l, W_l) and its mask (B, H_l, W_l), True = padding.
            targets: in training, see :class:`DetectionModel`.

        Returns:
            What :class:`DetectionModel` says, of the O-decoder; ``shapes`` ((H_l, W_l), ...) of the tokens. With the C-decoder
            ``cross``, its predictions. In training ``proposals``, those of all tokens; and with denoising queries ``denoising`` and
            ``cross_denoising``, their predictions, and ``groups``, the number of their groups. Predictions are ``pred_logits``
            (L, B, n, C) and ``pred_boxes`` (L, B, n, 4).
        """
        transformer, levels = self.transformer, flatten_levels(features, self.backbone[1], self.transformer.level_embed)
        memory, _ = transformer.encoder(levels)
        heads = (self.class_embed[-1], self.bbox_embed[-1])
        chosen = transformer.propose(memory, levels, *heads, number=len(self.query_embed.weight), with_classes=False)
        queries = chosen.tokens.shape[1]
        tgt, reference, absent = self.query_embed.weight[:queries].expand(memory.shape[0], -1, -1), chosen.reference, chosen.absent
        denoising = self._denoising(targets, queries)
        if denoising:
            tgt, reference = torch.cat((denoising.content, tgt), dim=1), torch.cat((denoising.reference, reference), dim=1)
            absent = torch.cat((absent.new_zeros(denoising.content.shape[:2]), absent), dim=1)
        streams = transformer.decoder(
            tgt,
            transformer.positions(reference),
            reference.sigmoid(),
            memory,
            levels,
            self.bbox_embed,
            absent=absent,
            attn_mask=denoising.attn_mask if denoising else None,
            both=self.dac and (self.training or self.gather),
        )
        outputs = {"feature_size": levels.shapes[0], "shapes": levels.shapes}
        for name, stream in zip(("", "cross"), streams):
            noisy, found = self._predictions(stream, absent, tgt.shape[1] - queries)
            outputs |= {name: found} if name else found
            if denoising:
                outputs[f"{name}_denoising".lstrip("_")] = noisy
        if denoising:
            outputs["groups"] = denoising.groups
        if chosen.predictions:
            outputs["proposals"] = chosen.predictions
        return outputs

    def _denoising(self, targets: list[dict[str, Any]] | None, queries: int) -> Denoising | None:
        if not (self.training and self.noise and targets is not None):
            return None
        return denoising_queries(targets, self.label_enc, queries, self.num_classes, self.noise)

    def _predictions(self, stream: Stream, absent: Tensor, slots: int) -> list[dict[str, Tensor]]:
        """Of the first ``slots`` queries and of the others; in evaluation of the last layer alone."""
        first = 0 if self.training else len(stream.hs) - 1
        logits = torch.stack([head(h) for head, h in zip(self.class_embed[first:-1], stream.hs[first:], strict=True)])
        logits = logits.masked_fill(absent[..., None], ABSENT)
        parts = zip(logits.tensor_split([slots], dim=2), stream.boxes[first:].tensor_split([slots], dim=2))
        return [{"pred_logits": part, "pred_boxes": boxes} for part, boxes in parts]

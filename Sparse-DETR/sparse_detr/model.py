"""Deformable DETR (Zhu et al., ICLR 2021) and Sparse DETR (Roh et al., ICLR 2022).

Shapes: L decoder layers, E encoder layers with heads, B images, N tokens of S feature levels, k selected ones, Q queries,
C classes, d features; level l has H_l x W_l pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from common.models.backbone import Backbone
from common.models.deformable_transformer import ABSENT
from common.models.layers import build_heads, in_full_precision
from common.models.levels import InputProjections, Levels, flatten_levels
from common.models.model import DetectionModel
from common.models.positions import PositionEmbeddingSine

from .scoring import Selection
from .transformer import Transformer


class SparseDETR(DetectionModel):
    """Detects objects with deformable attention over several feature levels.

    Args:
        backbone: images to features, one or three stages.
        transformer: encoder and decoder.
        num_classes: C.
        aux_loss: return the predictions of all decoder layers in training, not only the last.
        use_enc_aux_loss: predict boxes behind every encoder layer but the last, too, in training.
    """

    def __init__(
        self, backbone: Backbone, transformer: Transformer, num_classes: int, aux_loss: bool = True, use_enc_aux_loss: bool = False
    ):
        super().__init__()
        options, d_model = transformer.options, transformer.d_model
        self.aux_loss, self.use_enc_aux_loss = aux_loss, use_enc_aux_loss
        # The names of the published weights, as with all that follows.
        self.backbone = nn.ModuleList([backbone, PositionEmbeddingSine(d_model, shift=-0.5)])
        self.input_proj = InputProjections(backbone.num_channels, d_model, options.num_feature_levels)
        self.transformer = transformer
        if not options.two_stage:
            self.query_embed = nn.Embedding(options.num_queries, 2 * d_model)

        self.decoder_heads = len(transformer.decoder.layers)
        encoder_heads = len(transformer.encoder.layers) - 1 if use_enc_aux_loss else 0
        number = self.decoder_heads + options.two_stage + encoder_heads
        separate = options.with_box_refine or use_enc_aux_loss
        self.class_embed, self.bbox_embed = build_heads(d_model, num_classes, number, separate)
        if not options.two_stage:
            nn.init.constant_(self.bbox_embed[0].layers[-1].bias[2:], -2.0)  # small boxes around the reference points

    def forward(self, images: Tensor, mask: Tensor, targets: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """See :class:`DetectionModel`; beside that as :meth:`detect`. The targets are not looked at."""
        return self.detect(self.input_proj(self.backbone[0](images, mask), mask))

    def detect(self, features: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """Detects in projected features.

        Args:
            features: per level (B, d, H_l, W_l) and its mask (B, H_l, W_l), True = padding.

        Returns:
            What :class:`DetectionModel` says; ``shapes`` ((H_l, W_l), ...) and ``padding`` (B, N) of the tokens; ``locations``
            (L, B, Q, M, S, P, 2) and ``weights`` (L, B, Q, M, S, P) of the decoder's attention, without gradients. With rho
            ``scores`` (B, N), ``tokens`` and ``kept`` (B, k) of the selection. In training ``proposals``, those of all tokens
            (two-stage), and ``encoder``, the predictions behind the encoder's layers: ``pred_logits`` (E, B, N or k, C) and
            ``pred_boxes`` (E, B, N or k, 4).
        """
        transformer, levels = self.transformer, flatten_levels(features, self.backbone[1], self.transformer.level_embed)
        selection = transformer.select(levels)
        memory, updated = transformer.encoder(levels, selection)
        if transformer.options.two_stage:
            head = self.decoder_heads
            queries = transformer.proposed_queries(memory, levels, self.class_embed[head], self.bbox_embed[head])
        else:
            queries = transformer.learned_queries(self.query_embed.weight, levels)
        decoded = transformer.decode(queries, memory, levels, self.bbox_embed)

        outputs = {"feature_size": levels.shapes[0], "shapes": levels.shapes, "padding": levels.mask}
        outputs |= self._predictions(decoded.hs, decoded.boxes, queries.absent)
        for name in ("locations", "weights"):
            outputs[name] = torch.stack([getattr(attended, name).detach() for attended in decoded.attended])
        if selection:
            outputs |= selection._asdict()
        if queries.proposals:
            outputs["proposals"] = queries.proposals
        if self.training and self.use_enc_aux_loss:
            outputs["encoder"] = self._encoder_predictions(updated[:-1], levels, selection)
        return outputs

    def _predictions(self, hs: Tensor, boxes: Tensor, absent: Tensor | None) -> dict[str, Tensor]:
        """``pred_logits`` and ``pred_boxes`` of the layers that count: of all in training, else of the last."""
        first = 0 if self.training and self.aux_loss else len(hs) - 1
        heads = self.class_embed[first : len(hs)]
        logits = torch.stack([head(h) for head, h in zip(heads, hs[first:])])
        if absent is not None:
            logits = logits.masked_fill(absent[None, ..., None], ABSENT)
        return {"pred_logits": logits, "pred_boxes": boxes[first:]}

    def _encoder_predictions(self, updated: list[Tensor], levels: Levels, selection: Selection | None) -> dict[str, Tensor]:
        proposals = selection.gather(levels.proposals) if selection else levels.proposals
        first = len(self.class_embed) - len(updated)
        heads = list(zip(self.class_embed[first:], self.bbox_embed[first:], updated, strict=True))
        return {
            "pred_logits": torch.stack([class_embed(x) for class_embed, _, x in heads]),
            "pred_boxes": torch.stack([(in_full_precision(bbox_embed, x) + proposals).sigmoid() for _, bbox_embed, x in heads]),
        }

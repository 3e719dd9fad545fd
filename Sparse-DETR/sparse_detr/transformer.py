"""The transformer of Deformable DETR, and what Sparse DETR (Roh et al., ICLR 2022) changes in it.

Shapes: B images, N tokens of S feature levels, k selected ones, Q queries, L decoder layers, C classes, d features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from common.models.deformable_transformer import (
    Decoded,
    DeformableDecoder,
    DeformableEncoder,
    DeformableTransformer,
)
from common.models.layers import in_full_precision, rows
from common.models.levels import Levels
from common.models.transformer import TransformerOptions

from .scoring import ScoringNetwork, Selection, select


@dataclass(frozen=True)
class DeformableOptions:
    """The form of a deformable transformer, beside its size.

    Attributes:
        num_feature_levels: S.
        enc_n_points, dec_n_points: points of a level that a head looks at.
        num_queries: Q.
        with_box_refine: each decoder layer refines the boxes of the one before.
        two_stage: the queries are the best proposals of the encoder, not learned.
        eff_query_init: their contents are the tokens themselves (Efficient DETR).
        eff_specific_head: the best proposals are those with the surest class, not the surest objects (Efficient DETR).
        rho: share of the tokens that the encoder updates; 0: all, without a scoring network.
    """

    num_feature_levels: int = 4
    enc_n_points: int = 4
    dec_n_points: int = 4
    num_queries: int = 300
    with_box_refine: bool = False
    two_stage: bool = False
    eff_query_init: bool = False
    eff_specific_head: bool = False
    rho: float = 0.0


class Queries(NamedTuple):
    """What the decoder starts with.

    Attributes:
        tgt, query_pos: (B, Q, d).
        reference: (B, Q, 2 or 4) in [0, 1].
        absent: (B, Q) bool, queries that stand for no token, as the image has fewer than Q; None where there are none such.
        proposals: two-stage in training, of all tokens: ``pred_logits`` (1, B, N, C) and ``pred_boxes`` (1, B, N, 4).
    """

    tgt: Tensor
    query_pos: Tensor
    reference: Tensor
    absent: Tensor | None = None
    proposals: dict[str, Tensor] | None = None


class Transformer(DeformableTransformer):
    """Encoder and decoder; the heads are the model's, which hands them in.

    Args:
        options: size and form.
        deformable: what deformable transformers have beside that.
    """

    def __init__(self, options: TransformerOptions, deformable: DeformableOptions):
        d_model, levels = options.d_model, deformable.num_feature_levels
        width = d_model if deformable.eff_query_init else 2 * d_model
        super().__init__(
            encoder=SparseEncoder(options, levels, deformable.enc_n_points),
            decoder=DeformableDecoder(options, levels, deformable.dec_n_points, deformable.with_box_refine),
            d_model=d_model,
            num_levels=levels,
            query_width=width if deformable.two_stage else 0,
        )
        self.options = deformable
        if not deformable.two_stage:
            self.reference_points = nn.Linear(d_model, 2)
        if deformable.rho:
            self.enc_mask_predictor = ScoringNetwork(d_model)
        self.reset_parameters()
        if not deformable.two_stage:
            nn.init.zeros_(self.reference_points.bias)

    def select(self, levels: Levels) -> Selection | None:
        """The tokens that the encoder will update; None for all."""
        if not self.options.rho:
            return None
        scores = self.enc_mask_predictor(self.encode_proposals(levels.src + levels.pos, levels), levels.mask)
        return select(scores, levels.mask, self.options.rho)

    def learned_queries(self, query_embed: Tensor, levels: Levels) -> Queries:
        """One-stage: query_embed (Q, 2 d), the same in every image."""
        query_pos, tgt = (x.expand(levels.src.shape[0], -1, -1) for x in query_embed.chunk(2, dim=1))
        return Queries(tgt, query_pos, in_full_precision(self.reference_points, query_pos).sigmoid())

    def proposed_queries(self, memory: Tensor, levels: Levels, class_embed: nn.Module, bbox_embed: nn.Module) -> Queries:
        """Two-stage: the tokens with the best scores become queries."""
        number, specific = self.options.num_queries, self.options.eff_specific_head
        chosen = self.propose(memory, levels, class_embed, bbox_embed, number, specific)
        query_pos = self.embed_boxes(chosen.reference)
        if self.options.eff_query_init:
            tgt = rows(memory, chosen.tokens)
        else:
            query_pos, tgt = query_pos.chunk(2, dim=-1)
        return Queries(tgt, query_pos, chosen.reference.sigmoid(), chosen.absent, chosen.predictions)

    def decode(self, queries: Queries, memory: Tensor, levels: Levels, bbox_embed: Sequence[nn.Module]) -> Decoded:
        """The decoder's outputs, boxes and attention."""
        return self.decoder(queries.tgt, queries.query_pos, queries.reference, memory, levels, bbox_embed, queries.absent)


class SparseEncoder(DeformableEncoder):
    """An encoder of all tokens or of the selected ones."""

    def forward(self, levels: Levels, selection: Selection | None) -> tuple[Tensor, list[Tensor]]:
        """The memory (B, N, d), and in training what each layer made of the tokens that it updated (B, N or k, d).

        Tokens that are not selected keep their features, and are looked at by the others in every layer.
        """
        if selection is None:
            return super().forward(levels)
        memory, outputs = levels.src, []
        before = tgt = selection.gather(levels.src)
        pos, reference = selection.gather(levels.pos), selection.gather(levels.references)
        for layer in self.layers:
            tgt = layer(tgt, pos, reference, memory, levels)
            memory = selection.scatter(memory, tgt, before)
            outputs += [tgt] if self.training else []
        return memory, outputs

"""The transformer of Deformable DETR, and what Sparse DETR (Roh et al., ICLR 2022) changes in it.

Shapes: B images, N tokens of S feature levels, k selected ones, Q queries, L decoder layers, C classes, d features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.models.deformable_attention import DeformableAttention
from common.models.deformable_transformer import Decoded, DeformableDecoder, DeformableEncoderLayer
from common.models.layers import in_full_precision
from common.models.levels import Levels
from common.models.positions import sine_embedding
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


class Transformer(nn.Module):
    """Encoder and decoder; the heads are the model's, which hands them in.

    Args:
        options: size and form.
        deformable: what deformable transformers have beside that.
    """

    def __init__(self, options: TransformerOptions, deformable: DeformableOptions):
        super().__init__()
        d_model = self.d_model = options.d_model
        self.options = deformable
        levels = deformable.num_feature_levels
        self.level_embed = nn.Parameter(torch.empty(levels, d_model))
        self.encoder = SparseEncoder(options, levels, deformable.enc_n_points)
        self.decoder = DeformableDecoder(options, levels, deformable.dec_n_points, deformable.with_box_refine)
        if deformable.two_stage:
            self.enc_output = nn.Linear(d_model, d_model)
            self.enc_output_norm = nn.LayerNorm(d_model)
            width = d_model if deformable.eff_query_init else 2 * d_model
            self.pos_trans = nn.Linear(2 * d_model, width)
            self.pos_trans_norm = nn.LayerNorm(width)
        else:
            self.reference_points = nn.Linear(d_model, 2)
        if deformable.rho:
            self.enc_mask_predictor = ScoringNetwork(d_model)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        if not self.options.two_stage:
            nn.init.zeros_(self.reference_points.bias)
        nn.init.normal_(self.level_embed)

    def select(self, levels: Levels) -> Selection | None:
        """The tokens that the encoder will update; None for all."""
        if not self.options.rho:
            return None
        scores = self.enc_mask_predictor(self._encode_proposals(levels.src + levels.pos, levels), levels.mask)
        return select(scores, levels.mask, self.options.rho)

    def learned_queries(self, query_embed: Tensor, levels: Levels) -> Queries:
        """One-stage: query_embed (Q, 2 d), the same in every image."""
        query_pos, tgt = (x.expand(len(levels.src), -1, -1) for x in query_embed.chunk(2, dim=1))
        return Queries(tgt, query_pos, in_full_precision(self.reference_points, query_pos).sigmoid())

    def propose(self, memory: Tensor, levels: Levels, class_embed: nn.Module, bbox_embed: nn.Module) -> Queries:
        """Two-stage: the tokens with the best scores become queries. Padding never does before anything else."""
        m = self._encode_proposals(memory, levels)
        logits = class_embed(m).float()
        score = (logits.amax(-1) if self.options.eff_specific_head else logits[..., 0]).detach()
        score = score.masked_fill(~levels.valid, torch.finfo(score.dtype).min).masked_fill(levels.mask, -torch.inf)
        best = score.topk(min(self.options.num_queries, score.shape[1]), dim=1).indices

        def rows(x: Tensor) -> Tensor:
            return x.gather(1, best[..., None].expand(-1, -1, x.shape[-1]))

        proposals = None
        if self.training:
            boxes = in_full_precision(bbox_embed, m) + levels.proposals
            proposals = {"pred_logits": logits[None], "pred_boxes": boxes.sigmoid()[None]}
            reference = rows(boxes)
        else:
            reference = in_full_precision(bbox_embed, rows(m)) + rows(levels.proposals)
        reference = reference.detach().sigmoid()
        embedded = sine_embedding(reference * 2 * math.pi, self.d_model // 2).flatten(-2)
        query_pos = self.pos_trans_norm(self.pos_trans(embedded))
        if self.options.eff_query_init:
            tgt = rows(memory)
        else:
            query_pos, tgt = query_pos.chunk(2, dim=-1)
        return Queries(tgt, query_pos, reference, levels.mask.gather(1, best), proposals)

    def decode(self, queries: Queries, memory: Tensor, levels: Levels, bbox_embed: Sequence[nn.Module]) -> Decoded:
        """The decoder's outputs, boxes and attention."""
        return self.decoder(queries.tgt, queries.query_pos, queries.reference, memory, levels, bbox_embed, queries.absent)

    def _encode_proposals(self, memory: Tensor, levels: Levels) -> Tensor:
        """memory (B, N, d) -> (B, N, d); tokens without a valid proposal become one constant vector."""
        return self.enc_output_norm(self.enc_output(memory.masked_fill(~levels.valid[..., None], 0.0)))


class SparseEncoder(nn.Module):
    """A stack of encoder layers, of all tokens or of the selected ones.

    Args:
        options: size and form.
        num_levels: S.
        num_points: of a level that a head looks at.
    """

    def __init__(self, options: TransformerOptions, num_levels: int, num_points: int):
        super().__init__()
        self.layers = nn.ModuleList(DeformableEncoderLayer(options, num_levels, num_points) for _ in range(options.enc_layers))

    def forward(self, levels: Levels, selection: Selection | None) -> tuple[Tensor, list[Tensor]]:
        """The memory (B, N, d), and in training what each layer made of the tokens that it updated (B, N or k, d).

        Tokens that are not selected keep their features, and are looked at by the others in every layer.
        """
        memory, outputs = levels.src, []
        if selection is None:
            for layer in self.layers:
                memory = layer(memory, levels.pos, levels.references, memory, levels)
                outputs += [memory] if self.training else []
            return memory, outputs
        tgt, pos, reference = (selection.gather(x) for x in (levels.src, levels.pos, levels.references))
        before = tgt
        for layer in self.layers:
            tgt = layer(tgt, pos, reference, memory, levels)
            memory = selection.scatter(memory, tgt, before)
            outputs += [tgt] if self.training else []
        return memory, outputs

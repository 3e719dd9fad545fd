"""The transformer of Deformable DETR (Zhu et al., ICLR 2021): its layers, its decoder, which refines boxes, and its proposals.

Shapes: B images, N tokens of S feature levels, n of them, Q queries, L decoder layers, d features.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .deformable_attention import Attended, DeformableAttention
from .layers import in_full_precision, inverse_sigmoid, rows
from .levels import Levels
from .positions import sine_embedding
from .transformer import TransformerOptions

ABSENT = -20.0  # logit of the classes of a query that stands for no token


class DeformableEncoderLayer(nn.Module):
    """Deformable attention of tokens to tokens, feed-forward network; each followed by a norm.

    Args:
        options: size and form.
        num_levels: S.
        num_points: of a level that a head looks at.
    """

    def __init__(self, options: TransformerOptions, num_levels: int, num_points: int):
        super().__init__()
        d_model, dropout = options.d_model, options.dropout
        self.self_attn = DeformableAttention(d_model, num_levels, options.nhead, num_points)
        self.dropout1 = nn.Dropout(dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, options.dim_feedforward)
        self.dropout2 = nn.Dropout(dropout)
        self.linear2 = nn.Linear(options.dim_feedforward, d_model)
        self.dropout3 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, tgt: Tensor, pos: Tensor, reference: Tensor, memory: Tensor, levels: Levels) -> Tensor:
        """tgt, pos (B, n, d) and reference (B, n, S, 2) of the tokens to be updated; memory (B, N, d), all of them -> (B, n, d)."""
        attended, _ = self.self_attn(tgt + pos, reference, memory, levels.mask, levels.shapes)
        tgt = self.norm1(tgt + self.dropout1(attended))
        return self.norm2(tgt + self.dropout3(self.linear2(self.dropout2(F.relu(self.linear1(tgt))))))


class DeformableEncoder(nn.Module):
    """A stack of encoder layers.

    Args: as for its layers.
    """

    def __init__(self, options: TransformerOptions, num_levels: int, num_points: int):
        super().__init__()
        self.layers = nn.ModuleList(DeformableEncoderLayer(options, num_levels, num_points) for _ in range(options.enc_layers))

    def forward(self, levels: Levels) -> tuple[Tensor, list[Tensor]]:
        """The memory (B, N, d), and in training what each layer made (B, N, d)."""
        memory, outputs = levels.src, []
        for layer in self.layers:
            memory = layer(memory, levels.pos, levels.references, memory, levels)
            outputs += [memory] if self.training else []
        return memory, outputs


class DeformableDecoderLayer(nn.Module):
    """Self-attention of the queries, deformable attention to the memory, feed-forward network; each followed by a norm.

    Args: as :class:`DeformableEncoderLayer`.
    """

    def __init__(self, options: TransformerOptions, num_levels: int, num_points: int):
        super().__init__()
        d_model, dropout = options.d_model, options.dropout
        self.self_attn = nn.MultiheadAttention(d_model, options.nhead, dropout, batch_first=True)
        self.dropout2 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(d_model)
        self.cross_attn = DeformableAttention(d_model, num_levels, options.nhead, num_points)
        self.dropout1 = nn.Dropout(dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, options.dim_feedforward)
        self.dropout3 = nn.Dropout(dropout)
        self.linear2 = nn.Linear(options.dim_feedforward, d_model)
        self.dropout4 = nn.Dropout(dropout)
        self.norm3 = nn.LayerNorm(d_model)

    def forward(
        self, tgt: Tensor, query_pos: Tensor, reference: Tensor, memory: Tensor, levels: Levels, absent: Tensor | None
    ) -> tuple[Tensor, Attended]:
        """tgt, query_pos (B, Q, d), reference (B, Q, S, 2 or 4), memory (B, N, d), absent (B, Q) -> (B, Q, d), where it looked."""
        return self.attend_memory(self.attend_queries(tgt, query_pos, absent), query_pos, reference, memory, levels)

    def attend_queries(
        self, tgt: Tensor, query_pos: Tensor, absent: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """The first part: self-attention. absent (B, Q) and attn_mask (Q, Q) are bool, True = not seen."""
        q = tgt + query_pos
        attended, _ = self.self_attn(q, q, tgt, key_padding_mask=absent, attn_mask=attn_mask, need_weights=False)
        return self.norm2(tgt + self.dropout2(attended))

    def attend_memory(
        self, tgt: Tensor, query_pos: Tensor, reference: Tensor, memory: Tensor, levels: Levels
    ) -> tuple[Tensor, Attended]:
        """The second part: attention to the memory, feed-forward network; the queries do not see each other."""
        out, attended = self.cross_attn(tgt + query_pos, reference, memory, levels.mask, levels.shapes)
        tgt = self.norm1(tgt + self.dropout1(out))
        return self.norm3(tgt + self.dropout4(self.linear2(self.dropout3(F.relu(self.linear1(tgt)))))), attended


class Decoded(NamedTuple):
    """What the decoder found.

    Attributes:
        hs: (L, B, Q, d) the outputs of the layers.
        boxes: (L, B, Q, 4) cxcywh in [0, 1].
        attended: per layer where the queries looked.
    """

    hs: Tensor
    boxes: Tensor
    attended: list[Attended]


class DeformableDecoder(nn.Module):
    """A stack of decoder layers.

    Args:
        options, num_levels, num_points: as for its layers.
        refine: a layer's boxes are the references of the next, without a gradient; else all look around the first ones.
    """

    def __init__(self, options: TransformerOptions, num_levels: int, num_points: int, refine: bool):
        super().__init__()
        self.refine = refine
        self.layers = nn.ModuleList(DeformableDecoderLayer(options, num_levels, num_points) for _ in range(options.dec_layers))

    def forward(
        self,
        tgt: Tensor,
        query_pos: Tensor,
        reference: Tensor,
        memory: Tensor,
        levels: Levels,
        bbox_embed: Sequence[nn.Module],
        absent: Tensor | None = None,
    ) -> Decoded:
        """Decodes.

        Args:
            tgt, query_pos: (B, Q, d).
            reference: (B, Q, 2 or 4) points or boxes, in [0, 1] of the valid part of the image.
            memory: (B, N, d).
            levels: of the memory.
            bbox_embed: a box head for each layer; a layer's box is what its head adds to the logits of its reference.
            absent: (B, Q) bool, queries that the others do not see.
        """
        hs, boxes, attended = [], [], []
        for layer, head in zip(self.layers, bbox_embed):
            tgt, looked = layer(tgt, query_pos, levels.in_maps(reference), memory, levels, absent)
            box = in_full_precision(head, tgt)
            anchor = inverse_sigmoid(reference)
            box = (box + F.pad(anchor, (0, box.shape[-1] - anchor.shape[-1]))).sigmoid()
            hs.append(tgt)
            boxes.append(box)
            attended.append(looked)
            if self.refine:
                reference = box.detach()
        return Decoded(torch.stack(hs), torch.stack(boxes), attended)


class Proposals(NamedTuple):
    """The tokens with the best scores, best first.

    Attributes:
        tokens: (B, Q) their indices.
        reference: (B, Q, 4) the logits of their boxes, without a gradient.
        absent: (B, Q) bool, those that are padding, as the image has fewer tokens than Q.
        predictions: in training those of all tokens, ``pred_logits`` (1, B, N, C) and ``pred_boxes`` (1, B, N, 4).
    """

    tokens: Tensor
    reference: Tensor
    absent: Tensor
    predictions: dict[str, Tensor] | None


class DeformableTransformer(nn.Module):
    """Encoder and decoder, the levels' embeddings, and what makes proposals of the encoder's tokens (two-stage).

    The heads are the model's, which hands them in.

    Args:
        encoder, decoder: its parts.
        d_model: d.
        num_levels: S.
        query_width: features that are made of a proposal's box; 0: there are no proposals.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, d_model: int, num_levels: int, query_width: int):
        super().__init__()
        self.d_model = d_model
        self.level_embed = nn.Parameter(torch.empty(num_levels, d_model))
        self.encoder = encoder
        self.decoder = decoder
        if query_width:
            self.enc_output = nn.Linear(d_model, d_model)
            self.enc_output_norm = nn.LayerNorm(d_model)
            self.pos_trans = nn.Linear(2 * d_model, query_width)
            self.pos_trans_norm = nn.LayerNorm(query_width)

    def reset_parameters(self) -> None:
        """The published start: Xavier uniform for all matrices, and what deformable attention and the levels have of their own."""
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)

    def encode_proposals(self, memory: Tensor, levels: Levels) -> Tensor:
        """memory (B, N, d) -> (B, N, d); tokens without a valid proposal become one constant vector."""
        return self.enc_output_norm(self.enc_output(memory.masked_fill(~levels.valid[..., None], 0.0)))

    def propose(
        self, memory: Tensor, levels: Levels, class_embed: nn.Module, bbox_embed: nn.Module, number: int, with_classes: bool
    ) -> Proposals:
        """Chooses the best tokens; those without a valid proposal come behind all others, and padding behind them.

        Args:
            memory: (B, N, d).
            number: Q, how many; N if there are fewer.
            with_classes: a token's score is its best class's, else that of class 0.
        """
        m = self.encode_proposals(memory, levels)
        logits = class_embed(m).float()
        score = (logits.amax(-1) if with_classes else logits[..., 0]).detach()
        score = score.masked_fill(~levels.valid, torch.finfo(score.dtype).min).masked_fill(levels.mask, -torch.inf)
        tokens = score.topk(min(number, score.shape[1]), dim=1).indices
        predictions = None
        if self.training:
            boxes = in_full_precision(bbox_embed, m) + levels.proposals
            predictions = {"pred_logits": logits[None], "pred_boxes": boxes.sigmoid()[None]}
            reference = rows(boxes, tokens)
        else:
            reference = in_full_precision(bbox_embed, rows(m, tokens)) + rows(levels.proposals, tokens)
        return Proposals(tokens, reference.detach(), levels.mask.gather(1, tokens), predictions)

    def embed_boxes(self, reference: Tensor) -> Tensor:
        """The logits of boxes (B, Q, 4) -> (B, Q, query_width)."""
        embedded = sine_embedding(reference.sigmoid() * 2 * math.pi, self.d_model // 2).flatten(-2)
        return self.pos_trans_norm(self.pos_trans(embedded))

"""The layers of Deformable DETR's transformer (Zhu et al., ICLR 2021), and its decoder, which refines boxes layer by layer.

Shapes: B images, N tokens of S feature levels, n of them, Q queries, L decoder layers, d features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .deformable_attention import Attended, DeformableAttention
from .layers import in_full_precision
from .levels import Levels
from .transformer import TransformerOptions


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
        q = tgt + query_pos
        tgt = self.norm2(tgt + self.dropout2(self.self_attn(q, q, tgt, key_padding_mask=absent, need_weights=False)[0]))
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
            anchor = torch.logit(reference, eps=1e-5)
            box = (box + F.pad(anchor, (0, box.shape[-1] - anchor.shape[-1]))).sigmoid()
            hs.append(tgt)
            boxes.append(box)
            attended.append(looked)
            if self.refine:
                reference = box.detach()
        return Decoded(torch.stack(hs), torch.stack(boxes), attended)

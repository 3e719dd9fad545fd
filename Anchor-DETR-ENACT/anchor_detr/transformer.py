"""The transformer of Anchor DETR (Wang et al., AAAI 2022) with ENACT in its encoder.

Shapes: B images, S feature levels, H x W pixels of each, N = H * W, Q queries (positions x patterns), d features.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.positions import sine_embedding
from common.models.transformer import TransformerOptions
from enact.encoder import attend, build_self_attention

from .rcda import RCDA, ClusteredRCDA, average_keys


class Positions(NamedTuple):
    """Embedded coordinates, broadcastable to (B, H, W, d) for pixels and (B, Q, d) for queries.

    Attributes:
        row, col: of x and of y alone, for RCDA.
        both: of (x, y), for ordinary attention; the queries attend to each other with it in either case.
    """

    row: Tensor | None
    col: Tensor | None
    both: Tensor | None


class Keys(NamedTuple):
    """The memory with its positions, as the decoder attends to it; the same for all its layers.

    Attributes:
        row: (B, W, d), averaged over the rows, and col: (B, H, d), averaged over the columns, for RCDA.
        both: (B, N, d), for ordinary attention.
    """

    row: Tensor | None
    col: Tensor | None
    both: Tensor | None


def embed_1d(position: Tensor, num_feats: int) -> Tensor:
    """Coordinates (...) in (0, 1) -> (..., num_feats)."""
    return sine_embedding(2 * math.pi * position, num_feats)


def embed_2d(position: Tensor, num_feats: int) -> Tensor:
    """Coordinates (..., 2), x before y, in (0, 1) -> (..., num_feats), the features of y first."""
    x, y = position.unbind(-1)
    return torch.cat((embed_1d(y, num_feats // 2), embed_1d(x, num_feats // 2)), dim=-1)


def pixel_coordinates(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of the valid columns and rows, in (0, 1): mask (B, H, W), True = padding -> x (B, W), y (B, H)."""

    def centres(valid: Tensor) -> Tensor:
        return (valid.cumsum(1, dtype=torch.float32) - 0.5) / valid.sum(1, keepdim=True)

    return centres(~mask[:, 0, :]), centres(~mask[:, :, 0])


def keys_of(memory: Tensor, mask: Tensor, pos: Positions) -> Keys:
    """memory (B, H, W, d), mask (B, H, W) bool with True = padding, and the positions of its pixels."""
    if pos.both is not None:
        return Keys(None, None, (memory + pos.both).flatten(1, 2))
    return Keys(*average_keys(memory + pos.row, memory + pos.col, mask), None)


class FFN(nn.Module):
    """Feed-forward network with its normalisation."""

    def __init__(self, options: TransformerOptions):
        super().__init__()
        self.linear1 = nn.Linear(options.d_model, options.dim_feedforward)
        self.dropout2 = nn.Dropout(options.dropout)
        self.linear2 = nn.Linear(options.dim_feedforward, options.d_model)
        self.dropout3 = nn.Dropout(options.dropout)
        self.norm2 = nn.LayerNorm(options.d_model)

    def forward(self, src: Tensor) -> Tensor:
        return self.norm2(src + self.dropout3(self.linear2(self.dropout2(F.relu(self.linear1(src))))))


class EncoderLayer(nn.Module):
    """Self-attention over the pixels of one level, and the feed-forward network; post-norm.

    Args:
        options: size and form.
        decoupled: RCDA instead of ordinary multi-head attention.
        clustering: "none", or one of :data:`enact.clustering.CLUSTERINGS`.
        others: the other options of :class:`enact.EntropyClustering`.
    """

    def __init__(self, options: TransformerOptions, decoupled: bool, clustering: str, **others: Any):
        super().__init__()
        d_model, nhead, dropout = options.d_model, options.nhead, options.dropout
        self.decoupled = decoupled
        if not decoupled:
            self.self_attn = build_self_attention(d_model, nhead, dropout, clustering, **others)
        elif clustering == "none":
            self.self_attn = RCDA(d_model, nhead)
        else:
            self.self_attn = ClusteredRCDA(d_model, nhead, clustering, **others)
        self.dropout1 = nn.Dropout(dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.ffn = FFN(options)

    def forward(self, src: Tensor, mask: Tensor, pos: Positions) -> Tensor:
        """src (B, H, W, d), mask (B, H, W) bool with True = padding -> (B, H, W, d)."""
        if self.decoupled:
            row, col = src + pos.row, src + pos.col
            out = self.self_attn(row.flatten(1, 2), col.flatten(1, 2), row, col, src, mask)
        else:
            q = (src + pos.both).flatten(1, 2)
            out = attend(self.self_attn, q, src.flatten(1, 2), mask.flatten(1), tuple(mask.shape[1:]))
        return self.ffn(self.norm1(src + self.dropout1(out).view_as(src)))


class LevelEncoderLayer(nn.Module):
    """Self-attention between the S feature levels of each pixel, and a feed-forward network; post-norm."""

    def __init__(self, options: TransformerOptions):
        super().__init__()
        self.self_attn_level = nn.MultiheadAttention(options.d_model, options.nhead, options.dropout, batch_first=True)
        self.dropout1 = nn.Dropout(options.dropout)
        self.norm1 = nn.LayerNorm(options.d_model)
        self.ffn = FFN(options)

    def forward(self, src: Tensor, level_embed: Tensor) -> Tensor:
        """src (B * S, H, W, d), level_embed (S, d) -> (B * S, H, W, d)."""
        levels, (_, height, width, d) = len(level_embed), src.shape
        x = src.view(-1, levels, height * width, d).transpose(1, 2).reshape(-1, levels, d)
        q = x + level_embed
        x = self.ffn(self.norm1(x + self.dropout1(self.self_attn_level(q, q, x, need_weights=False)[0])))
        return x.view(-1, height * width, levels, d).transpose(1, 2).reshape(src.shape)


class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the memory of every level, feed-forward network; post-norm."""

    def __init__(self, options: TransformerOptions, decoupled: bool, num_feature_levels: int):
        super().__init__()
        d_model, nhead, dropout = options.d_model, options.nhead, options.dropout
        self.decoupled = decoupled
        self.cross_attn = RCDA(d_model, nhead) if decoupled else nn.MultiheadAttention(d_model, nhead, dropout, batch_first=True)
        self.dropout1 = nn.Dropout(dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.self_attn = nn.MultiheadAttention(d_model, nhead, dropout, batch_first=True)
        self.dropout2 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(d_model)
        self.num_feature_levels = num_feature_levels
        self.level_fc = nn.Linear(d_model * num_feature_levels, d_model) if num_feature_levels > 1 else None
        self.ffn = FFN(options)

    def forward(self, tgt: Tensor, query_pos: Positions, keys: Keys, memory: Tensor, mask: Tensor) -> Tensor:
        """tgt (B, Q, d); memory (B * S, H, W, d) and mask (B * S, H, W), the levels of an image together -> (B, Q, d)."""
        q = tgt + query_pos.both
        tgt = self.norm2(tgt + self.dropout2(self.self_attn(q, q, tgt, need_weights=False)[0]))
        return self.ffn(self.norm1(tgt + self.dropout1(self._cross_attention(tgt, query_pos, keys, memory, mask))))

    def _cross_attention(self, tgt: Tensor, query_pos: Positions, keys: Keys, memory: Tensor, mask: Tensor) -> Tensor:
        def per_level(x: Tensor) -> Tensor:
            return x.repeat_interleave(self.num_feature_levels, dim=0)

        if self.decoupled:
            row, col = per_level(tgt + query_pos.row), per_level(tgt + query_pos.col)
            out = self.cross_attn.attend(row, col, keys.row, keys.col, memory, mask)
        else:
            q, value = per_level(tgt + query_pos.both), memory.flatten(1, 2)
            out = self.cross_attn(q, keys.both, value, key_padding_mask=mask.flatten(1), need_weights=False)[0]
        if self.level_fc is None:
            return out
        return self.level_fc(out.unflatten(0, (tgt.shape[0], -1)).transpose(1, 2).flatten(2))

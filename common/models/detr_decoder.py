"""The decoder of DETR (Carion et al., ECCV 2020).

Shapes: L decoder layers, B images, N pixels, Q queries, d features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .transformer import TransformerOptions


class TransformerDecoder(nn.Module):
    """A stack of decoder layers; every layer's output is normalised and returned, for the auxiliary losses."""

    def __init__(self, options: TransformerOptions):
        super().__init__()
        self.layers = nn.ModuleList(TransformerDecoderLayer(options) for _ in range(options.dec_layers))
        self.norm = nn.LayerNorm(options.d_model)

    def forward(self, query_embed: Tensor, memory: Tensor, mask: Tensor, pos: Tensor) -> Tensor:
        """query_embed (Q, d), the same in every image; memory, pos (B, N, d); mask (B, N), True = padding -> (L, B, Q, d)."""
        query_pos = query_embed.expand(memory.shape[0], -1, -1)
        tgt, key = torch.zeros_like(query_pos), memory + pos
        outputs = []
        for layer in self.layers:
            tgt = layer(tgt, key, memory, mask, query_pos)
            outputs.append(self.norm(tgt))
        return torch.stack(outputs)


class TransformerDecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the memory, feed-forward network."""

    def __init__(self, options: TransformerOptions):
        super().__init__()
        d_model, nhead, dropout = options.d_model, options.nhead, options.dropout
        self.self_attn = nn.MultiheadAttention(d_model, nhead, dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(d_model, nhead, dropout, batch_first=True)
        self.linear1 = nn.Linear(d_model, options.dim_feedforward)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(options.dim_feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.dropout3 = nn.Dropout(dropout)
        self.normalize_before = options.normalize_before

    def forward(self, tgt: Tensor, key: Tensor, memory: Tensor, mask: Tensor, query_pos: Tensor) -> Tensor:
        """tgt, query_pos (B, Q, d); key (memory with positions) and memory (B, N, d); mask (B, N) -> (B, Q, d)."""
        if self.normalize_before:
            tgt = tgt + self._self_attention(self.norm1(tgt), query_pos)
            tgt = tgt + self._cross_attention(self.norm2(tgt), key, memory, mask, query_pos)
            return tgt + self._feed_forward(self.norm3(tgt))
        tgt = self.norm1(tgt + self._self_attention(tgt, query_pos))
        tgt = self.norm2(tgt + self._cross_attention(tgt, key, memory, mask, query_pos))
        return self.norm3(tgt + self._feed_forward(tgt))

    def _self_attention(self, tgt: Tensor, query_pos: Tensor) -> Tensor:
        q = tgt + query_pos
        return self.dropout1(self.self_attn(q, q, tgt, need_weights=False)[0])

    def _cross_attention(self, tgt: Tensor, key: Tensor, memory: Tensor, mask: Tensor, query_pos: Tensor) -> Tensor:
        out = self.multihead_attn(tgt + query_pos, key, memory, key_padding_mask=mask, need_weights=False)[0]
        return self.dropout2(out)

    def _feed_forward(self, tgt: Tensor) -> Tensor:
        return self.dropout3(self.linear2(self.dropout(F.relu(self.linear1(tgt)))))

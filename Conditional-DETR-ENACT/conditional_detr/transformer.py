"""The transformer of Conditional DETR (Meng et al., ICCV 2021) with ENACT in its encoder.

Shapes: L decoder layers, B images, N pixels, Q queries, d features, h heads.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.layers import MLP, in_full_precision
from common.models.positions import sine_embedding
from common.models.transformer import TransformerOptions
from enact import TransformerEncoder

from .attention import ProjectedAttention


class Transformer(nn.Module):
    """Encoder and decoder.

    Args:
        options: size and form.
        clustering: of the encoder: what :class:`enact.TransformerEncoder` takes beside sizes.
    """

    def __init__(self, options: TransformerOptions, **clustering: Any):
        super().__init__()
        self.d_model = options.d_model
        self.encoder = TransformerEncoder(**options.encoder(), **clustering)
        self.decoder = TransformerDecoder(options)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(
        self, src: Tensor, mask: Tensor, query_embed: Tensor, pos: Tensor, feature_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """src (B, N, d), mask (B, N) bool with True = padding, query_embed (Q, d), pos (B, N, d), feature_size H, W.

        Returns:
            What the decoder layers put out (L, B, Q, d), and the reference points (B, Q, 2), x and y in (0, 1).
        """
        memory = self.encoder(src, mask, pos, feature_size)
        query_pos = query_embed.expand(src.shape[0], -1, -1)
        return self.decoder(torch.zeros_like(query_pos), memory, mask, pos, query_pos)


class TransformerDecoder(nn.Module):
    """A stack of decoder layers whose cross-attention is steered by the reference point of each query (section 3.3)."""

    def __init__(self, options: TransformerOptions):
        super().__init__()
        d_model = options.d_model
        self.layers = nn.ModuleList(TransformerDecoderLayer(options, first=i == 0) for i in range(options.dec_layers))
        self.norm = nn.LayerNorm(d_model)
        self.query_scale = MLP(d_model, d_model, d_model, num_layers=2)
        # The first layer does not scale: where it is the only one, no gradient would come, which stops several processes.
        self.query_scale.requires_grad_(options.dec_layers > 1)
        self.ref_point_head = MLP(d_model, d_model, 2, num_layers=2)

    def forward(self, tgt: Tensor, memory: Tensor, mask: Tensor, pos: Tensor, query_pos: Tensor) -> tuple[Tensor, Tensor]:
        """tgt, query_pos (B, Q, d); memory, pos (B, N, d); mask (B, N) -> (L, B, Q, d) and reference points (B, Q, 2)."""
        reference = in_full_precision(self.ref_point_head, query_pos).sigmoid()
        x, y = (2 * math.pi * reference).unbind(-1)
        width = tgt.shape[-1] // 2
        sine = torch.cat((sine_embedding(y, width), sine_embedding(x, width)), dim=-1)
        outputs = []
        for i, layer in enumerate(self.layers):
            scaled = sine if i == 0 else sine * self.query_scale(tgt)
            tgt = layer(tgt, memory, mask, pos, query_pos, scaled)
            outputs.append(self.norm(tgt))
        return torch.stack(outputs), reference


class TransformerDecoderLayer(nn.Module):
    """Self-attention, conditional cross-attention, feed-forward network; post-norm.

    Args:
        first: the first layer adds the positions to the content of its cross-attention too, since its queries have none yet.
    """

    def __init__(self, options: TransformerOptions, first: bool):
        super().__init__()
        d_model, nhead, dropout = options.d_model, options.nhead, options.dropout
        self.sa_qcontent_proj = nn.Linear(d_model, d_model)
        self.sa_qpos_proj = nn.Linear(d_model, d_model)
        self.sa_kcontent_proj = nn.Linear(d_model, d_model)
        self.sa_kpos_proj = nn.Linear(d_model, d_model)
        self.sa_v_proj = nn.Linear(d_model, d_model)
        self.self_attn = ProjectedAttention(d_model, nhead, dropout)

        self.ca_qcontent_proj = nn.Linear(d_model, d_model)
        self.ca_qpos_proj = nn.Linear(d_model, d_model) if first else None
        self.ca_kcontent_proj = nn.Linear(d_model, d_model)
        self.ca_kpos_proj = nn.Linear(d_model, d_model)
        self.ca_v_proj = nn.Linear(d_model, d_model)
        self.ca_qpos_sine_proj = nn.Linear(d_model, d_model)
        self.cross_attn = ProjectedAttention(d_model, nhead, dropout)

        self.linear1 = nn.Linear(d_model, options.dim_feedforward)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(options.dim_feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.dropout3 = nn.Dropout(dropout)

    def forward(self, tgt: Tensor, memory: Tensor, mask: Tensor, pos: Tensor, query_pos: Tensor, sine: Tensor) -> Tensor:
        """tgt, query_pos, sine (B, Q, d); memory, pos (B, N, d); mask (B, N) -> (B, Q, d)."""
        tgt = self.norm1(tgt + self.dropout1(self._self_attention(tgt, query_pos)))
        tgt = self.norm2(tgt + self.dropout2(self._cross_attention(tgt, memory, mask, pos, query_pos, sine)))
        return self.norm3(tgt + self.dropout3(self.linear2(self.dropout(F.relu(self.linear1(tgt))))))

    def _self_attention(self, tgt: Tensor, query_pos: Tensor) -> Tensor:
        split = self.self_attn.split
        q = self.sa_qcontent_proj(tgt) + self.sa_qpos_proj(query_pos)
        k = self.sa_kcontent_proj(tgt) + self.sa_kpos_proj(query_pos)
        return self.self_attn(split(q), split(k), split(self.sa_v_proj(tgt)))

    def _cross_attention(self, tgt: Tensor, memory: Tensor, mask: Tensor, pos: Tensor, query_pos: Tensor, sine: Tensor) -> Tensor:
        """Content and position are separate halves of each head of the queries and keys (section 3.3)."""
        split = self.cross_attn.split
        q, k, k_pos = self.ca_qcontent_proj(tgt), self.ca_kcontent_proj(memory), self.ca_kpos_proj(pos)
        if self.ca_qpos_proj is not None:
            q, k = q + self.ca_qpos_proj(query_pos), k + k_pos
        query = torch.cat((split(q), split(self.ca_qpos_sine_proj(sine))), dim=-1)
        key = torch.cat((split(k), split(k_pos)), dim=-1)
        return self.cross_attn(query, key, split(self.ca_v_proj(memory)), mask)

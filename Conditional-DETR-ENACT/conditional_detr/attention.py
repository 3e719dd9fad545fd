"""Attention between inputs that were projected already.

Shapes: B images, L queries, N keys, h heads, d features; queries and keys may be wider than values.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class ProjectedAttention(nn.Module):
    """Multi-head attention without input projections, scaled by the width of a head of the queries.

    Args:
        embed_dim: d, the width of the values.
        num_heads: h.
        dropout: of the attention weights.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """query (B, h, L, w), key (B, h, N, w), value (B, h, N, d / h); mask (B, N) with True = padding -> (B, L, d)."""
        mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]
        out = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """(B, L, d) -> (B, h, L, d / h)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

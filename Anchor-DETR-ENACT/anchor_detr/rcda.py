"""Row-column decoupled attention (Anchor DETR, section 3.4), plain and over ENACT's clusters.

Shapes: B images, L queries, H x W pixels, N = H * W, M clusters, d features, h heads, d_h = d / h.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from enact import Clusters, EntropyClustering
from enact.attention import mask_of_keys, masked


class RCDA(nn.Module):
    """Attention to the pixels (y, x) with the weights ``softmax_x(q_row . k_row[x]) * softmax_y(q_col . k_col[y])``.

    The two factors are contracted with the values one after the other; their product, (L, N), is never formed.

    Args:
        embed_dim: d.
        num_heads: h.
    """

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(5 * embed_dim, embed_dim))  # q_row, q_col, k_row, k_col, v
        self.in_proj_bias = nn.Parameter(torch.zeros(5 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query_row: Tensor, query_col: Tensor, key_row: Tensor, key_col: Tensor, value: Tensor, mask: Tensor
    ) -> Tensor:
        """query_row, query_col (B, L, d); key_row, key_col, value (B, H, W, d) -> (B, L, d).

        Args:
            mask: (B, H, W) bool, True = padding, which lies at the right and bottom. The keys of a column are averaged over its
                valid rows and those of a row over its valid columns.
        """
        return self.attend(query_row, query_col, *average_keys(key_row, key_col, mask), value, mask)

    def attend(self, query_row: Tensor, query_col: Tensor, key_row: Tensor, key_col: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """As :meth:`forward`, with keys that are averaged already: key_row (B, W, d), key_col (B, H, d)."""
        column_mask, row_mask = mask[:, 0, :], mask[:, :, 0]
        q_row, q_col, k_row, k_col, v = self._project(query_row, query_col, key_row, key_col, value)
        heads = [self._split(x) for x in (q_row, q_col, k_row, k_col)]
        v = v.unflatten(-1, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)
        # On a CPU a few heads at a time: what lies between the sums fits into memory at hand, and the system is not asked for more.
        parts = zip(*(x.split(self.num_heads if v.is_cuda else 2, dim=1) for x in (*heads, v)))
        outs = [decoupled_attention(*part, column_mask, row_mask) for part in parts]
        out = torch.cat(outs, dim=1) if len(outs) > 1 else outs[0]
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _project(self, *inputs: Tensor) -> list[Tensor]:
        weights, biases = self.in_proj_weight.chunk(5), self.in_proj_bias.chunk(5)
        return [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases)]

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, d) -> (B, h, L, d_h)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class ClusteredRCDA(RCDA):
    """RCDA of an encoder over clusters of pixels; the regions and weights come from the row keys alone (paper, 4.2 and 4.4).

    Args:
        embed_dim, num_heads: as in :class:`RCDA`.
        clustering: "region" or "region+": the weights of RCDA are the softmax over all (y, x) of
            ``q_row . k_row[x] + q_col . k_col[y]``, of averaged keys; over clusters it is the softmax over m of
            ``q_row . k_row[m] + q_col . k_col[m]``, of these keys pooled. With one pixel per cluster it is RCDA. "window", the
            released code's form: each pixel's own keys, and two softmaxes over m, of queries averaged over rows and over columns,
            multiplied.
        others: the other options of :class:`enact.EntropyClustering`.
    """

    def __init__(self, embed_dim: int, num_heads: int, clustering: str = "region", **others: Any):
        super().__init__(embed_dim, num_heads)
        self.W_prob = EntropyClustering(embed_dim, clustering, **others)

    def forward(
        self, query_row: Tensor, query_col: Tensor, key_row: Tensor, key_col: Tensor, value: Tensor, mask: Tensor
    ) -> Tensor:
        """As :meth:`RCDA.forward`, for L = N queries in the order of the pixels."""
        clusters = self.W_prob(key_row.flatten(1, 2), mask.flatten(1), tuple(mask.shape[1:]))
        value = clusters.pool(value.flatten(1, 2))
        seen = mask_of_keys(clusters, None, clusters.index.shape[1], 0, value.dtype)
        if self.W_prob.clustering == "region":
            q_row, q_col, k_row, k_col, v = self._project(query_row, query_col, *average_keys(key_row, key_col, mask), value)
            heads = [self._split(x) for x in (q_row, q_col, *pool_lines(clusters, k_row, k_col), v)]
            out = joint_attention(*heads, seen)
        else:
            keys, size = [clusters.pool(x.flatten(1, 2)) for x in (key_row, key_col)], tuple(mask.shape[1:])
            q_row, q_col, k_row, k_col, v = self._project(query_row, query_col, *keys, value)
            q_row = _mean_of_valid(q_row.unflatten(1, size), mask[:, :, 0], dim=1)
            q_col = _mean_of_valid(q_col.unflatten(1, size), mask[:, 0, :], dim=2)
            heads = [self._split(x) for x in (q_row, q_col, k_row, k_col, v)]
            out = factored_attention(*heads, seen)
        return self.out_proj(out.transpose(1, 2).flatten(2))


def pool_lines(clusters: Clusters, k_row: Tensor, k_col: Tensor) -> tuple[Tensor, Tensor]:
    """Keys of the columns (B, W, d) and of the rows (B, H, d), which all their pixels have, pooled: (B, M, d) each.

    They are few, so that they are projected before.
    """
    width, height = k_row.shape[1], k_col.shape[1]
    column = torch.arange(width, device=k_row.device).expand(height, -1).flatten()
    row = torch.arange(height, device=k_row.device)[:, None].expand(-1, width).flatten()
    of_columns, of_rows = clusters.shares(column, width), clusters.shares(row, height)
    return of_columns.to(k_row.dtype) @ k_row, of_rows.to(k_col.dtype) @ k_col


def average_keys(key_row: Tensor, key_col: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (B, H, W, d) averaged over the valid pixels of each column, (B, W, d), and of each row, (B, H, d); mask (B, H, W).

    Before they are projected: the mean of projections is the projection of the mean, of one line of pixels instead of all.
    """
    return _mean_of_valid(key_row, mask[:, :, 0], dim=1), _mean_of_valid(key_col, mask[:, 0, :], dim=2)


def decoupled_attention(
    q_row: Tensor, q_col: Tensor, k_row: Tensor, k_col: Tensor, v: Tensor, column_mask: Tensor, row_mask: Tensor
) -> Tensor:
    """``out[q] = sum_y A_col[q, y] sum_x A_row[q, x] v[y, x]``.

    The longer side is contracted first: what lies between the two sums has the length of the other.

    Args:
        q_row, q_col: (B, h, L, d_h).
        k_row: (B, h, W, d_h), k_col: (B, h, H, d_h), v: (B, h, H, W, d_h).
        column_mask: (B, W), row_mask: (B, H), True = padding.

    Returns:
        (B, h, L, d_h).
    """
    if v.shape[2] > v.shape[3]:
        q_row, q_col, k_row, k_col, v = q_col, q_row, k_col, k_row, v.transpose(2, 3)
        column_mask, row_mask = row_mask, column_mask
    height, head_dim = v.shape[2], v.shape[4]
    lines = F.scaled_dot_product_attention(q_row, k_row, v.transpose(2, 3).flatten(3), ~column_mask[:, None, None, :])
    logits = (q_col * head_dim**-0.5) @ k_col.transpose(-2, -1)
    weights = logits.masked_fill(row_mask[:, None, None, :], -torch.inf).softmax(-1)
    return (weights[..., None, :] @ lines.unflatten(-1, (height, head_dim))).squeeze(-2)


def joint_attention(q_row: Tensor, q_col: Tensor, k_row: Tensor, k_col: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """One softmax over the clusters of ``q_row . k_row + q_col . k_col``; queries (B, h, L, d_h), the others (B, h, M, d_h)."""
    q, k = torch.cat((q_row, q_col), dim=-1), torch.cat((k_row, k_col), dim=-1)
    head_dim = v.shape[-1]
    v = F.pad(v, (0, head_dim))  # the fused kernels take values as wide as the keys, and the (L, M) weights are never in memory
    return F.scaled_dot_product_attention(q, k, v, seen, scale=head_dim**-0.5)[..., :head_dim]


def factored_attention(q_row: Tensor, q_col: Tensor, k_row: Tensor, k_col: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """``out[y, x] = sum_m A_col[y, m] A_row[x, m] v[m]`` for q_row (B, h, W, d_h) and q_col (B, h, H, d_h): (B, h, H * W, d_h)."""

    def weights(q: Tensor, k: Tensor) -> Tensor:
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return masked(logits, seen).softmax(-1)

    a_row, a_col = weights(q_row, k_row), weights(q_col, k_col)
    out = a_row[:, :, None] @ (a_col[..., None] * v[:, :, None])  # (B, h, 1, W, M) @ (B, h, H, M, d_h)
    return out.flatten(2, 3)


def _mean_of_valid(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Mean of x (B, H, W, d) over rows (dim 1) or columns (dim 2); mask (B, H) or (B, W), True = padding."""
    valid = (~mask).to(x.dtype)
    weight = valid / valid.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bhwd,bh->bwd" if dim == 1 else "bhwd,bw->bhd", x, weight)

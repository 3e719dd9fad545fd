"""Clustered attention of hosts that keep their own module, with its projections, and hand over q, k and v of each head.

Pooling after an affine projection equals pooling before it. Where the host norms or rotates the keys of each pixel after the
projection (QK norm, rotary positions), what is pooled are the normed and rotated keys.

Shapes: B images, L queries, N keys, P at the front of which stay as they are, M clusters, d features, h heads, d_h features each.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import mask_of_keys, pool_keys, weights_of_keys
from ..clustering import EntropyClustering


def add_scores(attention: nn.Module, projection: nn.Linear, prefix: int, options: dict[str, Any]) -> None:
    """Gives an attention ``W_prob``, which scores the inputs of ``projection`` as clustered attention scores its keys."""
    weight = projection.weight
    attention.W_prob = EntropyClustering(weight.shape[1], **options, device=weight.device, dtype=weight.dtype)
    attention.W_prob.train(attention.training)
    attention.prefix = prefix


def attend(
    attention: nn.Module,
    key: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``scaled_dot_product_attention`` over clusters.

    Args:
        attention: one that :func:`add_scores` has seen.
        key: (B, N, d), what was projected to k; it is scored.
        q: (B, h, L, d_h); k, v: (B, h, N, d_h).
        mask: broadcastable to (B, h, L, N), as ``scaled_dot_product_attention`` takes it; it may mask whole keys.
        dropout_p: of the attention weights.
        scale: of the logits; 1 / sqrt(d_h) by default.
        need_weights: also return the weight of every original key.

    Returns:
        (B, h, L, d_h), and (B, h, L, N) or None.

    Raises:
        ValueError: the mask differs between queries or heads, or adds something other than 0 to the logits that it keeps.
    """
    prefix = attention.prefix
    padding = None if mask is None else padding_of(mask, *k.shape[::2])
    clusters = attention.W_prob(key[:, prefix:], None if padding is None else padding[:, prefix:])
    length = k.shape[2]
    k, v = (
        pool_keys(x.transpose(1, 2).flatten(2), clusters, prefix).unflatten(2, (x.shape[1], -1)).transpose(1, 2) for x in (k, v)
    )
    seen = mask_of_keys(clusters, padding, length, prefix, q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, seen, dropout_p, scale=scale)
    return out, weights_of_keys(q, k, seen, clusters, prefix, False, scale) if need_weights else None


def padding_of(mask: Tensor, batch: int, length: int) -> Tensor:
    """(B, N) bool, True = padding, from a mask that broadcasts to (B, h, L, N): bool, True = seen, or float, added to the logits.

    Raises:
        ValueError: it is not one of whole keys; not looked at in a graph, which the question would break.
    """
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
    seen, mask = (x[(None,) * (4 - x.dim())] for x in (seen, mask))
    keys = seen[:, :1, :1]
    if not torch.compiler.is_compiling() and not _is_of_keys(mask, seen):
        raise ValueError(
            "clustered attention takes masks of whole keys, such as padding: a mask or bias between pixels (causal, windowed, of "
            "relative positions) has no meaning between clusters"
        )
    return ~keys[:, 0, 0].expand(batch, length)


def _is_of_keys(mask: Tensor, seen: Tensor) -> bool:
    """Whether a mask (B, h, L, N), of which ``seen`` is kept, hides whole keys and adds nothing to others.

    The host waits for the answer, but for a bool mask without heads and queries.
    """
    if mask.dtype == torch.bool:
        return seen.shape[1:3] == (1, 1) or bool((seen == seen[:, :1, :1]).all())
    return not bool(((seen != seen[:, :1, :1]) | seen & (mask != 0)).any())

"""Multi-head attention over clustered keys and values (paper, section 3.1, eq. 1 and 2).

Shapes: B images, L queries, N keys, P at the front and U at the end of which stay as they are, M clusters, d features, h heads.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clustering import Clusters, EntropyClustering


class ClusteredAttention(nn.MultiheadAttention):
    """A drop-in for ``nn.MultiheadAttention`` that pools keys and values into clusters before they are projected.

    Parameters are those of ``nn.MultiheadAttention`` under the same names, plus ``W_prob.weight`` (1, d) and ``W_prob.bias`` (1,):
    the weights of a plain attention load with ``strict=False`` and are a warm start.

    Args:
        embed_dim, num_heads, dropout, bias, batch_first: as in ``nn.MultiheadAttention``.
        unclustered: U, so many keys at the end are no pixels and stay as they are, behind the clusters of the others.
        prefix: P, so many keys at the front, such as class and register tokens, stay as they are, before the clusters.
        options: how to cluster: ``clustering``, ``smoothing_sigma`` and the others of :class:`EntropyClustering`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        unclustered: int = 0,
        prefix: int = 0,
        device=None,
        dtype=None,
        **options: Any,
    ):
        super().__init__(embed_dim, num_heads, dropout, bias, batch_first=batch_first, device=device, dtype=dtype)
        self.unclustered = unclustered
        self.prefix = prefix
        self.W_prob = EntropyClustering(embed_dim, device=device, dtype=dtype, **options)
        # In evaluation nn.TransformerEncoderLayer hands the weights of an attention with this flag to a fused kernel without ever
        # calling its forward, which would leave the clustering out.
        self._qkv_same_embed_dim = False

    @classmethod
    def from_attention(cls, attention: nn.MultiheadAttention, **options: Any) -> "ClusteredAttention":
        """A clustered attention that shares the parameters of a plain one.

        Args:
            attention: the plain one.
            options: of the class, but for those that the plain one has.

        Raises:
            ValueError: the attention has key or value biases, an added zero key, or keys of another width than its queries.
        """
        if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError("clustered attention supports neither kdim/vdim nor add_bias_kv nor add_zero_attn")
        weight = attention.in_proj_weight
        clustered = cls(
            attention.embed_dim,
            attention.num_heads,
            dropout=attention.dropout,
            bias=attention.in_proj_bias is not None,
            batch_first=attention.batch_first,
            device=weight.device,
            dtype=weight.dtype,
            **options,
        )
        clustered.in_proj_weight, clustered.in_proj_bias = weight, attention.in_proj_bias
        clustered.out_proj = attention.out_proj
        return clustered.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        feature_size: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``; batched (B, L, d) or (L, B, d) by ``batch_first``, or unbatched (L, d).

        Args:
            key_padding_mask: (B, N) bool, True = padding; or float, with -inf or the least number of its type = padding.
            need_weights: also return the weight of every original key: that of its cluster times its share of the cluster.
            feature_size: H, W of the map of the clustered keys, for a ``scan`` other than "raster"; without, the map is square.

        Raises:
            ValueError: with ``attn_mask`` or ``is_causal``: a mask between pixels has no meaning between clusters.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("clustered attention takes no attn_mask and cannot be causal: pass a key_padding_mask instead")
        batched = query.dim() == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        if key_padding_mask is not None and key_padding_mask.is_floating_point():
            key_padding_mask = key_padding_mask <= torch.finfo(key_padding_mask.dtype).min

        pixels = slice(self.prefix, key.shape[1] - self.unclustered)
        padding = None if key_padding_mask is None else key_padding_mask[:, pixels]
        clusters = self.W_prob(key[:, pixels], padding, feature_size)
        q, k, v = self._project(query, *(pool_keys(x, clusters, self.prefix) for x in (key, value)))
        mask = mask_of_keys(clusters, key_padding_mask, key.shape[1], self.prefix, q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=self.dropout if self.training else 0.0)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        weights = weights_of_keys(q, k, mask, clusters, self.prefix, average_attn_weights) if need_weights else None

        if not batched:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """(B, L, d), (B, M, d), (B, M, d) -> the same, projected and split into heads (B, h, -1, d / h)."""
        weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [
            F.linear(x, w, b).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        ]


def pool_keys(x: Tensor, clusters: Clusters, prefix: int) -> Tensor:
    """Keys or values (B, N, d), or their projections -> (B, P + M + U, d): the pixels pooled, the others as they are.

    The weights of a cluster sum to 1, so that an affine projection may come before or after.
    """
    front, pixels, end = x.tensor_split([prefix, prefix + clusters.index.shape[1]], dim=1)
    return torch.cat((front, clusters.pool(pixels), end), dim=1)


def mask_of_keys(
    clusters: Clusters, key_padding_mask: Tensor | None, length: int, prefix: int, dtype: torch.dtype
) -> Tensor | None:
    """(B, 1, 1, P + M + U) for ``length`` = N keys: bool, True = seen, and None where all are; or, where clusters have a bias, of
    the queries' ``dtype``, to be added to the logits.
    """
    present = clusters.present()
    batch, pixels = clusters.index.shape
    if length > pixels and not (present is None and key_padding_mask is None):
        device = clusters.count.device
        present = torch.ones(batch, clusters.size, dtype=torch.bool, device=device) if present is None else present
        others = torch.ones(batch, length - pixels, dtype=torch.bool, device=device)
        if key_padding_mask is not None:
            front, padding, end = key_padding_mask.tensor_split([prefix, prefix + pixels], dim=1)
            present = present & ~padding.all(1, keepdim=True)  # an image may be without any pixel here
            others = ~torch.cat((front, end), dim=1)
        present = torch.cat((others[:, :prefix], present, others[:, prefix:]), dim=1)
    if clusters.bias is not None:
        bias = F.pad(clusters.bias, (prefix, length - pixels - prefix)).to(dtype)
        present = bias if present is None else bias.masked_fill(~present, -torch.inf)
    return None if present is None else present[:, None, None, :]


def masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Logits (B, h, L, M) with a mask of :func:`mask_of_keys`."""
    if mask is None or mask.is_floating_point():
        return logits if mask is None else logits + mask
    return logits.masked_fill(~mask, -torch.inf)


def weights_of_keys(
    q: Tensor, k: Tensor, mask: Tensor | None, clusters: Clusters, prefix: int, average: bool, scale: float | None = None
) -> Tensor:
    """Attention weights of the N original keys, (B, L, N) or (B, h, L, N); ``scale``: of the logits, by default 1 / sqrt(d / h)."""
    logits = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = masked(logits, mask).softmax(-1)
    if average:
        weights = weights.mean(1, keepdim=True)
    front, of_clusters, end = weights.tensor_split([prefix, prefix + clusters.size], dim=-1)
    index = clusters.index[:, None, None, :].expand(*weights.shape[:3], -1)
    of_pixels = of_clusters.gather(-1, index) * clusters.weight[:, None, None, :].to(weights.dtype)
    weights = torch.cat((front, of_pixels, end), dim=-1)
    return weights.squeeze(1) if average else weights

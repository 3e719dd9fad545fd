"""The transformer encoder of DETR with clustered or plain self-attention.

Shapes: B images, N pixels, d features.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .attention import ClusteredAttention


def build_self_attention(
    d_model: int, nhead: int, dropout: float, clustering: str, unclustered: int = 0, **options: Any
) -> nn.MultiheadAttention:
    """Clustered or, with "none", plain; arguments as of :class:`TransformerEncoderLayer`."""
    if clustering == "none":
        return nn.MultiheadAttention(d_model, nhead, dropout, batch_first=True)
    return ClusteredAttention(d_model, nhead, dropout, batch_first=True, unclustered=unclustered, clustering=clustering, **options)


def attend(
    self_attn: nn.MultiheadAttention,
    q: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    feature_size: tuple[int, int] | None,
) -> Tensor:
    """What :func:`build_self_attention` built, of queries that are the keys, too: q, value (B, N, d) -> (B, N, d)."""
    size = {"feature_size": feature_size} if isinstance(self_attn, ClusteredAttention) else {}
    return self_attn(q, q, value, key_padding_mask=key_padding_mask, need_weights=False, **size)[0]


class TransformerEncoderLayer(nn.Module):
    """Self-attention, normalisation, feed-forward network, normalisation (paper, section 3.1).

    Args:
        d_model, nhead, dim_feedforward, dropout, activation ("relu" or "gelu"): as in ``nn.TransformerEncoderLayer``.
        normalize_before: normalise before each part (pre-norm) instead of after it.
        clustering: "region", "region+", "window", or "none" for plain attention.
        unclustered: so many keys at the end stay as they are, see :class:`ClusteredAttention`.
        options: the other ones of :class:`EntropyClustering`.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        normalize_before: bool = False,
        clustering: str = "region",
        unclustered: int = 0,
        **options: Any,
    ):
        super().__init__()
        self.self_attn = build_self_attention(d_model, nhead, dropout, clustering, unclustered=unclustered, **options)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.activation = getattr(F, activation)
        self.normalize_before = normalize_before

    def forward(
        self,
        src: Tensor,
        key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        feature_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """src (B, N, d), key_padding_mask (B, N) bool with True = padding, pos (B, N, d), feature_size H, W -> (B, N, d).

        The size matters for a ``scan`` other than "raster" alone.
        """
        if self.normalize_before:
            src = src + self._attend(self.norm1(src), key_padding_mask, pos, feature_size)
            return src + self._feed_forward(self.norm2(src))
        src = self.norm1(src + self._attend(src, key_padding_mask, pos, feature_size))
        return self.norm2(src + self._feed_forward(src))

    def _attend(
        self, src: Tensor, key_padding_mask: Tensor | None, pos: Tensor | None, feature_size: tuple[int, int] | None
    ) -> Tensor:
        q = src if pos is None else src + pos
        return self.dropout1(attend(self.self_attn, q, src, key_padding_mask, feature_size))

    def _feed_forward(self, src: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(src)))))


class TransformerEncoder(nn.Module):
    """A stack of :class:`TransformerEncoderLayer`, with a closing LayerNorm when ``normalize_before``.

    Args:
        num_layers: how many layers.
        The others: as in :class:`TransformerEncoderLayer`.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        num_layers: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        normalize_before: bool = False,
        **options: Any,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(
                d_model=d_model,
                nhead=nhead,
                dim_feedforward=dim_feedforward,
                dropout=dropout,
                activation=activation,
                normalize_before=normalize_before,
                **options,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model) if normalize_before else nn.Identity()

    def forward(
        self,
        src: Tensor,
        key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        feature_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Arguments as of the layers -> memory (B, N, d)."""
        for layer in self.layers:
            src = layer(src, key_padding_mask, pos, feature_size)
        return self.norm(src)

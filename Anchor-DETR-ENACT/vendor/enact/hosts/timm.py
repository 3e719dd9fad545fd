"""timm >= 1.0.16: the attention of ViT, DeiT, DINOv2, SigLIP, and, with rotary positions, of EVA-02 and DINOv3.

These compute q, k and v from one input and end in ``scaled_dot_product_attention``; what they do in between (QK norm, rotation,
gates) is left to them, and only that last call is replaced.
"""

from collections.abc import Callable, Iterable
from typing import Any

from timm.layers import Attention, AttentionRope
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .projected import add_scores, attend


class _OverClusters(TorchFunctionMode):
    """While it lasts, ``scaled_dot_product_attention`` is that over clusters of ``key``, the attention's input (B, N, d)."""

    def __init__(self, attention: nn.Module, key: Tensor):
        super().__init__()
        self.attention, self.key = attention, key

    def __torch_function__(self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        return self._attend(*args, **kwargs) if func is F.scaled_dot_product_attention else func(*args, **kwargs)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False
    ) -> Tensor:
        if is_causal:
            raise ValueError("clustered attention cannot be causal: pass an attn_mask of whole keys, or none")
        return attend(self.attention, self.key, q, k, v, attn_mask, dropout_p)[0]


class _Clustered:
    """Before a class of timm: the same attention over clusters. Modules get it by changing their class, so that all else stays."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with _OverClusters(self, x):
            return super().forward(x, *args, **kwargs)


class TimmClusteredAttention(_Clustered, Attention):
    pass


class TimmClusteredAttentionRope(_Clustered, AttentionRope):
    pass


class TimmClusteredEvaAttention(_Clustered, EvaAttention):
    pass


CLUSTERED = {
    Attention: TimmClusteredAttention,
    AttentionRope: TimmClusteredAttentionRope,
    EvaAttention: TimmClusteredEvaAttention,
}


def is_attention(module: nn.Module) -> bool:
    return type(module) in CLUSTERED


def prefix_of(attention: nn.Module, ancestors: Iterable[nn.Module]) -> int:
    """``num_prefix_tokens`` of the attention or of the innermost module that has it; 0 where none does."""
    return next((m.num_prefix_tokens for m in (attention, *ancestors) if hasattr(m, "num_prefix_tokens")), 0)


def cluster(attention: nn.Module, prefix: int, options: dict[str, Any]) -> nn.Module:
    fused = getattr(attention, "qkv", None)
    add_scores(attention, attention.k_proj if fused is None else fused, prefix, options)
    attention.fused_attn = True  # the call that is replaced
    attention.__class__ = CLUSTERED[type(attention)]
    return attention

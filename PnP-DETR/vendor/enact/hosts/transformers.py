"""Hugging Face's transformers >= 5.20: the encoders of the DETRs that have dense attention, ViT, DINOv2 and DINOv3.

Their attentions choose the function that they compute by from their ``config``, by its name; ours is "enact" there. Masks are
those of the model's own implementation, "eager" or "sdpa".
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from .projected import add_scores, attend

NAME = "enact"
CLASS_TOKENS = {
    "ConditionalDetrSelfAttention": 0,
    "DFineSelfAttention": 0,
    "DetrSelfAttention": 0,
    "RTDetrSelfAttention": 0,
    "RTDetrV2SelfAttention": 0,
    "DINOv3ViTAttention": 1,
    "Dinov2Attention": 1,
    "Dinov2WithRegistersAttention": 1,
    "ViTAttention": 1,
}


def is_attention(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ in CLASS_TOKENS and kind.__module__.startswith("transformers.") and hasattr(module, "k_proj")


def prefix_of(attention: nn.Module, ancestors: Iterable[nn.Module]) -> int:
    """The class token and the registers; 0 for a DETR."""
    tokens = CLASS_TOKENS[type(attention).__name__]
    return tokens and tokens + getattr(attention.config, "num_register_tokens", 0)


def cluster(attention: nn.Module, prefix: int, options: dict[str, Any]) -> nn.Module:
    add_scores(attention, attention.k_proj, prefix, options)
    attention.config = copy.copy(attention.config)  # the others in the model keep theirs
    attention.config._attn_implementation = {"": NAME}  # of this config, not of those inside it
    attention.register_forward_pre_hook(_pass_keys, with_kwargs=True)
    return attention


def _pass_keys(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The input of the key projection, which is scored, for :func:`_attend`: pixels, in a DETR with their positions."""
    key = args[0] if args else kwargs["hidden_states"]
    positions = kwargs.get("position_embeddings")
    if isinstance(positions, Tensor):  # else rotary ones, which do not enter the projection
        key = key + positions
    return args, kwargs | {"enact_key": key}


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    enact_key: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function as transformers calls it: (B, L, h, d_h), and the weights where they are asked for."""
    if attention_mask is not None and attention_mask.dim() == 2:  # (B, N), 1 = seen, as flash attention takes it
        attention_mask = attention_mask[:, None, None].to(torch.bool)
    out, weights = attend(module, enact_key, query, key, value, attention_mask, dropout, scaling, output_attentions)
    return out.transpose(1, 2).contiguous(), weights


AttentionInterface.register(NAME, _attend)

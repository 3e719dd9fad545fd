"""The weights of the authors' released code.

d: features, d_h: features of a head.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def reveal_clustering(names: Iterable[str]) -> dict[str, str]:
    """What the names of a detector's weights tell about ``clustering``: "none" without a probability layer, "window" where the
    released code wrote them; nothing where this repository did, which does both with the same weights."""
    names = list(names)
    if not any(name.endswith("W_prob.weight") for name in names):
        return {"clustering": "none"}
    released = any(name.endswith(("self_attn.W_q.weight", "ENACT.W_prob.weight")) for name in names)
    return {"clustering": "window"} if released else {}


def convert_released_attention(state_dict: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Turns every released attention of a state dict into that of :class:`ClusteredAttention`; the rest stays as it is.

    The released attention has ``W_q``, ``W_k``, ``W_v``, ``W_o`` (d, d), does not scale the logits by 1 / sqrt(d_h), and divides
    its output by d_h instead. Both are constants and go into the projections: ``in_proj = [W_q * sqrt(d_h), W_k, W_v / d_h]``,
    weights and biases alike.
    """
    converted = dict(state_dict)
    for key in state_dict:
        if not key.endswith("W_q.weight"):
            continue
        layer = key.removesuffix("W_q.weight")
        head_dim = state_dict[key].shape[0] // num_heads
        for part in ("weight", "bias"):
            q, k, v = (converted.pop(f"{layer}W_{name}.{part}") for name in "qkv")
            converted[f"{layer}in_proj_{part}"] = torch.cat((q * head_dim**0.5, k, v / head_dim))
            converted[f"{layer}out_proj.{part}"] = converted.pop(f"{layer}W_o.{part}")
    return converted


def to_released_attention(state_dict: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """The inverse of :func:`convert_released_attention`, for every attention that has a ``W_prob``."""
    released = dict(state_dict)
    for key in state_dict:
        if not key.endswith("W_prob.weight"):
            continue
        layer = key.removesuffix("W_prob.weight")
        head_dim = state_dict[key].shape[1] // num_heads
        for part in ("weight", "bias"):
            q, k, v = released.pop(f"{layer}in_proj_{part}").chunk(3)
            for name, value in (("q", q / head_dim**0.5), ("k", k), ("v", v * head_dim)):
                released[f"{layer}W_{name}.{part}"] = value
            released[f"{layer}W_o.{part}"] = released.pop(f"{layer}out_proj.{part}")
    return released

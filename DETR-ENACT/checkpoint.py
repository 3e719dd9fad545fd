"""Published checkpoints of DETR and DETR + ENACT, as this model's state dict.

d: features, d_h: features of a head.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

NUM_HEADS = 8  # of every published checkpoint


def adapt(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames and converts the weights of a published checkpoint; the kind is recognised from the keys.

    DETR's own names are this model's. The released DETR + ENACT has ``W_q``, ``W_k``, ``W_v``, ``W_o`` (d, d) in each encoder
    layer; it does not scale the logits by 1 / sqrt(d_h) and divides the output of the attention by d_h instead. Both are constants
    and go into the projections: ``in_proj = [W_q * sqrt(d_h), W_k, W_v / d_h]``, weights and biases alike.
    """
    adapted = dict(state_dict)
    for key in state_dict:
        if not key.endswith("self_attn.W_q.weight"):
            continue
        layer = key.removesuffix("W_q.weight")
        head_dim = state_dict[key].shape[0] // NUM_HEADS
        for part in ("weight", "bias"):
            q, k, v = (adapted.pop(f"{layer}W_{name}.{part}") for name in "qkv")
            adapted[f"{layer}in_proj_{part}"] = torch.cat((q * head_dim**0.5, k, v / head_dim))
            adapted[f"{layer}out_proj.{part}"] = adapted.pop(f"{layer}W_o.{part}")
    return adapted

"""Published checkpoints of Anchor DETR and Anchor DETR + ENACT, as this model's state dict."""

from collections.abc import Mapping

import torch
from torch import Tensor


def adapt(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames and converts the weights of a published checkpoint; the kind is recognised from the keys.

    Anchor DETR's own names are this model's. The released Anchor DETR + ENACT keeps the probability layer beside the attention of
    an encoder layer, ``ENACT.W_prob``, and has the five parts of ``in_proj`` there in the order k_row, k_col, q_row, q_col, v.
    """
    adapted = dict(state_dict)
    for key in state_dict:
        if not key.endswith("ENACT.W_prob.weight"):
            continue
        layer = key.removesuffix("ENACT.W_prob.weight")
        for part in ("weight", "bias"):
            adapted[f"{layer}self_attn.W_prob.{part}"] = adapted.pop(f"{layer}ENACT.W_prob.{part}")
            k_row, k_col, q_row, q_col, v = adapted[f"{layer}self_attn.in_proj_{part}"].chunk(5)
            adapted[f"{layer}self_attn.in_proj_{part}"] = torch.cat((q_row, q_col, k_row, k_col, v))
    return adapted

"""Checkpoints of Anchor DETR and Anchor DETR + ENACT, published and our own.

The kind of a file is recognised from its keys. Anchor DETR's published names are this model's; the released Anchor DETR +
ENACT keeps the probability layer beside the attention of an encoder layer, ``ENACT.W_prob``, and has the five parts of
``in_proj`` there in the order k_row, k_col, q_row, q_col, v.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common.models.reveal import count_layers, reveal_backbone
from enact import reveal_clustering


def reveal(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options that a checkpoint's weights tell, and ``num_classes``; KeyError where it is not one of this detector's."""
    first = "transformer.encoder_layers.0."
    options = {
        "num_classes": len(state_dict["transformer.class_embed.0.bias"]),
        "hidden_dim": state_dict["transformer.pattern.weight"].shape[1],
        "num_query_pattern": state_dict["transformer.pattern.weight"].shape[0],
        "dim_feedforward": len(state_dict[f"{first}ffn.linear1.bias"]),
        "enc_layers": count_layers(state_dict, "transformer.encoder_layers."),
        "dec_layers": count_layers(state_dict, "transformer.decoder_layers."),
        "num_feature_levels": count_layers(state_dict, "input_proj."),
        "attention_type": "RCDA" if "transformer.adapt_pos1d.0.weight" in state_dict else "nn.MultiheadAttention",
        "spatial_prior": "learned" if "transformer.position.weight" in state_dict else "grid",
    }
    if options["spatial_prior"] == "learned":
        options["num_query_position"] = len(state_dict["transformer.position.weight"])
    return options | reveal_backbone(state_dict) | reveal_clustering(state_dict)


def adapt(state_dict: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """A checkpoint's weights as this model's; our own come back as they are."""
    adapted = dict(state_dict)
    for key in state_dict:
        if key.endswith("ENACT.W_prob.weight"):
            _move(adapted, key.removesuffix("ENACT.W_prob.weight"), "ENACT.W_prob", "self_attn.W_prob")
    return adapted


def export(state_dict: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """This model's weights under the published names."""
    exported = dict(state_dict)
    for key in state_dict:
        if key.endswith("self_attn.W_prob.weight"):
            _move(exported, key.removesuffix("self_attn.W_prob.weight"), "self_attn.W_prob", "ENACT.W_prob")
    return exported


def _move(weights: dict[str, Tensor], layer: str, old: str, new: str) -> None:
    """Renames the probability layer of an encoder layer; exchanges queries and keys in an RCDA, which goes both ways."""
    for part in ("weight", "bias"):
        weights[f"{layer}{new}.{part}"] = weights.pop(f"{layer}{old}.{part}")
        name = f"{layer}self_attn.in_proj_{part}"
        d = weights[f"{layer}self_attn.out_proj.bias"].numel()
        if len(weights[name]) == 5 * d:
            first, second, values = weights[name].split((2 * d, 2 * d, d))
            weights[name] = torch.cat((second, first, values))

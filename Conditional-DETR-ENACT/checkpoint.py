"""Checkpoints of Conditional DETR and Conditional DETR + ENACT, published and our own.

The kind of a file is recognised from its keys. Conditional DETR's published names are this model's; the released Conditional DETR +
ENACT has an attention of its own in the encoder: ``W_q``, ``W_k``, ``W_v``, ``W_o``.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vendor.common.backbone import reveal_backbone
from vendor.common.checkpoint import count_layers
from vendor.enact import convert_released_attention, to_released_attention


def reveal(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options that a checkpoint's weights tell, and ``num_classes``; KeyError where it is not one of this detector's."""
    options = {
        "num_classes": len(state_dict["class_embed.bias"]),
        "hidden_dim": state_dict["query_embed.weight"].shape[1],
        "num_queries": state_dict["query_embed.weight"].shape[0],
        "dim_feedforward": len(state_dict["transformer.encoder.layers.0.linear1.bias"]),
        "enc_layers": count_layers(state_dict, "transformer.encoder.layers."),
        "dec_layers": count_layers(state_dict, "transformer.decoder.layers."),
        "position_embedding": "learned" if "backbone.1.row_embed.weight" in state_dict else "sine",
    }
    if "transformer.encoder.layers.0.self_attn.W_q.weight" in state_dict:
        options["clustering"] = "window"
    elif "transformer.encoder.layers.0.self_attn.W_prob.weight" not in state_dict:
        options["clustering"] = "none"
    return options | reveal_backbone(state_dict)


def adapt(state_dict: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """A checkpoint's weights as this model's; our own come back as they are."""
    return convert_released_attention(state_dict, num_heads)


def export(state_dict: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """This model's weights under the published names."""
    return to_released_attention(state_dict, num_heads)

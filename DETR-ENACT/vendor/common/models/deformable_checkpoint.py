"""Checkpoints of the detectors with Deformable DETR's names, published and our own.

The published names are the models'. Two-stage files hold the heads a second time under the decoder, some those behind the encoder's
layers a second time under the encoder.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .reveal import count_layers, reveal_backbone

HEADS = ("class_embed", "bbox_embed")
COPIES = tuple(f"transformer.{part}.{head}." for part in ("decoder", "encoder") for head in HEADS)


def reveal_deformable(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options that the weights of such a detector tell, and ``num_classes``.

    Raises:
        KeyError: the names are others.
    """
    return {
        "num_classes": len(state_dict["class_embed.0.bias"]),
        "hidden_dim": state_dict["transformer.level_embed"].shape[1],
        "dim_feedforward": len(state_dict["transformer.encoder.layers.0.linear1.bias"]),
        "enc_layers": count_layers(state_dict, "transformer.encoder.layers."),
        "dec_layers": count_layers(state_dict, "transformer.decoder.layers."),
        "num_feature_levels": count_layers(state_dict, "input_proj."),
    } | reveal_backbone(state_dict)


def without_copies(state_dict: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """A checkpoint's weights as a model's; our own come back as they are. The number of attention heads has no part in it."""
    return {k: v for k, v in state_dict.items() if not k.startswith(COPIES)}


def with_copies(state_dict: Mapping[str, Tensor], part: str, first: int = 0) -> dict[str, Tensor]:
    """A model's weights, and its heads from number ``first`` on a second time, under ``part``: "decoder" or "encoder"."""
    copied = dict(state_dict)
    for key, value in state_dict.items():
        head, _, rest = key.partition(".")
        index, _, rest = rest.partition(".")
        if head in HEADS and int(index) >= first:
            copied[f"transformer.{part}.{head}.{int(index) - first}.{rest}"] = value
    return copied

"""Checkpoints of Deformable DETR and Sparse DETR, published and our own.

The published names are this model's. Two-stage files hold the heads a second time under the decoder, those behind the encoder's
layers a second time under the encoder; some files hold what a counter of operations left in them.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.models.reveal import count_layers, reveal_backbone

COPIES = ("transformer.decoder.class_embed.", "transformer.decoder.bbox_embed.")
ENCODER_COPIES = ("transformer.encoder.class_embed.", "transformer.encoder.bbox_embed.")
COUNTERS = ("total_params", "total_ops")


def reveal(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options that a checkpoint's weights tell, and ``num_classes``; KeyError where it is not one of this detector's."""
    hidden_dim = state_dict["transformer.level_embed"].shape[1]
    two_stage = "transformer.enc_output.weight" in state_dict
    layers = {"enc_layers": _layers(state_dict, "encoder"), "dec_layers": _layers(state_dict, "decoder")}
    heads = count_layers(state_dict, "class_embed.")
    options = layers | {
        "num_classes": len(state_dict["class_embed.0.bias"]),
        "hidden_dim": hidden_dim,
        "dim_feedforward": len(state_dict["transformer.encoder.layers.0.linear1.bias"]),
        "num_feature_levels": count_layers(state_dict, "input_proj."),
        "two_stage": two_stage,
        "use_enc_aux_loss": heads > layers["dec_layers"] + two_stage,
    }
    if two_stage:
        options |= {"with_box_refine": True, "eff_query_init": len(state_dict["transformer.pos_trans.bias"]) == hidden_dim}
    else:
        options |= {"num_queries": len(state_dict["query_embed.weight"]), "eff_query_init": False, "eff_specific_head": False}
    if "transformer.enc_mask_predictor.layer2.4.bias" not in state_dict:
        options["rho"] = 0.0
    return options | reveal_backbone(state_dict)


def adapt(state_dict: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """A checkpoint's weights as this model's; our own come back as they are."""
    return {k: v for k, v in state_dict.items() if not k.startswith((*COPIES, *ENCODER_COPIES)) and not k.endswith(COUNTERS)}


def export(state_dict: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """This model's weights under all of the published names."""
    exported, revealed = dict(state_dict), reveal(state_dict)
    first = revealed["dec_layers"] + revealed["two_stage"]  # of the heads behind the encoder's layers
    for key, value in state_dict.items():
        name, _, rest = key.partition(".")
        if name in ("class_embed", "bbox_embed"):
            index, _, rest = rest.partition(".")
            if revealed["two_stage"]:
                exported[f"transformer.decoder.{name}.{index}.{rest}"] = value
            if int(index) >= first:
                exported[f"transformer.encoder.{name}.{int(index) - first}.{rest}"] = value
    return exported


def _layers(state_dict: Mapping[str, Tensor], part: str) -> int:
    return count_layers(state_dict, f"transformer.{part}.layers.")

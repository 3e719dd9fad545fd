"""Checkpoints of Deformable DETR and Sparse DETR, published and our own."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.models.deformable_checkpoint import reveal_deformable, with_copies
from common.models.deformable_checkpoint import without_copies as adapt
from common.models.reveal import count_layers

__all__ = ["adapt", "export", "reveal"]


def reveal(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options that a checkpoint's weights tell, and ``num_classes``; KeyError where it is not one of this detector's."""
    if "label_enc.weight" in state_dict:  # DAC-DETR has this beside the same names
        raise KeyError("transformer.reference_points.weight")
    options = reveal_deformable(state_dict)
    two_stage = "transformer.enc_output.weight" in state_dict
    options |= {
        "two_stage": two_stage,
        "use_enc_aux_loss": count_layers(state_dict, "class_embed.") > options["dec_layers"] + two_stage,
    }
    if two_stage:
        width = len(state_dict["transformer.pos_trans.bias"])
        options |= {"with_box_refine": True, "eff_query_init": width == options["hidden_dim"]}
    else:
        options |= {"num_queries": len(state_dict["query_embed.weight"]), "eff_query_init": False, "eff_specific_head": False}
    if "transformer.enc_mask_predictor.layer2.4.bias" not in state_dict:
        options["rho"] = 0.0
    return options


def export(state_dict: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """This model's weights under all of the published names."""
    revealed = reveal(state_dict)
    exported = with_copies(state_dict, "encoder", first=revealed["dec_layers"] + revealed["two_stage"])
    return exported | (with_copies(state_dict, "decoder") if revealed["two_stage"] else {})

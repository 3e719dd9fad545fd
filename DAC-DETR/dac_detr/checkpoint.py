"""Checkpoints of DAC-DETR, published and our own."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.models.deformable_checkpoint import reveal_deformable, with_copies
from common.models.deformable_checkpoint import without_copies as adapt

__all__ = ["adapt", "export", "reveal"]


def reveal(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options that a checkpoint's weights tell, and ``num_classes``; KeyError where it is not one of this detector's."""
    options = reveal_deformable(state_dict)
    width = len(state_dict["transformer.pos_trans.bias"])
    if width != 2 * options["hidden_dim"]:  # that of Efficient DETR's queries
        raise KeyError("query_embed.weight")
    if "query_embed.weight" in state_dict:  # Deformable DETR has proposals or this, and may be a start
        options |= {"num_queries": len(state_dict["query_embed.weight"]), "cdn": "label_enc.weight" in state_dict}
    return options


def export(state_dict: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """This model's weights under all of the published names."""
    return with_copies(state_dict, "decoder")

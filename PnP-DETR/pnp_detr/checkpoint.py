"""Checkpoints of PnP-DETR, of DETR, and of DETR + ENACT, from which it may start.

The published names are this model's. That of the authors' released ENACT is translated.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.models.reveal import reveal_detr, reveal_masks
from enact import convert_released_attention as adapt
from enact import reveal_clustering

__all__ = ["adapt", "export", "reveal"]

SAMPLER = "transformer.sampler."


def reveal(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options that a checkpoint's weights tell, and ``num_classes``; KeyError where it is not one of this detector's."""
    own, masks = reveal_masks(state_dict)
    return reveal_detr(own) | reveal_clustering(own) | _reveal_sampler(own) | masks


def _reveal_sampler(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    if not any(name.startswith(SAMPLER) for name in state_dict):
        return {"sampling": "none"}
    two_layers = f"{SAMPLER}k_proj.2.weight" in state_dict
    last = state_dict[f"{SAMPLER}k_proj.2.weight" if two_layers else f"{SAMPLER}k_proj.weight"]
    if f"{SAMPLER}score_pred_net.weight" in state_dict:
        score_pred_net = "1layer-fc"
    else:
        width, d_model = state_dict[f"{SAMPLER}score_pred_net.0.weight"].shape[:2]
        score_pred_net = "2layer-fc-256" if width == d_model else "2layer-fc-16"
    return {
        "sampling": "pnp",
        "score_pred_net": score_pred_net,
        "kproj_net": "2layer-fc" if two_layers else "1layer-fc",
        "unsample_abstract_number": len(last),
    }


def export(state_dict: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """The published names are this model's; with ENACT nothing is published."""
    return dict(state_dict)

"""Checkpoints of DETR and DETR + ENACT, published and our own.

The kind of a file is recognised from its keys. DETR's published names are this model's; the released DETR + ENACT
has an attention of its own in the encoder: ``W_q``, ``W_k``, ``W_v``, ``W_o``.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.models.reveal import reveal_detr, reveal_masks
from enact import convert_released_attention as adapt
from enact import reveal_clustering
from enact import to_released_attention as export

__all__ = ["adapt", "export", "reveal"]


def reveal(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options that a checkpoint's weights tell, and ``num_classes``; KeyError where it is not one of this detector's."""
    own, masks = reveal_masks(state_dict)
    return reveal_detr(own) | reveal_clustering(own) | masks

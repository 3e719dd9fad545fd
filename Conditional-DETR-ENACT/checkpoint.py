"""Published checkpoints of Conditional DETR and Conditional DETR + ENACT, as this model's state dict."""

from collections.abc import Mapping

from torch import Tensor

from vendor.enact import convert_released_attention

NUM_HEADS = 8  # of every published checkpoint


def adapt(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts the weights of a published checkpoint; the kind is recognised from the keys.

    Conditional DETR's own names are this model's; the attention of the released Conditional DETR + ENACT is converted.
    """
    return convert_released_attention(state_dict, NUM_HEADS)

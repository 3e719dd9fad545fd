"""The backbones by name, and their sizes."""

from typing import NamedTuple


class Size(NamedTuple):
    """Of a Swin transformer.

    Attributes:
        embed_dim: channels of the first stage; each further stage has twice as many.
        depths: blocks per stage.
        num_heads: per stage.
        stochastic_depth: chance that a branch of the last block is left out for an image; it rises linearly from 0 at the first.
        window: side of a window in pixels of the feature map.
    """

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    stochastic_depth: float
    window: int = 7


SWINS = {
    "swin_t": Size(96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2),
    "swin_s": Size(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3),
    "swin_b": Size(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5),
    "swin_l": Size(192, (2, 2, 18, 2), (6, 12, 24, 48), 0.1),
    "swin_l_w12": Size(192, (2, 2, 18, 2), (6, 12, 24, 48), 0.2, window=12),
}

BLOCKS = {  # of the ResNets, per stage, and whether they are bottlenecks
    "resnet10": ((1, 1, 1, 1), False),
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}
BACKBONES = (*BLOCKS, *SWINS)
# What the detectors' own repositories call them, with hyphens in the place of underscores, too.
ALIASES = {"swin_tiny": "swin_t", "swin_small": "swin_s", "swin_large": "swin_l", "swin_large_window12": "swin_l_w12"}


def backbone_name(text: str) -> str:
    """An argparse type: the name of a backbone as it is known here."""
    name = text.replace("-", "_")
    return ALIASES.get(name, name)

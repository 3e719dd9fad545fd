"""The names of COCO's categories, for published checkpoints, which have numbers alone; and how classes are numbered."""

from collections.abc import Mapping
from typing import Any

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

THINGS: dict[int, str] = dict(enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]))  # 0 to 90
STUFF: dict[int, str] = {
    92: "banner",
    93: "blanket",
    95: "bridge",
    100: "cardboard",
    107: "counter",
    109: "curtain",
    112: "door-stuff",
    118: "floor-wood",
    119: "flower",
    122: "fruit",
    125: "gravel",
    128: "house",
    130: "light",
    133: "mirror-stuff",
    138: "net",
    141: "pillow",
    144: "platform",
    145: "playingfield",
    147: "railroad",
    148: "river",
    149: "road",
    151: "roof",
    154: "sand",
    155: "sea",
    156: "shelf",
    159: "snow",
    161: "stairs",
    166: "tent",
    168: "towel",
    171: "wall-brick",
    175: "wall-stone",
    176: "wall-tile",
    177: "wall-wood",
    178: "water-other",
    180: "window-blind",
    181: "window-other",
    184: "tree-merged",
    185: "fence-merged",
    186: "ceiling-merged",
    187: "sky-other-merged",
    188: "cabinet-merged",
    189: "table-merged",
    190: "floor-other-merged",
    191: "pavement-merged",
    192: "mountain-merged",
    193: "grass-merged",
    194: "dirt-merged",
    195: "paper-merged",
    196: "food-other-merged",
    197: "building-other-merged",
    198: "rock-merged",
    199: "wall-other-merged",
    200: "rug-merged",
}
PANOPTIC_CLASSES = 250  # of DETR's published panoptic models


def number_classes(names: Mapping[int, str]) -> list[int]:
    """The category id of each class number of a model that is trained from scratch: COCO's categories keep their ids as numbers, as
    in the published checkpoints; all others are numbered from 0 in the order of their ids.

    Args:
        names: category id -> name.
    """
    return list(range(max(names) + 1)) if names.items() <= (THINGS | STUFF).items() else sorted(names)


def told_categories(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its categories: ``category_names``, ``category_ids``, and ``stuff`` where it is panoptic."""
    return {name: checkpoint[name] for name in ("category_names", "category_ids", "stuff") if name in checkpoint}


def known_categories(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Those of a checkpoint; COCO's of a published one, whose number of classes tells them. Where it has no ``category_ids``, as
    published ones and those of earlier versions, a class's number is its id.
    """
    classes = checkpoint["num_classes"]
    known: dict[str, Any] = {"category_ids": list(range(classes)), "category_names": THINGS if classes == len(THINGS) else {}}
    if classes == PANOPTIC_CLASSES and "category_names" not in checkpoint:
        known |= {"category_names": THINGS | STUFF, "stuff": sorted(STUFF)}
    return known | told_categories(checkpoint)

"""The categories of a dataset and of a checkpoint, and whether they fit."""

from argparse import Namespace
from typing import Any

from ..data.annotations import category_names, stuff_of
from ..data.coco import CocoDetection
from ..data.panoptic import CocoPanoptic
from ..errors import UserError
from .restore import keeps_classes, starting_weights


def categories_of(dataset: CocoDetection) -> dict[str, Any]:
    """What a checkpoint says of the dataset that it was trained on.

    ``category_names`` (id -> name) and, of a panoptic one, ``stuff``: the ids of categories without instances.
    """
    panoptic = {"stuff": stuff_of(dataset.coco)} if isinstance(dataset, CocoPanoptic) else {}
    return {"category_names": category_names(dataset.coco)} | panoptic


def checked(
    categories: dict[str, Any], source: str, args: Namespace, checkpoint: dict[str, Any], val: CocoDetection
) -> dict[str, Any]:
    """Categories as given; UserError where the validation set or the checkpoint does not fit.

    Args:
        source: what they are of, for messages.
    """
    names = categories["category_names"]
    unknown = category_names(val.coco).keys() - names.keys()
    if unknown:
        raise UserError(
            f"the annotations of val2017 have the category ids {sorted(unknown)[:10]}, which {source} does not have: "
            "give both the same categories"
        )
    if keeps_classes(args) and max(names) >= checkpoint["num_classes"]:
        raise UserError(
            f"the dataset has the category id {max(names)}, but {starting_weights(args)} knows {checkpoint['num_classes']} "
            "classes: train on another dataset with --finetune"
        )
    return categories

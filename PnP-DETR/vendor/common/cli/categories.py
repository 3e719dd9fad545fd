"""The categories of a dataset and of a checkpoint, and whether they fit."""

from argparse import Namespace
from typing import Any

from ..data.annotations import category_names, stuff_of
from ..data.coco import CocoDetection
from ..data.coco_names import known_categories, number_classes, told_categories
from ..data.panoptic import CocoPanoptic
from ..errors import UserError, quoted
from .restore import keeps_classes, starting_weights


def categories_of(dataset: CocoDetection) -> dict[str, Any]:
    """What a checkpoint says of the dataset that it was trained on.

    ``category_names`` (id -> name), ``category_ids``, the id of each class number, and, of a panoptic dataset, ``stuff``: the ids
    of categories without instances.
    """
    names = category_names(dataset.coco)
    panoptic = {"stuff": stuff_of(dataset.coco)} if isinstance(dataset, CocoPanoptic) else {}
    return {"category_names": names, "category_ids": number_classes(names)} | panoptic


def knows_all(checkpoint: dict[str, Any], names: dict[int, str]) -> bool:
    """Whether a checkpoint has all these categories: as it says itself, or, where it names none, by their largest id."""
    known = known_categories(checkpoint)["category_names"]
    return names.items() <= known.items() if known else max(names) + 1 == checkpoint["num_classes"]


def checked(
    categories: dict[str, Any], source: str, args: Namespace, checkpoint: dict[str, Any], val: CocoDetection, val_name: str
) -> dict[str, Any]:
    """The categories with the class numbers of the checkpoint that a run starts from, where it keeps its classes; UserError where
    the validation set or the checkpoint does not fit.

    A run that starts with ``--finetune`` keeps them, too, where the checkpoint knows all categories.

    Args:
        source, val_name: what they and the validation set are of, for messages.
    """
    names, others = categories["category_names"], category_names(val.coco)
    if unknown := others.keys() - names.keys():
        raise UserError(
            f"the annotations of {val_name} have the category ids {sorted(unknown)[:10]}, which {source} does not have: "
            "give both the same categories"
        )
    _check_names(names, source, others, val_name)
    if not keeps_classes(args) and not (args.finetune and knows_all(checkpoint, names)):
        return categories
    ids = known_categories(checkpoint)["category_ids"]
    if unknown := names.keys() - {*ids}:
        raise UserError(
            f"the dataset has the category id {max(unknown)}, which is none of the {len(ids)} classes of {starting_weights(args)}: "
            "train on another dataset with --finetune"
        )
    return categories | {"category_ids": ids}


def number_for_evaluation(val: CocoDetection, val_name: str, args: Namespace, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Gives a dataset the class numbers of the checkpoint of ``--resume`` that it is to evaluate; returns the categories.

    Raises:
        UserError: it has others than the checkpoint.
    """
    known = checkpoint if checkpoint.get("category_names") else categories_of(val)
    categories = checked(told_categories(known), args.resume, args, checkpoint, val, val_name)
    val.number_classes(categories["category_ids"])
    return categories


def _check_names(names: dict[int, str], source: str, others: dict[int, str], val_name: str) -> None:
    """UserError where categories have the ids of each other, so that every number would be of another class. One that has merely
    another name, such as a translated one, is taken for the same.
    """
    for category_id, name in others.items():
        known = names.get(category_id)
        if name != known and name in names.values():
            raise UserError(
                f"the category {category_id} is {quoted(name)} in the annotations of {val_name} and {quoted(known)} in {source}, "
                f"which has {quoted(name)} under another id: give both the same categories"
            )

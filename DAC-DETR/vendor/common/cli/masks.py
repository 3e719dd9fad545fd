"""Options of the detectors that may have a mask head."""

from __future__ import annotations

from argparse import Action, ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import UserError
from .arguments import Parser, named, number, path

if TYPE_CHECKING:
    from ..data.layouts import Layout

MASK_ARCHITECTURE = ("masks",)
MASK_WEIGHTS = (False, "bbox_attention.", "mask_head.")  # without masks, a model lacks these
MASK_CHANGEABLE = ("panoptic_threshold",)
MASK_RECIPE = {"epochs": 25, "lr_drop": 15}  # of a mask head alone, as published
# After the demo's short training few queries are sure; and at the published gain no mask tells one object from another.
MASK_DEMO = {
    "dataset_file": "coco_panoptic",
    "panoptic_threshold": 0.5,
    "mask_attention_gain": 300.0,
    "epochs": 7,
    "lr_drop": 5,
    "eval_every": 4,
}


def add_mask_options(parser: Parser) -> None:
    group = parser.add_argument_group("masks")
    group.add_argument("--masks", action="store_true", help="predict a mask for every object, too")
    group.add_argument(
        "--frozen_weights", type=named, metavar="CKPT", help="with --masks: train the mask head alone, on this detector"
    )
    group.add_argument("--mask_loss_coef", type=number(float, 0), default=1.0, help="of the focal loss (default: %(default)s)")
    group.add_argument("--dice_loss_coef", type=number(float, 0), default=1.0, help="of the dice loss (default: %(default)s)")
    group.add_argument(
        "--mask_attention_gain",
        type=number(float, 0, exclusive=True),
        default=1.0,
        help="of the initial weights of the attention maps; above 1 the head learns sooner (default: 1, as published)",
    )
    group.add_argument(
        "--dataset_file", choices=("coco", "coco_panoptic"), default="coco", help="annotations: of instances, or panoptic ones"
    )
    group.add_argument(
        "--coco_panoptic_path",
        type=path,
        help="folder with panoptic_train2017/, panoptic_val2017/ and the panoptic annotations/ (default: --coco_path)",
    )
    group.add_argument(
        "--panoptic_threshold",
        type=number(float, 0),
        default=0.85,
        help="least probability of a segment's class (default: %(default)s)",
    )


class NoMaskHead(Action):
    """``--masks`` of a detector without a mask head."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None) -> NoReturn:
        raise UserError(f"{parser.prog.split('/')[0]} has no mask head: leave out --masks, or take a detector that has one")


def has_masks(args: Namespace) -> bool:
    """Whether the options, of any detector, want masks."""
    return getattr(args, "masks", False)


def panoptic_folder(args: Namespace, layout: Layout) -> Path | None:
    """Where the panoptic annotations are; None where the options do not want them; UserError where the data can have none."""
    if getattr(args, "dataset_file", "coco") == "coco":
        return None
    if not layout.panoptic:
        raise UserError(
            f"--dataset_file {args.dataset_file} needs COCO 2017's layout, which {layout.folder} does not have: "
            "pass --coco_path with train2017/, val2017/ and annotations/"
        )
    return args.coco_panoptic_path or layout.folder

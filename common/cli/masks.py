"""Options of the detectors that may have a mask head, and what is built from them."""

from argparse import Namespace

from ..models.segmenter import Segmenter
from ..models.single_scale import SingleScaleDetector
from .arguments import Parser, number

MASK_ARCHITECTURE = ("masks",)
MASK_WEIGHTS = (False, "bbox_attention.", "mask_head.")  # without masks, a model lacks these
MASK_RECIPE = {"epochs": 25, "lr_drop": 15}  # of a mask head alone, as published


def add_mask_options(parser: Parser) -> None:
    group = parser.add_argument_group("masks")
    group.add_argument("--masks", action="store_true", help="predict a mask for every object, too")
    group.add_argument("--frozen_weights", metavar="CKPT", help="with --masks: train the mask head alone, on this detector")
    group.add_argument("--mask_loss_coef", type=number(float, 0), default=1.0, help="of the focal loss (default: %(default)s)")
    group.add_argument("--dice_loss_coef", type=number(float, 0), default=1.0, help="of the dice loss (default: %(default)s)")


def build_segmenter(args: Namespace, detector: SingleScaleDetector) -> SingleScaleDetector | Segmenter:
    """The detector, with a mask head where the options want one."""
    return Segmenter(detector, args.nheads, frozen=bool(args.frozen_weights)) if args.masks else detector

"""Options that the detectors with deformable attention share."""

import re
from argparse import ArgumentTypeError, BooleanOptionalAction, Namespace

from .arguments import Parser, number

DEFORMABLE_ARCHITECTURE = ("num_feature_levels", "enc_n_points", "dec_n_points")


def levels(text: str) -> int:
    """An argparse type: 1, 3, or more."""
    value = number(int, 1)(text)
    if value == 2:
        raise ArgumentTypeError("'2' is not possible: 1 takes the last stage, 3 the last three stages, more add levels behind them")
    return value


def add_deformable_options(parser: Parser) -> None:
    positive, switch = number(int, 1), {"action": BooleanOptionalAction, "default": False}
    group = parser.add_argument_group("Deformable DETR")
    group.add_argument("--num_feature_levels", type=levels, default=4, metavar="1|3|4|...", help="default: %(default)s")
    group.add_argument("--enc_n_points", type=positive, default=4, help="points per head and level (default: %(default)s)")
    group.add_argument("--dec_n_points", type=positive, default=4, help="the same in the decoder (default: %(default)s)")
    group.add_argument("--focal_alpha", type=number(float, 0), default=0.25, help="of the focal loss (default: %(default)s)")
    group.add_argument("--lr_linear_proj_names", nargs="*", default=["reference_points", "sampling_offsets"], metavar="NAME")
    group.add_argument("--lr_linear_proj_mult", type=number(float, 0), default=0.1, help="of --lr, for weights with these names")
    group.add_argument("--sgd", **switch, help="SGD with momentum 0.9 instead of AdamW")


def parameter_rates(args: Namespace, scale: float = 1.0) -> list[tuple[str, float]]:
    """Deformable DETR's learning rates, times ``scale``: see ``Detector.parameter_groups``."""
    slow = [(re.escape(name), scale * args.lr * args.lr_linear_proj_mult) for name in args.lr_linear_proj_names]
    return [*slow, (r"backbone\.0", scale * args.lr_backbone), ("", scale * args.lr)]

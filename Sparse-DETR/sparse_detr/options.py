"""Deformable DETR and Sparse DETR: their options, the published recipe as defaults, and the demo's."""

from argparse import ArgumentTypeError, BooleanOptionalAction
from typing import Any

from common.cli.arguments import DEMO, Parser, number
from common.cli.deformable import add_deformable_options

NAME = "Sparse-DETR"


def share(text: str) -> float:
    """An argparse type: a number in [0, 1]."""
    value = number(float, 0)(text)
    if value > 1:
        raise ArgumentTypeError(f"{text!r} is not a share: pass a number from 0 to 1")
    return value


def add_arguments(parser: Parser) -> None:
    switch = {"action": BooleanOptionalAction, "default": False}
    add_deformable_options(parser)
    own = parser.add_argument_group("Deformable DETR's queries")
    own.add_argument("--with_box_refine", **switch, help="each decoder layer refines the boxes of the one before")
    own.add_argument("--two_stage", **switch, help="the encoder proposes the queries; needs --with_box_refine")
    own.add_argument("--num_queries", type=number(int, 1), default=300, help="most objects found (default: %(default)s)")

    own = parser.add_argument_group("Efficient DETR")
    own.add_argument("--eff_query_init", **switch, help="with --two_stage: queries start as the proposed tokens")
    own.add_argument("--eff_specific_head", **switch, help="with --two_stage: proposals have classes")

    own = parser.add_argument_group("Sparse DETR")
    own.add_argument("--rho", type=share, default=0.0, help="share of the tokens that the encoder updates; 0: all (default)")
    own.add_argument("--use_enc_aux_loss", **switch, help="heads and losses behind every encoder layer")
    own.add_argument("--mask_prediction_coef", type=number(float, 0), default=1.0, help="weight of the scoring network's loss")
    own.add_argument("--finetune_early_layers", **switch, help="train the backbone's stem and first stage as well")
    own.add_argument("--scrl_pretrained_path", dest="backbone_weights", metavar="PATH", help="as --backbone_weights PATH")
    parser.set_defaults(
        backbone="resnet50",
        backbone_weights="default",
        dilation=False,
        dim_feedforward=1024,
        dropout=0.1,
        batch_size=2,
        lr=2e-4,
        lr_backbone=2e-5,
        epochs=50,
        lr_drop=40,
        set_cost_class=2.0,
        cls_loss_coef=2.0,
        score_threshold=0.3,
    )


DEMO_OPTIONS: dict[str, Any] = DEMO | {
    "last_stage": 4,
    "with_box_refine": True,
    "two_stage": True,
    "eff_query_init": True,
    "eff_specific_head": True,
    "use_enc_aux_loss": True,
    "rho": 0.3,
    "num_queries": 40,
    "num_feature_levels": 3,
    "epochs": 6,
    "lr_drop": 5,
}

"""Deformable DETR and Sparse DETR: their options, the published recipe as defaults, the demo, and how they are built from them."""

import math
from argparse import ArgumentTypeError, BooleanOptionalAction, Namespace
from functools import partial
from typing import Any

from common.cli.arguments import DEMO, Parser, number
from common.cli.deformable import (
    DEFORMABLE_ARCHITECTURE,
    add_deformable_options,
    build_levels,
    check_levels,
    parameter_rates,
)
from common.detector import ARCHITECTURE, Detector
from common.errors import UserError
from common.evaluation.postprocess import sigmoid_detections
from common.losses.criterion import SetCriterion, build_criterion
from common.losses.set_losses import FocalLoss
from common.models.transformer import build_transformer_options

from .checkpoint import adapt, export, reveal
from .criterion import SparseCriterion
from .model import SparseDETR
from .pictures import pictures
from .transformer import DeformableOptions, Transformer

PUBLISHED_BATCH = 16  # images per step that the learning rates are made for


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


def check(args: Namespace) -> None:
    """Raises UserError where options contradict each other."""
    if args.two_stage and not args.with_box_refine:
        raise UserError("--two_stage refines boxes from the proposals on: pass --with_box_refine, too")
    for name in ("rho", "eff_query_init", "eff_specific_head"):
        if getattr(args, name) and not args.two_stage:
            raise UserError(f"--{name} needs proposals: pass --two_stage --with_box_refine, too")
    if args.no_aux_loss and (args.with_box_refine or args.use_enc_aux_loss):
        raise UserError("--no_aux_loss leaves the heads of --with_box_refine and --use_enc_aux_loss untrained: choose one")
    if args.use_enc_aux_loss and args.enc_layers == 1:
        raise UserError("--use_enc_aux_loss is for encoder layers before the last: pass --enc_layers of at least 2 or leave it out")
    check_levels(args)


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> SparseDETR:
    check(args)
    names = ("num_feature_levels", "enc_n_points", "dec_n_points", "num_queries", "with_box_refine", "two_stage", "eff_query_init")
    options = DeformableOptions(**{name: getattr(args, name) for name in (*names, "eff_specific_head", "rho")})
    backbone = build_levels(args, load_backbone)
    transformer = Transformer(build_transformer_options(args), options)
    return SparseDETR(backbone, transformer, num_classes, not args.no_aux_loss, args.use_enc_aux_loss)


def build_losses(args: Namespace, num_classes: int) -> SetCriterion:
    own = {"eff_specific_head": args.eff_specific_head, "mask_prediction_coef": args.mask_prediction_coef}
    return build_criterion(args, FocalLoss(args.focal_alpha), args.num_queries, SparseCriterion, **own)


def parameter_groups(args: Namespace, images_per_step: int) -> list[tuple[str, float]]:
    """The published rates are for 16 images per step, and go with the square root of their number."""
    return parameter_rates(args, math.sqrt(images_per_step / PUBLISHED_BATCH))


OWN_ARCHITECTURE = (
    *DEFORMABLE_ARCHITECTURE,
    *("with_box_refine", "two_stage", "eff_query_init", "eff_specific_head", "use_enc_aux_loss"),
)
DEMO_OPTIONS: dict[str, Any] = {
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

DETECTOR = Detector(
    name="Sparse-DETR",
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=build_losses,
    build_postprocess=lambda args: partial(sigmoid_detections, k=100),
    reveal=reveal,
    adapt=adapt,
    export=export,
    pictures=pictures,
    demo=DEMO | DEMO_OPTIONS,
    architecture=(*ARCHITECTURE, *OWN_ARCHITECTURE),
    changeable=("rho",),
    plain={"rho": (0.0, "enc_mask_predictor")},
    fresh={
        "num_queries": ("query_embed",),
        "two_stage": ("enc_output", "pos_trans", "query_embed", "reference_points", "bbox_embed"),
        "with_box_refine": (),
        "eff_query_init": ("pos_trans",),
        "eff_specific_head": (),
        "use_enc_aux_loss": ("bbox_embed",),
    },
    told={"rho": "enc_mask_predictor"},
    parameter_groups=parameter_groups,
    compiled=(r"backbone\.0\.body", r"transformer\.decoder\.layers\.\d+"),
)

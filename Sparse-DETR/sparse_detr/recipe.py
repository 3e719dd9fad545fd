"""Deformable DETR and Sparse DETR: their options, the published recipe as defaults, the demo, and how they are built from them."""

import math
import re
from argparse import ArgumentTypeError, BooleanOptionalAction, Namespace
from functools import partial
from typing import Any

from common.cli.arguments import DEMO, Parser, number
from common.detector import ARCHITECTURE, Detector
from common.errors import UserError
from common.evaluation.postprocess import sigmoid_detections
from common.losses.matching import HungarianMatcher
from common.losses.set_losses import FocalLoss
from common.models.backbone import build_backbone
from common.models.transformer import build_transformer_options

from .checkpoint import adapt, export, reveal
from .criterion import SparseCriterion
from .model import GROUPS, SparseDETR
from .pictures import pictures
from .transformer import DeformableOptions, Transformer

BACKBONE_LEVELS = 3  # the most; further ones follow behind
PUBLISHED_BATCH = 16  # images per step that the learning rates are made for


def levels(text: str) -> int:
    """An argparse type: 1, 3, or more."""
    value = number(int, 1)(text)
    if value == 2:
        raise ArgumentTypeError("'2' is not possible: 1 takes the last stage, 3 the last three stages, more add levels behind them")
    return value


def share(text: str) -> float:
    """An argparse type: a number in [0, 1]."""
    value = number(float, 0)(text)
    if value > 1:
        raise ArgumentTypeError(f"{text!r} is not a share: pass a number from 0 to 1")
    return value


def add_arguments(parser: Parser) -> None:
    positive, switch = number(int, 1), {"action": BooleanOptionalAction, "default": False}
    own = parser.add_argument_group("Deformable DETR")
    own.add_argument("--with_box_refine", **switch, help="each decoder layer refines the boxes of the one before")
    own.add_argument("--two_stage", **switch, help="the encoder proposes the queries; needs --with_box_refine")
    own.add_argument("--num_queries", type=positive, default=300, help="most objects found (default: %(default)s)")
    own.add_argument("--num_feature_levels", type=levels, default=4, metavar="1|3|4|...", help="default: %(default)s")
    own.add_argument("--enc_n_points", type=positive, default=4, help="points per head and level (default: %(default)s)")
    own.add_argument("--dec_n_points", type=positive, default=4, help="the same in the decoder (default: %(default)s)")
    own.add_argument("--focal_alpha", type=number(float, 0), default=0.25, help="of the class loss (default: %(default)s)")
    own.add_argument("--lr_linear_proj_names", nargs="*", default=["reference_points", "sampling_offsets"], metavar="NAME")
    own.add_argument("--lr_linear_proj_mult", type=number(float, 0), default=0.1, help="of --lr, for weights with these names")
    own.add_argument("--sgd", **switch, help="SGD with momentum 0.9 instead of AdamW")

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
    if args.hidden_dim % GROUPS:
        raise UserError(f"--hidden_dim {args.hidden_dim} must be divisible by {GROUPS}, the groups of the input projection's norm")
    if args.num_feature_levels > 1 and args.last_stage < BACKBONE_LEVELS:
        raise UserError(f"--num_feature_levels {args.num_feature_levels} takes the three stages up to --last_stage: pass 3 or 4")


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> SparseDETR:
    check(args)
    names = ("num_feature_levels", "enc_n_points", "dec_n_points", "num_queries", "with_box_refine", "two_stage", "eff_query_init")
    options = DeformableOptions(**{name: getattr(args, name) for name in (*names, "eff_specific_head", "rho")})
    first = args.last_stage - BACKBONE_LEVELS if args.num_feature_levels > 1 else args.last_stage - 1
    backbone = build_backbone(args, load_backbone, [f"layer{stage + 1}" for stage in range(first, args.last_stage)])
    transformer = Transformer(build_transformer_options(args), options)
    return SparseDETR(backbone, transformer, num_classes, not args.no_aux_loss, args.use_enc_aux_loss)


def build_losses(args: Namespace, num_classes: int) -> SparseCriterion:
    return SparseCriterion(
        HungarianMatcher(args.set_cost_class, args.set_cost_bbox, args.set_cost_giou, focal=True),
        FocalLoss(args.focal_alpha),
        {"loss_ce": args.cls_loss_coef, "loss_bbox": args.bbox_loss_coef, "loss_giou": args.giou_loss_coef},
        args.num_queries,
        eff_specific_head=args.eff_specific_head,
        mask_prediction_coef=args.mask_prediction_coef,
    )


def parameter_groups(args: Namespace, images_per_step: int) -> list[tuple[str, float]]:
    """The published rates are for 16 images per step, and go with the square root of their number."""
    scale = math.sqrt(images_per_step / PUBLISHED_BATCH)
    slow = [(re.escape(name), scale * args.lr * args.lr_linear_proj_mult) for name in args.lr_linear_proj_names]
    return [*slow, (r"backbone\.0", scale * args.lr_backbone), ("", scale * args.lr)]


OWN_ARCHITECTURE = (
    *("num_feature_levels", "enc_n_points", "dec_n_points"),
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
    plain={"rho": 0.0},
    optional_weights=("enc_mask_predictor",),
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

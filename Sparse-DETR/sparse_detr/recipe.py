"""How Sparse-DETR is built from its options."""

import math
from argparse import Namespace

from common.cli.deformable import (
    DEFORMABLE_ARCHITECTURE,
    parameter_rates,
)
from common.detector import ARCHITECTURE, Detector
from common.errors import UserError
from common.evaluation.postprocess import PostProcess, sigmoid_detections
from common.losses.criterion import SetCriterion, build_criterion
from common.losses.set_losses import FocalLoss
from common.models.assembly import build_levels, check_levels
from common.models.transformer import build_transformer_options

from .checkpoint import adapt, export, reveal
from .criterion import SparseCriterion
from .model import SparseDETR
from .options import DEMO_OPTIONS, NAME, add_arguments
from .pictures import pictures
from .transformer import DeformableOptions, Transformer

PUBLISHED_BATCH = 16  # images per step that the learning rates are made for


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

DETECTOR = Detector(
    name=NAME,
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=build_losses,
    build_postprocess=lambda args: PostProcess(sigmoid_detections),
    reveal=reveal,
    adapt=adapt,
    export=export,
    pictures=pictures,
    demo=DEMO_OPTIONS,
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

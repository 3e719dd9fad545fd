"""How DAC-DETR is built from its options."""

from argparse import Namespace
from functools import partial

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
from common.models.sizes import SWINS
from common.models.transformer import build_transformer_options

from .checkpoint import adapt, export, reveal
from .criterion import DACCriterion
from .denoising import Noise
from .model import DACDETR
from .options import DEMO_OPTIONS, NAME, add_arguments
from .pictures import pictures, record
from .postprocess import CANDIDATES, MOST_DETECTIONS, unsuppressed
from .transformer import Transformer


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> DACDETR:
    if args.no_aux_loss:
        raise UserError("--no_aux_loss leaves the heads that refine boxes untrained: leave it out")
    check_levels(args)
    is_swin = args.backbone in SWINS
    # As published: nothing of a Swin transformer is frozen, and its blocks are recomputed on the way back.
    backbone = build_levels(Namespace(**vars(args), finetune_early_layers=is_swin, recompute=is_swin), load_backbone)
    transformer = Transformer(
        build_transformer_options(args), args.num_feature_levels, args.enc_n_points, args.dec_n_points, args.look_forward_twice
    )
    noise = Noise() if args.cdn else None
    return DACDETR(backbone, transformer, num_classes, args.num_queries, args.num_feature_levels, args.dac, noise)


def build_losses(args: Namespace, num_classes: int) -> SetCriterion:
    return build_criterion(args, FocalLoss(args.focal_alpha), args.num_queries, DACCriterion, ice=args.ice)


def build_postprocess(args: Namespace) -> PostProcess:
    if args.nms:
        return PostProcess(partial(sigmoid_detections, k=CANDIDATES), unsuppressed)
    return PostProcess(partial(sigmoid_detections, k=MOST_DETECTIONS))


def parameter_groups(args: Namespace, images_per_step: int) -> list[tuple[str, float]]:
    return parameter_rates(args)


DETECTOR = Detector(
    name=NAME,
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=build_losses,
    build_postprocess=build_postprocess,
    reveal=reveal,
    adapt=adapt,
    export=export,
    record=record,
    pictures=pictures,
    demo=DEMO_OPTIONS,
    architecture=(*ARCHITECTURE, *DEFORMABLE_ARCHITECTURE, "cdn"),
    changeable=("nms",),
    classes=("class_embed", "label_enc"),
    renewable=("query_embed",),
    fresh={"num_queries": ("query_embed",), "cdn": ("label_enc",)},
    parameter_groups=parameter_groups,
    compiled=(r"backbone\.0\.body",),
)

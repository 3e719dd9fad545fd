"""How Anchor-DETR-ENACT is built from its options."""

import math
from argparse import Namespace

from common.cli.arguments import CLUSTERING, clustering_of
from common.detector import ARCHITECTURE, Detector
from common.errors import UserError
from common.evaluation.postprocess import PostProcess, sigmoid_detections
from common.losses.criterion import SetCriterion, build_criterion
from common.losses.set_losses import FocalLoss
from common.models.assembly import check_groups
from common.models.backbone import build_backbone
from common.models.transformer import build_transformer_options
from enact import record

from .checkpoint import adapt, export, reveal
from .model import AnchorDETR, Transformer
from .options import DEMO_OPTIONS, NAME, add_arguments


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> AnchorDETR:
    several = args.num_feature_levels > 1
    if several and not args.dilation:
        raise UserError("--num_feature_levels 3 needs --dilation: the levels must have the same size")
    if args.spatial_prior == "grid" and math.isqrt(args.num_query_position) ** 2 != args.num_query_position:
        raise UserError(f"--spatial_prior grid needs a square number of points, not --num_query_position {args.num_query_position}")
    check_groups(args)
    transformer = Transformer(
        build_transformer_options(args),
        num_classes=num_classes,
        num_query_position=args.num_query_position,
        num_query_pattern=args.num_query_pattern,
        spatial_prior=args.spatial_prior,
        num_feature_levels=args.num_feature_levels,
        decoupled=args.attention_type == "RCDA",
        **clustering_of(args),
    )
    backbone = build_backbone(args, load_backbone, ("layer2", "layer3", "layer4") if several else ())
    return AnchorDETR(backbone, transformer, aux_loss=not args.no_aux_loss)


def build_losses(args: Namespace, num_classes: int) -> SetCriterion:
    return build_criterion(args, FocalLoss(), args.num_query_position * args.num_query_pattern)


OWN_ARCHITECTURE = ("attention_type", "spatial_prior", "num_query_position", "num_query_pattern", "num_feature_levels")

DETECTOR = Detector(
    name=NAME,
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=build_losses,
    build_postprocess=lambda args: PostProcess(sigmoid_detections),
    reveal=reveal,
    adapt=adapt,
    export=export,
    record=record,
    demo=DEMO_OPTIONS,
    architecture=(*ARCHITECTURE, *OWN_ARCHITECTURE),
    changeable=CLUSTERING,
    plain={"clustering": ("none", "W_prob")},
    compiled=(r"backbone\.body", r"transformer\.decoder_layers\.\d+"),
)

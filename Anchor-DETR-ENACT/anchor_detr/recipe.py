"""Anchor DETR + ENACT: its options, the recipe of the paper (section 4.2) as defaults, its demo, and how it is built."""

import math
from argparse import Namespace

from common.cli.arguments import DEMO, Parser, add_clustering_options, number
from common.detector import ARCHITECTURE, Detector
from common.errors import UserError
from common.evaluation.postprocess import sigmoid_detections
from common.losses.criterion import SetCriterion, build_criterion
from common.losses.set_losses import FocalLoss
from common.models.backbone import build_backbone
from common.models.transformer import build_transformer_options
from enact import record

from .checkpoint import adapt, export, reveal
from .model import AnchorDETR, Transformer


def add_arguments(parser: Parser) -> None:
    own = parser.add_argument_group("Anchor DETR")
    own.add_argument("--attention_type", choices=("RCDA", "nn.MultiheadAttention"), default="RCDA")
    own.add_argument("--spatial_prior", choices=("learned", "grid"), default="learned", help="the anchor points")
    own.add_argument("--num_query_position", type=number(int, 1), default=300, help="anchor points (default: %(default)s)")
    own.add_argument("--num_query_pattern", type=number(int, 1), default=3, help="queries at each (default: %(default)s)")
    own.add_argument("--num_feature_levels", type=int, choices=(1, 3), default=1, help="3: layer2 to layer4, with --dilation")
    add_clustering_options(parser, smoothing_sigma=5.0)
    parser.set_defaults(
        backbone="resnet50",
        dilation=True,
        dim_feedforward=1024,
        dropout=0.0,
        batch_size=4,
        epochs=50,
        lr_drop=40,
        set_cost_class=2.0,
        cls_loss_coef=2.0,
        score_threshold=0.3,
    )


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> AnchorDETR:
    several = args.num_feature_levels > 1
    if several and not args.dilation:
        raise UserError("--num_feature_levels 3 needs --dilation: the levels must have the same size")
    if args.spatial_prior == "grid" and math.isqrt(args.num_query_position) ** 2 != args.num_query_position:
        raise UserError(f"--spatial_prior grid needs a square number of points, not --num_query_position {args.num_query_position}")
    if args.hidden_dim % 32:
        raise UserError(f"--hidden_dim {args.hidden_dim} must be divisible by 32, the groups of the input projection's norm")
    transformer = Transformer(
        build_transformer_options(args),
        num_classes=num_classes,
        num_query_position=args.num_query_position,
        num_query_pattern=args.num_query_pattern,
        spatial_prior=args.spatial_prior,
        num_feature_levels=args.num_feature_levels,
        decoupled=args.attention_type == "RCDA",
        clustering=args.clustering,
        smoothing_sigma=args.smoothing_sigma,
    )
    backbone = build_backbone(args, load_backbone, ("layer2", "layer3", "layer4") if several else ())
    return AnchorDETR(backbone, transformer, aux_loss=not args.no_aux_loss)


def build_losses(args: Namespace, num_classes: int) -> SetCriterion:
    return build_criterion(args, FocalLoss(), args.num_query_position * args.num_query_pattern)


OWN_ARCHITECTURE = ("attention_type", "spatial_prior", "num_query_position", "num_query_pattern", "num_feature_levels")

DETECTOR = Detector(
    name="Anchor-DETR-ENACT",
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=build_losses,
    build_postprocess=lambda args: sigmoid_detections,
    reveal=reveal,
    adapt=adapt,
    export=export,
    record=record,
    demo=DEMO | {"num_query_position": 40, "num_query_pattern": 1, "smoothing_sigma": 3.0},
    architecture=(*ARCHITECTURE, *OWN_ARCHITECTURE),
    changeable=("clustering", "smoothing_sigma"),
    plain={"clustering": ("none", "W_prob")},
    compiled=(r"backbone\.body", r"transformer\.decoder_layers\.\d+"),
)

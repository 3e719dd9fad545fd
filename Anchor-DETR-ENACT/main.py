"""Anchor DETR + ENACT: train, evaluate, predict. ``python Anchor-DETR-ENACT/main.py --help`` lists the options."""

import math
import sys
from argparse import Namespace
from functools import partial

from anchor_detr import AnchorDETR, Transformer
from torch import nn

from checkpoint import adapt, export, reveal
from vendor.common.arguments import ARCHITECTURE, Parser, number
from vendor.common.backbone import build_backbone
from vendor.common.detector import Detector
from vendor.common.errors import UserError
from vendor.common.losses import build_criterion
from vendor.common.postprocess import sigmoid_detections
from vendor.common.run import main
from vendor.enact import record


def add_arguments(parser: Parser) -> None:
    """Anchor DETR's own options, and the recipe of the paper (section 4.2) as defaults."""
    own = parser.add_argument_group("Anchor DETR")
    own.add_argument("--attention_type", choices=("RCDA", "nn.MultiheadAttention"), default="RCDA")
    own.add_argument("--spatial_prior", choices=("learned", "grid"), default="learned", help="the anchor points")
    own.add_argument("--num_query_position", type=number(int, 1), default=300, help="anchor points (default: %(default)s)")
    own.add_argument("--num_query_pattern", type=number(int, 1), default=3, help="queries at each (default: %(default)s)")
    own.add_argument("--num_feature_levels", type=int, choices=(1, 3), default=1, help="3: layer2 to layer4, with --dilation")
    parser.set_defaults(
        backbone="resnet50",
        dilation=True,
        dim_feedforward=1024,
        dropout=0.0,
        smoothing_sigma=5.0,
        batch_size=4,
        epochs=50,
        lr_drop=40,
        set_cost_class=2.0,
        cls_loss_coef=2.0,
        score_threshold=0.3,
    )


DEMO = {
    "backbone": "resnet10",
    "backbone_weights": "none",
    "dilation": False,
    "last_stage": 2,
    "image_size": 96,
    "hidden_dim": 128,
    "dim_feedforward": 256,
    "enc_layers": 2,
    "dec_layers": 2,
    "num_query_position": 40,
    "num_query_pattern": 1,
    "smoothing_sigma": 3.0,
    "batch_size": 8,
    "lr": 3e-4,
    "lr_backbone": 5e-4,
    "epochs": 8,
    "lr_drop": 6,
}


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> nn.Module:
    several = args.num_feature_levels > 1
    if several and not args.dilation:
        raise UserError("--num_feature_levels 3 needs --dilation: the levels must have the same size")
    if args.spatial_prior == "grid" and math.isqrt(args.num_query_position) ** 2 != args.num_query_position:
        raise UserError(f"--spatial_prior grid needs a square number of points, not --num_query_position {args.num_query_position}")
    if args.hidden_dim % 32:
        raise UserError(f"--hidden_dim {args.hidden_dim} must be divisible by 32, the groups of the input projection's norm")
    layers = ("layer2", "layer3", "layer4") if several else (f"layer{args.last_stage}",)
    transformer = Transformer(
        args.hidden_dim,
        args.nheads,
        args.enc_layers,
        args.dec_layers,
        args.dim_feedforward,
        args.dropout,
        num_classes,
        args.num_query_position,
        args.num_query_pattern,
        args.spatial_prior,
        args.num_feature_levels,
        args.attention_type == "RCDA",
        args.clustering,
        args.smoothing_sigma,
    )
    backbone = build_backbone(args.backbone, args.dilation, args.backbone_weights, load_backbone, layers)
    return AnchorDETR(backbone, transformer, args.hidden_dim, aux_loss=not args.no_aux_loss)


OWN_ARCHITECTURE = ("attention_type", "spatial_prior", "num_query_position", "num_query_pattern", "num_feature_levels")

DETECTOR = Detector(
    name="Anchor-DETR-ENACT",
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=partial(build_criterion, focal=True),
    postprocess=sigmoid_detections,
    reveal=reveal,
    adapt=adapt,
    export=export,
    record=record,
    demo=DEMO,
    architecture=(*ARCHITECTURE, *OWN_ARCHITECTURE),
)

if __name__ == "__main__":
    sys.exit(main(DETECTOR))

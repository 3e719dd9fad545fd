"""DETR + ENACT: train, evaluate, predict. The options and this detector's recipe: ``python DETR-ENACT/main.py --help``."""

import sys
from argparse import BooleanOptionalAction, Namespace

from torch import nn

from checkpoint import adapt, export, reveal
from detr import DETR
from transformer import Transformer
from vendor.common.arguments import ARCHITECTURE, Parser, add_query_options, number
from vendor.common.backbone import build_backbone
from vendor.common.detector import Detector
from vendor.common.losses import build_criterion
from vendor.common.positions import build_position_embedding
from vendor.common.postprocess import softmax_detections
from vendor.common.run import main
from vendor.enact import record


def add_arguments(parser: Parser) -> None:
    """DETR's own options, and the recipe of the paper (section 4.2) as defaults."""
    parser.add_argument("--pre_norm", action=BooleanOptionalAction, default=False, help="normalise before each part, not after")
    parser.add_argument("--eos_coef", type=number(float, 0), default=0.1, help="weight of the class 'no object' in the loss")
    add_query_options(parser, num_queries=100)
    parser.set_defaults(
        backbone="resnet50",
        dilation=False,
        dim_feedforward=2048,
        dropout=0.1,
        smoothing_sigma=3.0,
        batch_size=8,
        epochs=300,
        lr_drop=200,
        set_cost_class=1.0,
        cls_loss_coef=1.0,
    )


DEMO = {
    "backbone": "resnet10",
    "backbone_weights": "none",
    "last_stage": 2,
    "image_size": 96,
    "hidden_dim": 128,
    "dim_feedforward": 256,
    "pre_norm": True,
    "enc_layers": 3,
    "dec_layers": 3,
    "num_queries": 20,
    "dropout": 0.0,
    "batch_size": 8,
    "lr": 3e-4,
    "lr_backbone": 5e-4,
    "epochs": 12,
    "lr_drop": 10,
}


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> nn.Module:
    transformer = Transformer(
        args.hidden_dim,
        args.nheads,
        args.enc_layers,
        args.dec_layers,
        args.dim_feedforward,
        args.dropout,
        args.pre_norm,
        args.clustering,
        args.smoothing_sigma,
    )
    return DETR(
        build_backbone(args.backbone, args.dilation, args.backbone_weights, load_backbone, [f"layer{args.last_stage}"]),
        build_position_embedding(args.position_embedding, args.hidden_dim),
        transformer,
        num_classes,
        args.hidden_dim,
        args.num_queries,
        aux_loss=not args.no_aux_loss,
    )


DETECTOR = Detector(
    name="DETR-ENACT",
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=lambda args, num_classes: build_criterion(args, num_classes, focal=False, eos_coef=args.eos_coef),
    postprocess=softmax_detections,
    reveal=reveal,
    adapt=adapt,
    export=export,
    record=record,
    demo=DEMO,
    architecture=(*ARCHITECTURE, "pre_norm"),
)

if __name__ == "__main__":
    sys.exit(main(DETECTOR))

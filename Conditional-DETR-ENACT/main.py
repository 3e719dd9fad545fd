"""Conditional DETR + ENACT: train, evaluate, predict. ``python Conditional-DETR-ENACT/main.py --help`` lists the options."""

import sys
from argparse import Namespace
from functools import partial

from conditional_detr import ConditionalDETR
from torch import nn

from checkpoint import adapt, export, reveal
from transformer import Transformer
from vendor.common.arguments import Parser, add_query_options
from vendor.common.backbone import build_backbone
from vendor.common.detector import Detector
from vendor.common.losses import build_criterion
from vendor.common.positions import build_position_embedding
from vendor.common.postprocess import sigmoid_detections
from vendor.common.run import main
from vendor.enact import record


def add_arguments(parser: Parser) -> None:
    """The recipe of the paper (section 4.2) as defaults."""
    add_query_options(parser, num_queries=300)
    parser.set_defaults(
        backbone="resnet101",
        dilation=False,
        dim_feedforward=2048,
        dropout=0.1,
        smoothing_sigma=3.0,
        batch_size=8,
        epochs=50,
        lr_drop=40,
        set_cost_class=2.0,
        cls_loss_coef=2.0,
        score_threshold=0.3,
    )


DEMO = {
    "backbone": "resnet10",
    "backbone_weights": "none",
    "last_stage": 2,
    "image_size": 96,
    "hidden_dim": 128,
    "dim_feedforward": 256,
    "enc_layers": 2,
    "dec_layers": 2,
    "num_queries": 40,
    "dropout": 0.0,
    "batch_size": 8,
    "lr": 3e-4,
    "lr_backbone": 5e-4,
    "epochs": 8,
    "lr_drop": 6,
}


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> nn.Module:
    transformer = Transformer(
        args.hidden_dim,
        args.nheads,
        args.enc_layers,
        args.dec_layers,
        args.dim_feedforward,
        args.dropout,
        args.clustering,
        args.smoothing_sigma,
    )
    return ConditionalDETR(
        build_backbone(args.backbone, args.dilation, args.backbone_weights, load_backbone, [f"layer{args.last_stage}"]),
        build_position_embedding(args.position_embedding, args.hidden_dim),
        transformer,
        num_classes,
        args.hidden_dim,
        args.num_queries,
        aux_loss=not args.no_aux_loss,
    )


DETECTOR = Detector(
    name="Conditional-DETR-ENACT",
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=partial(build_criterion, focal=True),
    postprocess=sigmoid_detections,
    reveal=reveal,
    adapt=adapt,
    export=export,
    record=record,
    demo=DEMO,
)

if __name__ == "__main__":
    sys.exit(main(DETECTOR))

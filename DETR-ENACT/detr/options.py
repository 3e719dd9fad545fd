"""DETR + ENACT: its options, the recipe of the paper (section 4.2) as defaults, and its demo's."""

from argparse import BooleanOptionalAction
from typing import Any

from common.cli.arguments import DEMO, Parser, add_clustering_options, add_query_options, number
from common.cli.masks import add_mask_options

NAME = "DETR-ENACT"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--pre_norm", action=BooleanOptionalAction, default=False, help="normalise before each part, not after")
    parser.add_argument("--eos_coef", type=number(float, 0), default=0.1, help="weight of the class 'no object' in the loss")
    add_query_options(parser, num_queries=100)
    add_clustering_options(parser, smoothing_sigma=3.0)
    add_mask_options(parser)
    parser.set_defaults(
        backbone="resnet50",
        dilation=False,
        dim_feedforward=2048,
        dropout=0.1,
        batch_size=8,
        epochs=300,
        lr_drop=200,
        set_cost_class=1.0,
        cls_loss_coef=1.0,
    )


DEMO_OPTIONS: dict[str, Any] = DEMO | {
    "pre_norm": True,
    "enc_layers": 3,
    "dec_layers": 3,
    "num_queries": 20,
    "epochs": 12,
    "lr_drop": 10,
}

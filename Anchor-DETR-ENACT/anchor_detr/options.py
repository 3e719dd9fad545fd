"""Anchor DETR + ENACT: its options, the recipe of the paper (section 4.2) as defaults, and its demo's."""

from typing import Any

from common.cli.arguments import DEMO, Parser, add_clustering_options, number

NAME = "Anchor-DETR-ENACT"


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


DEMO_OPTIONS: dict[str, Any] = DEMO | {
    "num_query_position": 40,
    "num_query_pattern": 1,
    "smoothing_sigma": 3.0,
    "batch_size": 4,
    "lr": 2e-4,
    "lr_backbone": 3e-4,
    "epochs": 10,
    "lr_drop": 7,
    "eval_every": 2,
}

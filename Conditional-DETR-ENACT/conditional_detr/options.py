"""Conditional DETR + ENACT: its options, the recipe of the paper (section 4.2) as defaults, and its demo's."""

from typing import Any

from common.cli.arguments import DEMO, Parser, add_clustering_options, add_query_options

NAME = "Conditional-DETR-ENACT"


def add_arguments(parser: Parser) -> None:
    add_query_options(parser, num_queries=300)
    add_clustering_options(parser, smoothing_sigma=3.0)
    parser.set_defaults(
        backbone="resnet101",
        dilation=False,
        dim_feedforward=2048,
        dropout=0.1,
        batch_size=8,
        epochs=50,
        lr_drop=40,
        set_cost_class=2.0,
        cls_loss_coef=2.0,
        score_threshold=0.3,
    )


DEMO_OPTIONS: dict[str, Any] = DEMO | {"num_queries": 40}

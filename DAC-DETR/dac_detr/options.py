"""DAC-DETR: its options, the published recipe as defaults, and its demo's."""

from argparse import BooleanOptionalAction
from typing import Any

from common.cli.arguments import DEMO, Parser, number
from common.cli.deformable import add_deformable_options

NAME = "DAC-DETR"


def add_arguments(parser: Parser) -> None:
    add_deformable_options(parser)
    switch = {"action": BooleanOptionalAction, "default": True}
    own = parser.add_argument_group("DAC-DETR")
    own.add_argument(
        *("--num_queries_one2one", "--num_queries"),
        dest="num_queries",
        type=number(int, 1),
        default=900,
        help="most objects found (default: %(default)s)",
    )
    own.add_argument("--dac", **switch, help="train the C-decoder beside the O-decoder (default: on)")
    own.add_argument("--cdn", **switch, help="contrastive denoising queries in training (default: on)")
    own.add_argument("--ice", **switch, help="the IoU-aware classification loss, else the focal loss (default: on)")
    own.add_argument("--look_forward_twice", **switch, help="boxes pass gradients on to the layer before (default: on)")
    own.add_argument("--nms", **switch, help="class-wise non-maximum suppression, as for the published numbers (default: on)")
    own.add_argument("--drop_path_rate", type=number(float, 0), default=0.2, help="stochastic depth of a Swin transformer")
    own.add_argument("--pretrained_backbone_path", dest="backbone_weights", metavar="PATH", help="as --backbone_weights PATH")
    always = ("--with_box_refine", "--two_stage", "--mixed_selection")
    own.add_argument(*always, action="store_true", default=True, help="always on; accepted as in the published commands")
    parser.set_defaults(
        backbone="resnet50",
        backbone_weights="default",
        dilation=False,
        dim_feedforward=2048,
        dropout=0.0,
        batch_size=2,
        lr=2e-4,
        lr_backbone=2e-5,
        epochs=12,
        lr_drop=11,
        set_cost_class=2.0,
        cls_loss_coef=1.0,
        score_threshold=0.3,
    )


DEMO_OPTIONS: dict[str, Any] = DEMO | {"last_stage": 4, "num_feature_levels": 3, "num_queries": 40, "epochs": 4, "lr_drop": 3}

"""PnP-DETR: its options, the published recipe as defaults, and its demo's."""

from argparse import ArgumentTypeError, BooleanOptionalAction
from typing import Any

from common.cli.arguments import DEMO, Parser, add_clustering_options, add_query_options, number
from common.cli.masks import add_mask_options

NAME = "PnP-DETR"
POOLED, POOLED_OF_DC5 = 30, 100  # the published M
SCORE_NETS = ("2layer-fc-256", "2layer-fc-16", "1layer-fc")
KPROJ_NETS = ("1layer-fc", "2layer-fc")


def ratio(text: str) -> float:
    """An argparse type: a number between 0 and 1, these excluded."""
    value = number(float, 0, exclusive=True)(text)
    if value >= 1:
        raise ArgumentTypeError(f"{text!r} is no share of the pixels: pass a number above 0 and below 1")
    return value


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--pre_norm", action=BooleanOptionalAction, default=False, help="normalise before each part, not after")
    parser.add_argument("--eos_coef", type=number(float, 0), default=0.1, help="weight of the class 'no object' in the loss")
    add_query_options(parser, num_queries=100)
    own = parser.add_argument_group("poll and pool")
    own.add_argument("--sampling", choices=("pnp", "none"), default="pnp", help="poll and pool, or plain DETR (default: pnp)")
    own.add_argument("--sample_topk_ratio", type=ratio, default=1 / 3, help="share that is polled in use (default: 1/3)")
    own.add_argument(
        "--eval_ratios", type=ratio, nargs="+", metavar="RATIO", help="evaluate with each of these shares; the first one counts"
    )
    own.add_argument("--sample_ratio_lower_bound", type=ratio, default=1 / 3, help="least share in training (default: 1/3)")
    own.add_argument("--sample_ratio_higher_bound", type=ratio, default=0.8, help="largest in training (default: %(default)s)")
    own.add_argument("--sample_reg_loss", type=number(float, 0), default=1e-4, help="weight of the polled pixels' mean score")
    own.add_argument("--score_pred_net", choices=SCORE_NETS, default=SCORE_NETS[0], help="scores pixels (default: %(default)s)")
    own.add_argument("--kproj_net", choices=KPROJ_NETS, default=KPROJ_NETS[0], help="pools pixels (default: %(default)s)")
    own.add_argument("--pos_embed_kproj", action=BooleanOptionalAction, default=False, help="it sees positions, too")
    own.add_argument(
        "--unsample_abstract_number",
        type=number(int, 0),
        default=0,
        metavar="M",
        help=f"pooled vectors (default: {POOLED}, or {POOLED_OF_DC5} with --dilation)",
    )
    add_clustering_options(parser, smoothing_sigma=3.0)
    add_mask_options(parser)
    parser.set_defaults(
        backbone="resnet50",
        dilation=False,
        dim_feedforward=2048,
        dropout=0.1,
        batch_size=2,
        lr=1e-4,
        epochs=300,
        lr_drop=200,
        set_cost_class=1.0,
        cls_loss_coef=1.0,
        clustering="none",
    )


# On a map of 144 pixels: few pooled vectors, which see where pixels are; and a price that keeps scores from being all 1 after the
# demo's short training at a high rate.
DEMO_OPTIONS: dict[str, Any] = DEMO | {
    "pre_norm": True,
    "enc_layers": 3,
    "dec_layers": 3,
    "num_queries": 20,
    "unsample_abstract_number": 8,
    "pos_embed_kproj": True,
    "sample_reg_loss": 0.01,
    "epochs": 12,
    "lr_drop": 10,
}

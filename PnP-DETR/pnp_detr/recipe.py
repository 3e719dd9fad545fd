"""PnP-DETR: its options, the published recipe as defaults, its demo, and how it is built from them."""

from argparse import ArgumentTypeError, BooleanOptionalAction, Namespace
from typing import Any

from common.cli.arguments import DEMO, Parser, add_clustering_options, add_query_options, number
from common.cli.masks import MASK_ARCHITECTURE, MASK_CHANGEABLE, MASK_WEIGHTS, add_mask_options, build_segmenter
from common.detector import ARCHITECTURE, Detector
from common.errors import UserError
from common.evaluation.postprocess import softmax_detections
from common.losses.criterion import SetCriterion, build_criterion
from common.losses.set_losses import CrossEntropy
from common.models.assembly import build_parts
from common.models.segmenter import Segmenter
from common.models.transformer import build_transformer_options
from enact import record

from .checkpoint import adapt, export, reveal
from .criterion import PnPCriterion
from .model import PnPDETR
from .pictures import pictures
from .sampler import KPROJ_NETS, SCORE_NETS, Sampler
from .transformer import Transformer

POOLED, POOLED_OF_DC5 = 30, 100  # the published M


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
        help=f"pooled vectors (default: 0 for {POOLED}, or {POOLED_OF_DC5} with --dilation)",
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


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> PnPDETR | Segmenter:
    bounds = (args.sample_ratio_lower_bound, args.sample_ratio_higher_bound)
    if bounds[0] > bounds[1]:
        raise UserError(f"--sample_ratio_lower_bound {bounds[0]:g} is above --sample_ratio_higher_bound {bounds[1]:g}: swap them")
    if args.eval_ratios and args.sampling == "none":
        raise UserError("--eval_ratios are shares of polled pixels, which --sampling none has not: leave one of them out")
    parts = build_parts(args, num_classes + 1, load_backbone)
    pooled = args.unsample_abstract_number or (POOLED_OF_DC5 if args.dilation else POOLED)
    sampler = None
    if args.sampling == "pnp":
        sampler = Sampler(args.hidden_dim, pooled, args.score_pred_net, args.kproj_net, args.pos_embed_kproj)
    transformer = Transformer(build_transformer_options(args), sampler, pooled, args.clustering, args.smoothing_sigma)
    return build_segmenter(args, PnPDETR(args.sample_topk_ratio, bounds, transformer=transformer, **parts))


def build_losses(args: Namespace, num_classes: int) -> SetCriterion:
    own = {"sample_reg_loss": args.sample_reg_loss}
    return build_criterion(args, CrossEntropy(args.eos_coef), args.num_queries, PnPCriterion, **own)


def evaluations(args: Namespace) -> dict[str, dict[str, Any]]:
    """One for each of ``--eval_ratios``, with the published names."""
    if not args.eval_ratios:
        return {"": {}}
    return {f"ratio_{value:g}": {"sample_topk_ratio": value} for value in args.eval_ratios}


# On a map of 144 pixels: few pooled vectors, which see where pixels are; and a price that keeps scores from being all 1 after the
# demo's short training at a high rate.
DEMO_OPTIONS: dict[str, Any] = {
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

DETECTOR = Detector(
    name="PnP-DETR",
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=build_losses,
    build_postprocess=lambda args: softmax_detections,
    reveal=reveal,
    adapt=adapt,
    export=export,
    record=record,
    pictures=pictures,
    demo=DEMO | DEMO_OPTIONS,
    architecture=(
        *(*ARCHITECTURE, *MASK_ARCHITECTURE),
        *("pre_norm", "sampling", "score_pred_net", "kproj_net", "pos_embed_kproj", "unsample_abstract_number"),
    ),
    changeable=("clustering", "smoothing_sigma", "sample_topk_ratio", *MASK_CHANGEABLE),
    plain={"clustering": ("none", "W_prob"), "sampling": ("none", "sampler"), "masks": MASK_WEIGHTS},
    fresh=dict.fromkeys(("sampling", "score_pred_net", "kproj_net", "unsample_abstract_number"), ("sampler",)),
    evaluations=evaluations,
    compiled=(r"backbone\.0\.body", r"transformer\.decoder\.layers\.\d+"),
)

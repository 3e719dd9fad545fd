"""Conditional DETR + ENACT: its options, the recipe of the paper (section 4.2) as defaults, its demo, and how it is built."""

from argparse import Namespace

from common.cli.arguments import DEMO, Parser, add_clustering_options, add_query_options
from common.detector import Detector
from common.evaluation.postprocess import sigmoid_detections
from common.losses.criterion import SetCriterion, build_criterion
from common.losses.set_losses import FocalLoss
from common.models.assembly import build_parts
from common.models.transformer import build_transformer_options
from enact import record

from .checkpoint import adapt, export, reveal
from .model import ConditionalDETR
from .transformer import Transformer


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


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> ConditionalDETR:
    transformer = Transformer(build_transformer_options(args), args.clustering, args.smoothing_sigma)
    return ConditionalDETR(transformer=transformer, **build_parts(args, num_classes, load_backbone))


def build_losses(args: Namespace, num_classes: int) -> SetCriterion:
    return build_criterion(args, FocalLoss(), args.num_queries)


DETECTOR = Detector(
    name="Conditional-DETR-ENACT",
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=build_losses,
    build_postprocess=lambda args: sigmoid_detections,
    reveal=reveal,
    adapt=adapt,
    export=export,
    record=record,
    demo=DEMO | {"num_queries": 40},
    changeable=("clustering", "smoothing_sigma"),
    plain={"clustering": ("none", "W_prob")},
    compiled=(r"backbone\.0\.body", r"transformer\.decoder\.layers\.\d+"),
)

"""DETR + ENACT: its options, the recipe of the paper (section 4.2) as defaults, its demo, and how it is built from them."""

from argparse import BooleanOptionalAction, Namespace

from common.cli.arguments import DEMO, Parser, add_clustering_options, add_query_options, number
from common.cli.masks import MASK_ARCHITECTURE, MASK_CHANGEABLE, MASK_WEIGHTS, add_mask_options, build_segmenter
from common.detector import ARCHITECTURE, Detector
from common.evaluation.postprocess import softmax_detections
from common.losses.criterion import SetCriterion, build_criterion
from common.losses.set_losses import CrossEntropy
from common.models.assembly import build_parts
from common.models.segmenter import Segmenter
from common.models.transformer import build_transformer_options
from enact import record

from .checkpoint import adapt, export, reveal
from .model import DETR
from .transformer import Transformer


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


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> DETR | Segmenter:
    transformer = Transformer(build_transformer_options(args), args.clustering, args.smoothing_sigma)
    return build_segmenter(args, DETR(transformer=transformer, **build_parts(args, num_classes + 1, load_backbone)))


def build_losses(args: Namespace, num_classes: int) -> SetCriterion:
    return build_criterion(args, CrossEntropy(args.eos_coef), args.num_queries)


DETECTOR = Detector(
    name="DETR-ENACT",
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=build_losses,
    build_postprocess=lambda args: softmax_detections,
    reveal=reveal,
    adapt=adapt,
    export=export,
    record=record,
    demo=DEMO | {"pre_norm": True, "enc_layers": 3, "dec_layers": 3, "num_queries": 20, "epochs": 12, "lr_drop": 10},
    architecture=(*ARCHITECTURE, *MASK_ARCHITECTURE, "pre_norm"),
    changeable=("clustering", "smoothing_sigma", *MASK_CHANGEABLE),
    plain={"clustering": ("none", "W_prob"), "masks": MASK_WEIGHTS},
    compiled=(r"backbone\.0\.body", r"transformer\.decoder\.layers\.\d+"),
)

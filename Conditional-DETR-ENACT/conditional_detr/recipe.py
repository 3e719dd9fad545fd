"""How Conditional-DETR-ENACT is built from its options."""

from argparse import Namespace

from common.cli.arguments import CLUSTERING, clustering_of
from common.detector import Detector
from common.evaluation.postprocess import PostProcess, sigmoid_detections
from common.losses.criterion import SetCriterion, build_criterion
from common.losses.set_losses import FocalLoss
from common.models.assembly import build_parts
from common.models.transformer import build_transformer_options
from enact import record

from .checkpoint import adapt, export, reveal
from .model import ConditionalDETR
from .options import DEMO_OPTIONS, NAME, add_arguments
from .transformer import Transformer


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> ConditionalDETR:
    transformer = Transformer(build_transformer_options(args), **clustering_of(args))
    return ConditionalDETR(transformer=transformer, **build_parts(args, num_classes, load_backbone))


def build_losses(args: Namespace, num_classes: int) -> SetCriterion:
    return build_criterion(args, FocalLoss(), args.num_queries)


DETECTOR = Detector(
    name=NAME,
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=build_losses,
    build_postprocess=lambda args: PostProcess(sigmoid_detections),
    reveal=reveal,
    adapt=adapt,
    export=export,
    record=record,
    demo=DEMO_OPTIONS,
    changeable=CLUSTERING,
    plain={"clustering": ("none", "W_prob")},
    compiled=(r"backbone\.0\.body", r"transformer\.decoder\.layers\.\d+"),
)

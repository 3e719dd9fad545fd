"""How DETR-ENACT is built from its options."""

from argparse import Namespace

from common.cli.arguments import CLUSTERING, clustering_of
from common.cli.masks import MASK_ARCHITECTURE, MASK_CHANGEABLE, MASK_WEIGHTS
from common.detector import ARCHITECTURE, Detector
from common.evaluation.postprocess import PostProcess, softmax_detections
from common.losses.criterion import SetCriterion, build_criterion
from common.losses.set_losses import CrossEntropy
from common.models.assembly import build_parts
from common.models.segmenter import Segmenter, build_segmenter
from common.models.transformer import build_transformer_options
from enact import record

from .checkpoint import adapt, export, reveal
from .model import DETR
from .options import DEMO_OPTIONS, NAME, add_arguments
from .transformer import Transformer


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> DETR | Segmenter:
    transformer = Transformer(build_transformer_options(args), **clustering_of(args))
    return build_segmenter(args, DETR(transformer=transformer, **build_parts(args, num_classes + 1, load_backbone)))


def build_losses(args: Namespace, num_classes: int) -> SetCriterion:
    return build_criterion(args, CrossEntropy(args.eos_coef), args.num_queries)


DETECTOR = Detector(
    name=NAME,
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=build_losses,
    build_postprocess=lambda args: PostProcess(softmax_detections),
    reveal=reveal,
    adapt=adapt,
    export=export,
    record=record,
    demo=DEMO_OPTIONS,
    architecture=(*ARCHITECTURE, *MASK_ARCHITECTURE, "pre_norm"),
    changeable=(*CLUSTERING, *MASK_CHANGEABLE),
    plain={"clustering": ("none", "W_prob"), "masks": MASK_WEIGHTS},
    compiled=(r"backbone\.0\.body", r"transformer\.decoder\.layers\.\d+"),
)

"""DAC-DETR: its options, the published recipe as defaults, the demo, and how it is built from them."""

from argparse import BooleanOptionalAction, Namespace
from typing import Any

from common.cli.arguments import DEMO, Parser, number
from common.cli.deformable import (
    DEFORMABLE_ARCHITECTURE,
    add_deformable_options,
    build_levels,
    check_levels,
    parameter_rates,
)
from common.detector import ARCHITECTURE, Detector
from common.evaluation.postprocess import sigmoid_detections
from common.losses.criterion import SetCriterion, build_criterion
from common.losses.set_losses import FocalLoss
from common.models.swin import SWINS
from common.models.transformer import build_transformer_options

from .checkpoint import adapt, export, reveal
from .criterion import DACCriterion
from .denoising import Noise
from .model import DACDETR
from .pictures import pictures, record
from .postprocess import MOST_DETECTIONS, suppressed_detections
from .transformer import Transformer


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


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> DACDETR:
    check_levels(args)
    is_swin = args.backbone in SWINS
    # As published: nothing of a Swin transformer is frozen, and its blocks are recomputed on the way back.
    backbone = build_levels(Namespace(**vars(args), finetune_early_layers=is_swin, recompute=is_swin), load_backbone)
    transformer = Transformer(
        build_transformer_options(args), args.num_feature_levels, args.enc_n_points, args.dec_n_points, args.look_forward_twice
    )
    noise = Noise() if args.cdn else None
    return DACDETR(backbone, transformer, num_classes, args.num_queries, args.num_feature_levels, args.dac, noise)


def build_losses(args: Namespace, num_classes: int) -> SetCriterion:
    return build_criterion(args, FocalLoss(args.focal_alpha), args.num_queries, DACCriterion, ice=args.ice)


def build_postprocess(args: Namespace) -> Any:
    if args.nms:
        return suppressed_detections
    return lambda outputs, orig_sizes: sigmoid_detections(outputs, orig_sizes, k=MOST_DETECTIONS)


def parameter_groups(args: Namespace, images_per_step: int) -> list[tuple[str, float]]:
    return parameter_rates(args)


DETECTOR = Detector(
    name="DAC-DETR",
    add_arguments=add_arguments,
    build_model=build_model,
    build_criterion=build_losses,
    build_postprocess=build_postprocess,
    reveal=reveal,
    adapt=adapt,
    export=export,
    record=record,
    pictures=pictures,
    demo=DEMO | {"last_stage": 4, "num_feature_levels": 3, "num_queries": 40, "epochs": 4, "lr_drop": 3},
    architecture=(*ARCHITECTURE, *DEFORMABLE_ARCHITECTURE, "cdn"),
    changeable=("nms",),
    renewable=("class_embed", "label_enc", "query_embed"),
    fresh={"num_queries": ("query_embed",), "cdn": ("label_enc",)},
    parameter_groups=parameter_groups,
    compiled=(r"backbone\.0\.body",),
)

"""How PnP-DETR is built from its options."""

from argparse import Namespace
from typing import Any

from common.cli.arguments import CLUSTERING, clustering_of
from common.cli.masks import MASK_ARCHITECTURE, MASK_CHANGEABLE, MASK_WEIGHTS
from common.detector import ARCHITECTURE, Detector
from common.errors import UserError
from common.evaluation.postprocess import PostProcess, softmax_detections
from common.losses.criterion import SetCriterion, build_criterion
from common.losses.set_losses import CrossEntropy
from common.models.assembly import build_parts
from common.models.segmenter import Segmenter, build_segmenter
from common.models.transformer import build_transformer_options
from enact import record

from .checkpoint import adapt, export, reveal
from .criterion import PnPCriterion
from .model import PnPDETR
from .options import DEMO_OPTIONS, NAME, POOLED, POOLED_OF_DC5, add_arguments
from .pictures import pictures
from .sampler import Sampler
from .transformer import Transformer


def build_model(args: Namespace, num_classes: int, load_backbone: bool) -> PnPDETR | Segmenter:
    bounds = (args.sample_ratio_lower_bound, args.sample_ratio_higher_bound)
    if bounds[0] > bounds[1]:
        raise UserError(f"--sample_ratio_lower_bound {bounds[0]:g} is above --sample_ratio_higher_bound {bounds[1]:g}: swap them")
    if args.eval_ratios and args.sampling == "none":
        raise UserError("--eval_ratios are shares of polled pixels, which --sampling none has not: leave one of them out")
    walks = args.scan not in (None, "raster") or args.scan is None and args.clustering == "region+"
    if args.sampling == "pnp" and walks:
        option = f"--scan {args.scan}" if args.scan else "--clustering region+"
        raise UserError(f"{option} walks over a map, of which --sampling pnp leaves a sequence: pass --scan raster")
    parts = build_parts(args, num_classes + 1, load_backbone)
    pooled = args.unsample_abstract_number or (POOLED_OF_DC5 if args.dilation else POOLED)
    sampler = None
    if args.sampling == "pnp":
        sampler = Sampler(args.hidden_dim, pooled, args.score_pred_net, args.kproj_net, args.pos_embed_kproj)
    transformer = Transformer(build_transformer_options(args), sampler, pooled, **clustering_of(args))
    return build_segmenter(args, PnPDETR(args.sample_topk_ratio, bounds, transformer=transformer, **parts))


def build_losses(args: Namespace, num_classes: int) -> SetCriterion:
    own = {"sample_reg_loss": args.sample_reg_loss}
    return build_criterion(args, CrossEntropy(args.eos_coef), args.num_queries, PnPCriterion, **own)


def evaluations(args: Namespace) -> dict[str, dict[str, Any]]:
    """One for each of ``--eval_ratios``, with the published names."""
    if not args.eval_ratios:
        return {"": {}}
    return {f"ratio_{value:g}": {"sample_topk_ratio": value} for value in args.eval_ratios}


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
    pictures=pictures,
    demo=DEMO_OPTIONS,
    architecture=(
        *(*ARCHITECTURE, *MASK_ARCHITECTURE),
        *("pre_norm", "sampling", "score_pred_net", "kproj_net", "pos_embed_kproj", "unsample_abstract_number"),
    ),
    changeable=(*CLUSTERING, "sample_topk_ratio", *MASK_CHANGEABLE),
    plain={"clustering": ("none", "W_prob"), "sampling": ("none", "sampler"), "masks": MASK_WEIGHTS},
    fresh=dict.fromkeys(("sampling", "score_pred_net", "kproj_net", "unsample_abstract_number"), ("sampler",)),
    evaluations=evaluations,
    compiled=(r"backbone\.0\.body", r"transformer\.decoder\.layers\.\d+"),
)

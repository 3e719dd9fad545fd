"""From options to the parts of a model."""

from argparse import Namespace
from typing import Any

from ..errors import UserError
from .backbone import Backbone, build_backbone
from .levels import GROUPS
from .positions import build_position_embedding

BACKBONE_LEVELS = 3  # the most that deformable attention takes from it; further ones follow behind


def build_parts(args: Namespace, num_logits: int, load_backbone: bool) -> dict[str, Any]:
    """All arguments of a :class:`SingleScaleDetector` but its transformer: one feature map, one position per pixel, one embedding
    per query. A mask head wants all stages of the backbone.
    """
    stages = [f"layer{stage}" for stage in range(1, args.last_stage + 1)] if getattr(args, "masks", False) else ()
    return {
        "backbone": build_backbone(args, load_backbone, stages),
        "position_embedding": build_position_embedding(args.position_embedding, args.hidden_dim),
        "num_logits": num_logits,
        "num_queries": args.num_queries,
        "aux_loss": not args.no_aux_loss,
    }


def check_groups(args: Namespace) -> None:
    """Raises UserError where features cannot be normed in groups."""
    if args.hidden_dim % GROUPS:
        raise UserError(f"--hidden_dim {args.hidden_dim} must be divisible by {GROUPS}, the groups of the input projection's norm")


def check_levels(args: Namespace) -> None:
    """Raises UserError where levels cannot be built."""
    check_groups(args)
    if args.num_feature_levels > 1 and args.last_stage < BACKBONE_LEVELS:
        raise UserError(f"--num_feature_levels {args.num_feature_levels} takes the three stages up to --last_stage: pass 3 or 4")


def build_levels(args: Namespace, load_weights: bool) -> Backbone:
    """The backbone with the stages that the levels come from: the last one, or the last three."""
    first = args.last_stage - BACKBONE_LEVELS if args.num_feature_levels > 1 else args.last_stage - 1
    return build_backbone(args, load_weights, [f"layer{stage + 1}" for stage in range(first, args.last_stage)])

"""From options to the parts of a model with DETR's names: one feature map, one position per pixel, one embedding per query."""

from argparse import Namespace
from typing import Any

from .backbone import build_backbone
from .positions import build_position_embedding


def build_parts(args: Namespace, num_logits: int, load_backbone: bool) -> dict[str, Any]:
    """All arguments of a :class:`SingleScaleDetector` but its transformer. A mask head wants all stages of the backbone."""
    stages = [f"layer{stage}" for stage in range(1, args.last_stage + 1)] if getattr(args, "masks", False) else ()
    return {
        "backbone": build_backbone(args, load_backbone, stages),
        "position_embedding": build_position_embedding(args.position_embedding, args.hidden_dim),
        "num_logits": num_logits,
        "num_queries": args.num_queries,
        "aux_loss": not args.no_aux_loss,
    }

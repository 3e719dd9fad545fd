"""``nn.MultiheadAttention``, wherever it is: torch's own encoder, torchvision's ``VisionTransformer``, a detector of your own."""

import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..attention import ClusteredAttention


def is_attention(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention)


def prefix_of(attention: nn.MultiheadAttention, ancestors: Iterable[nn.Module]) -> int:
    """1, the class token, inside torchvision's ``VisionTransformer``; else 0."""
    host = sys.modules.get("torchvision.models.vision_transformer")
    return int(host is not None and any(isinstance(module, host.VisionTransformer) for module in ancestors))


def cluster(attention: nn.MultiheadAttention, prefix: int, options: dict[str, Any]) -> ClusteredAttention:
    return ClusteredAttention.from_attention(attention, prefix=prefix, **options)

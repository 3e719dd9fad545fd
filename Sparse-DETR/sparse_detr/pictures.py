"""What ``--predict --information`` shows: the scores, which tokens the encoder updates, and where the decoder looks.

Shapes: N tokens of several levels, H x W pixels of the finest one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention_map import decoder_attention_map


def pictures(records: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Tensor]:
    """Caption -> map, of a single image; scores and tokens where the model selects any.

    Scores are the best of all levels at a place, as probabilities. Attention is the sum of all levels, each token's share spread
    over its pixels; its root is shown, which brings out the lower ones.
    """
    shapes = outputs["shapes"]
    attention = decoder_attention_map(outputs["locations"], outputs["weights"], shapes)[0]
    attended = sum(_on_finest(level, shapes) / (level.numel() / shapes[0][0] / shapes[0][1]) for level in _maps(attention, shapes))
    if "scores" not in outputs:
        return {"Decoder attention": attended.sqrt()}
    scores = outputs["scores"][0].sigmoid()
    best = torch.stack([_on_finest(level, shapes) for level in _maps(scores, shapes)]).amax(0)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[outputs["tokens"][0][outputs["kept"][0]]] = True
    selected = {
        f"Updated of {level.shape[1]} x {level.shape[0]}: {level.float().mean():.0%}": level for level in _maps(chosen, shapes)
    }
    return {"Scores": best, "Decoder attention": attended.sqrt()} | selected


def _maps(tokens: Tensor, shapes: tuple[tuple[int, int], ...]) -> list[Tensor]:
    """(N,) -> per level (h, w)."""
    parts = tokens.split([height * width for height, width in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _on_finest(level: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """(h, w) -> (H, W)."""
    return F.interpolate(level[None, None], size=shapes[0], mode="nearest")[0, 0]

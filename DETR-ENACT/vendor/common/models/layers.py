"""Small layers that the detectors share."""

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Linear layers with ReLU between them: input_dim -> hidden_dim -> ... -> output_dim."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in zip(widths, widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def build_heads(d_model: int, num_classes: int, number: int, separate: bool) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Class heads and box heads of sigmoid detectors, as :func:`init_sigmoid_heads` starts them.

    Args:
        number: how many of each.
        separate: whether they are copies; else one module stands at every place, and the published weights repeat it.
    """
    heads = nn.Linear(d_model, num_classes), MLP(d_model, d_model, 4, num_layers=3)
    init_sigmoid_heads(*heads)
    return tuple(nn.ModuleList([deepcopy(head) if separate else head for _ in range(number)]) for head in heads)


def init_sigmoid_heads(class_embed: nn.Linear, bbox_embed: MLP) -> None:
    """A class starts with probability 0.01, a box at its anchor."""
    nn.init.constant_(class_embed.bias, -math.log(99))
    for parameter in bbox_embed.layers[-1].parameters():
        nn.init.zeros_(parameter)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)) of x in [0, 1], numerator and denominator at least ``eps``."""
    x = x.clamp(0.0, 1.0)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


def in_full_precision(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` in float32 at least, also under autocast: for what coordinates come from.

    bfloat16 has 8 bits of mantissa, with which a coordinate in [0, 1] falls on a grid of several pixels.
    """
    with torch.autocast(x.device.type, enabled=False):
        return module(full_precision(x))


def full_precision(x: Tensor) -> Tensor:
    """x in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rows(x: Tensor, tokens: Tensor) -> Tensor:
    """x (B, N, d) at tokens (B, n) -> (B, n, d)."""
    return x.gather(1, tokens[..., None].expand(-1, -1, x.shape[-1]))

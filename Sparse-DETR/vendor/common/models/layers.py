"""Small layers that the detectors share."""

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


def in_full_precision(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` in float32 at least, also under autocast: for what coordinates come from.

    bfloat16 has 8 bits of mantissa, with which a coordinate in [0, 1] falls on a grid of several pixels.
    """
    with torch.autocast(x.device.type, enabled=False):
        return module(x.to(torch.promote_types(x.dtype, torch.float32)))

"""Multi-scale deformable attention (Zhu et al., ICLR 2021, section 4.1).

Shapes: B images, N tokens of L feature levels, n queries, M heads of D features, P points, d = M * D features;
level l has H_l x W_l pixels.
"""

import importlib
import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .layers import in_full_precision
from .sampling import sample, sample_by_grid

COMPILED = "MultiScaleDeformableAttention"  # the module that the setup.py of Deformable DETR's operator installs


class Attended(NamedTuple):
    """Where queries looked, in float32.

    Attributes:
        locations: (B, n, M, L, P, 2), x and y in the padded maps, whose corners are (0, 0) and (1, 1).
        weights: (B, n, M, L, P), their sum over levels and points is 1.
    """

    locations: Tensor
    weights: Tensor


class DeformableAttention(nn.Module):
    """Each query looks at P points of each level around its reference, at places and with weights that it chooses itself.

    Args:
        d_model: d.
        num_levels: L.
        num_heads: M.
        num_points: P.

    At the start the points of a head lie 1, 2, ..., P pixels away in its own direction, and count alike.
    """

    def __init__(self, d_model: int, num_levels: int, num_heads: int, num_points: int):
        super().__init__()
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, num_points
        self.sampling_offsets = nn.Linear(d_model, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(d_model, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The start of the paper; to be called again after an initialisation of all weights."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction /= direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1)
        offsets = direction[:, None, None] * distance[:, None]
        self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        for zero in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            zero.zero_()
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            projection.bias.zero_()

    def forward(
        self, query: Tensor, reference: Tensor, memory: Tensor, key_padding_mask: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Attended]:
        """Attends.

        Args:
            query: (B, n, d), positions added.
            reference: (B, n, L, 2) points x, y, or (B, n, L, 4) boxes cx, cy, w, h, in the padded maps.
            memory: (B, N, d), the tokens that are sampled.
            key_padding_mask: (B, N) bool, True = padding: worth zero, as what lies outside the maps.
            shapes: (H_l, W_l) of the levels.

        Returns:
            (B, n, d), and where the queries looked.
        """
        value = self.value_proj(memory).masked_fill(key_padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))
        attended = self._attend(query, reference, shapes)
        # Coordinates on bfloat16's grid would be half a pixel off, and more.
        value = value.to(attended.weights.dtype)
        if torch.compiler.is_compiling():
            run = sample_by_grid
        else:
            run = _sample_compiled if value.is_cuda and value.dtype == torch.float32 and _compiled() else sample
        return self.output_proj(run(value, shapes, *attended)), attended

    def _attend(self, query: Tensor, reference: Tensor, shapes: Sequence[tuple[int, int]]) -> Attended:
        offsets = in_full_precision(self.sampling_offsets, query)
        offsets = offsets.unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
        weights = in_full_precision(self.attention_weights, query).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        reference = reference.to(offsets.dtype)[:, :, None, :, None]
        if reference.shape[-1] == 2:
            sizes = torch.tensor([(w, h) for h, w in shapes], dtype=offsets.dtype).to(offsets.device, non_blocking=True)
            offsets = offsets / sizes[:, None]
        else:
            offsets = offsets / self.num_points * reference[..., 2:] * 0.5
        return Attended(reference[..., :2] + offsets, weights.unflatten(-1, (self.num_levels, self.num_points)))


@cache
def _compiled() -> ModuleType | None:
    """The operator of Deformable DETR's authors, where it is installed."""
    return importlib.import_module(COMPILED) if find_spec(COMPILED) else None


def _sample_compiled(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """As :func:`sample`, by the compiled operator."""
    sizes = torch.tensor(shapes).to(value.device, non_blocking=True)
    areas = sizes.prod(1)
    return _Compiled.apply(value, sizes, areas.cumsum(0) - areas, locations, weights)


class _Compiled(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return _compiled().ms_deform_attn_forward(*_contiguous(inputs), len(inputs[0]))  # all images in one step

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        value, locations, weights = _compiled().ms_deform_attn_backward(*_contiguous((*inputs, grad)), len(inputs[0]))
        return value, None, None, locations, weights


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.contiguous() for x in tensors]

"""Weighted bilinear samples of feature maps: what deformable attention adds up (Zhu et al., ICLR 2021, eq. 2 and 3).

Shapes: B images, N tokens of L feature levels, n queries, M heads of D features, P points; level l has H_l x W_l pixels.

Of a level, a query's head wants the sum of P samples times their weights, and a bilinear sample is the sum of four pixels times
theirs: together a weighted sum of 4 P rows of a table. That is what ``F.embedding_bag`` computes, without storing the rows: neither
samples nor a stack of levels exist at any time. The way back computes the rows' places anew; only value, locations and weights are
kept for it. The gradient of the table is a weighted sum as well, for each pixel over the queries that sampled it, found by sorting.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 2**24  # entries of the bags of a level that are made at once: 64 MB of indices, 64 MB of weights
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # rows and columns from the upper left pixel


def sample(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sums, for every query and head, bilinear samples times their weights.

    The pixel at column x and row y has its centre at ((x + 0.5) / W_l, (y + 0.5) / H_l); outside a map there are zeros.

    Args:
        value: (B, N, M, D), the levels one after the other, each row by row.
        shapes: (H_l, W_l) of the L levels.
        locations: (B, n, M, L, P, 2), x and y; (0, 0) is the upper left corner of a map, (1, 1) the lower right.
        weights: (B, n, M, L, P).

    Returns:
        (B, n, M * D).
    """
    return _Sampling.apply(value, locations, weights, tuple(shapes))


def sample_by_grid(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """As :func:`sample`, in operators that compilers and ONNX know; it stores every sample."""
    maps = value.split([height * width for height, width in shapes], dim=1)
    out: Tensor | float = 0.0
    for level, (part, (height, width)) in enumerate(zip(maps, shapes, strict=True)):
        images = part.permute(0, 2, 3, 1).reshape(-1, part.shape[-1], height, width)  # (B M, D, H, W)
        grid = locations[:, :, :, level].transpose(1, 2).flatten(0, 1) * 2 - 1
        samples = F.grid_sample(images, grid, align_corners=False)  # (B M, D, n, P), zeros outside
        out = out + (samples * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return out.unflatten(0, (-1, value.shape[2])).flatten(1, 2).transpose(1, 2)


class _Points(NamedTuple):
    """Where the points of one level are, each (b, n, M, P).

    Attributes:
        row: of the upper left of four pixels, in the table of :func:`_table`.
        x, y: fractions of the way from the left to the right and from the upper to the lower pixel.
        inside_x, inside_y: whether moving along an axis changes anything.
    """

    row: Tensor
    x: Tensor
    y: Tensor
    inside_x: Tensor
    inside_y: Tensor


class _Sampling(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        batch, _, heads, features = value.shape
        queries = locations.shape[1]
        out = value.new_zeros(batch, queries, heads * features)
        for images, level, part, size in _chunks(value, locations, shapes):
            points = _locate(locations[images, :, :, level], size)
            bags, corner_weights = _bags(points, weights[images, :, :, level], size)
            summed = F.embedding_bag(bags, _table(part, size), per_sample_weights=corner_weights, mode="sum")
            out[images] += summed.view_as(out[images])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (value, locations, weights)]
        grad_value, grad_locations, grad_weights = grads
        start = starts_of(ctx.shapes)
        for images, level, part, size in _chunks(value, locations, ctx.shapes):
            height, width = size
            points, weight = _locate(locations[images, :, :, level], size), weights[images, :, :, level]
            bags, corner_weights = _bags(points, weight, size)
            rows = grad[images].reshape(len(bags), -1)
            tokens = slice(start[level], start[level] + height * width)
            grad_value[images, tokens] = _grad_of_table(points.row, corner_weights, rows, part.shape, size)
            upper_left, upper_right, lower_left, lower_right = (
                _grad_of_weights(bags, _table(part, size), corner_weights, rows).view(*weight.shape, 4).unbind(-1)
            )
            upper_step, lower_step = upper_right - upper_left, lower_right - lower_left
            upper, lower = upper_left + points.x * upper_step, lower_left + points.x * lower_step
            grad_weights[images, :, :, level] = upper + points.y * (lower - upper)
            step = upper_step + points.y * (lower_step - upper_step)
            grad_locations[images, :, :, level, :, 0] = step * weight * (width * points.inside_x)
            grad_locations[images, :, :, level, :, 1] = (lower - upper) * weight * (height * points.inside_y)
        return *grads, None


def starts_of(shapes: Sequence[tuple[int, int]]) -> list[int]:
    """The first token of each level, and behind the last the number of all."""
    return [0, *accumulate(height * width for height, width in shapes)]


def _chunks(
    value: Tensor, locations: Tensor, shapes: tuple[tuple[int, int], ...]
) -> Iterator[tuple[slice, int, Tensor, tuple[int, int]]]:
    """As many images as fit into a chunk, level after level: images, level, its part of the value (b, H W, M, D), its size."""
    batch, queries, heads, _, points, _ = locations.shape
    together = max(1, CHUNK // max(1, queries * heads * points * len(CORNERS)))
    for first in range(0, batch, together):
        images = slice(first, first + together)
        parts = value[images].split([height * width for height, width in shapes], dim=1)
        for level, (part, size) in enumerate(zip(parts, shapes, strict=True)):
            yield images, level, part, size


def _locate(locations: Tensor, size: tuple[int, int]) -> _Points:
    """locations (b, n, M, P, 2) in the map of a level of this size (H, W)."""
    (height, width), (images, _, heads, _, _) = size, locations.shape
    column, x, inside_x = _along(locations[..., 0], width)
    row, y, inside_y = _along(locations[..., 1], height)
    # The map has a border of zeros, one pixel wide.
    image = torch.arange(images, device=column.device)[:, None, None, None] * (height + 2) + 1
    head = torch.arange(heads, dtype=torch.int32, device=column.device)[:, None]
    pixel = ((row + image) * (width + 2) + (column + 1)).int()
    return _Points(pixel * heads + head, x, y, inside_x, inside_y)


def _along(location: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """One axis: the index of the pixel before each location, the way to the next one, and whether it matters.

    What lies outside is moved to the border, where it samples zeros. A location that is not a number makes a sample that is none.
    """
    position = location * length - 0.5
    clamped = position.clamp(-1, length)
    before = clamped.nan_to_num(-1.0).floor_().clamp_(max=length - 1)
    return before, clamped - before, (position > -1) & (position < length)


def _table(part: Tensor, size: tuple[int, int]) -> Tensor:
    """part (b, H W, M, D) -> (b (H + 2) (W + 2) M, D): the maps with a border of zeros, a row for each pixel and head."""
    height, width = size
    table = part.new_zeros(len(part), height + 2, width + 2, *part.shape[2:])
    table[:, 1:-1, 1:-1] = part.unflatten(1, size)
    return table.flatten(0, 3)


def _bags(points: _Points, weights: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The rows of the table that a query's head adds up, and their weights: (b n M, 4 P), the corners of a point side by side."""
    heads, width = weights.shape[2], size[1]
    steps = torch.tensor([(row * (width + 2) + column) * heads for row, column in CORNERS], dtype=torch.int32)
    rows = points.row[..., None] + steps.to(points.row.device, non_blocking=True)
    lower = weights * points.y
    upper = weights - lower
    upper_right, lower_right = upper * points.x, lower * points.x
    corner_weights = torch.stack((upper - upper_right, upper_right, lower - lower_right, lower_right), dim=-1)
    return rows.flatten(3).flatten(0, 2), corner_weights.flatten(3).flatten(0, 2)


def _grad_of_weights(bags: Tensor, table: Tensor, weights: Tensor, grad: Tensor) -> Tensor:
    """For each entry of a bag, the product of its row and the gradient of the bag's sum."""
    with torch.enable_grad():
        weights = weights.detach().requires_grad_()
        summed = F.embedding_bag(bags, table, per_sample_weights=weights, mode="sum")
    return torch.autograd.grad(summed, weights, grad)[0]


def _grad_of_table(row: Tensor, weights: Tensor, grad: Tensor, shape: torch.Size, size: tuple[int, int]) -> Tensor:
    """The gradient of the maps (b, H W, M, D): bags the other way round, of the points that have one upper left pixel.

    There is a bag for each corner, with the same points and other weights; its sums belong to that corner's pixels.
    """
    (images, _, heads, features), (height, width) = shape, size
    key, order = row.flatten().sort()
    first = torch.searchsorted(key, torch.arange(images * (height + 2) * (width + 2) * heads, device=key.device), out_int32=True)
    query = order.div(row.shape[-1], rounding_mode="floor").int()
    weights = weights.reshape(-1, len(CORNERS))[order].t().contiguous()
    total = grad.new_zeros(images, height + 2, width + 2, heads * features)
    for (down, right), weight in zip(CORNERS, weights):
        summed = F.embedding_bag(query, grad, first, per_sample_weights=weight, mode="sum").view_as(total)
        total[:, down:, right:] += summed[:, : height + 2 - down, : width + 2 - right]
    return total[:, 1:-1, 1:-1].reshape(images, height * width, heads, features)

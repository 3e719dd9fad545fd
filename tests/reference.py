"""The clustering of one image in plain loops, as the paper writes it (section 3), and batches of padded images.

Nothing here comes from `enact`, which it is the yardstick of: one image at a time, no padding, float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CLUSTERINGS = ("region", "window")  # "region+" is regions with other options, of which test_scans.py knows


@dataclass
class Reference:
    """Clusters of one image of N pixels; `index` is None at the pixels that windows leave over."""

    information: list[float]
    smoothed: list[float]
    index: list[int | None]
    weight: list[float]
    count: int

    def pool(self, x: Tensor) -> list[list[float]]:
        """Weighted sums of x (N, d) inside each cluster: count rows of d numbers."""
        pooled = [[0.0] * x.shape[1] for _ in range(self.count)]
        for row, m, w in zip(x.tolist(), self.index, self.weight):
            for i, number in enumerate(row):
                if m is not None:
                    pooled[m][i] += w * number
        return pooled


def reference_clusters(logits: Sequence[float], clustering: str, sigma: int) -> Reference:
    """Equations 3 to 7 for one image, from the score of every pixel."""
    n = len(logits)
    total = sum(math.exp(logit) for logit in logits)
    p = [math.exp(logit) / total + 1e-8 for logit in logits]
    information = [-x * math.log2(x) for x in p]

    radius = 3 * sigma if clustering == "region" else 3 * sigma - 1
    # From one pixel before the first to one behind the last, which the second derivative needs at the ends.
    smoothed = [smooth(information, i, sigma, radius, zero_ends=clustering == "window") for i in range(-1, n + 1)]
    if clustering == "window":
        smoothed[0] = smoothed[-1] = 0.0
    step = [-smoothed[i] + 2 * smoothed[i + 1] - smoothed[i + 2] > 0 for i in range(n)]
    smoothed = smoothed[1:-1]

    runs = [0]
    for i in range(1, n):
        runs.append(runs[-1] + (step[i] != step[i - 1]))
    index, count = runs, runs[-1] + 1
    if clustering == "window":
        index, count = windows(n, regions=count)

    weight = [0.0] * n
    for m in range(count):
        members = [i for i in range(n) if index[i] == m]
        denominator = sum(math.exp(smoothed[i]) for i in members)
        for i in members:
            weight[i] = math.exp(smoothed[i]) / denominator
    return Reference(information, smoothed, index, weight, count)


def smooth(signal: list[float], i: int, sigma: int, radius: int, zero_ends: bool = False) -> float:
    """The signal convolved with a Gaussian, at i.

    Beyond its ends it goes on with its end values (the paper does not say), or is 0 (the released code).
    """
    result = 0.0
    for x in range(-radius, radius + 1):
        gauss = math.exp(-(x**2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)
        if not zero_ends or 0 <= i + x < len(signal):
            result += gauss * signal[min(max(i + x, 0), len(signal) - 1)]
    return result


def windows(n: int, regions: int) -> tuple[list[int | None], int]:
    """Equal windows of the mean region length; half of the pixels left over are dropped at the start, the rest at the end."""
    length = round(n / regions)
    first = (n % length) // 2
    count = n // length
    return [(i - first) // length if first <= i < first + count * length else None for i in range(n)], count


def pad(maps: Sequence[Tensor], fill: float) -> tuple[Tensor, Tensor]:
    """Puts maps (H, W, d) into the top left corner of a common one and flattens it, as a detector does with its images.

    Returns:
        (B, N, d) with `fill` at the padding, and the padding mask (B, N), True = padding.
    """
    height, width = (max(x.shape[axis] for x in maps) for axis in (0, 1))
    batch = maps[0].new_full((len(maps), height, width, maps[0].shape[2]), fill)
    mask = torch.ones(batch.shape[:3], dtype=torch.bool)
    for image, padding, x in zip(batch, mask, maps):
        image[: x.shape[0], : x.shape[1]] = x
        padding[: x.shape[0], : x.shape[1]] = False
    return batch.flatten(1, 2), mask.flatten(1)


def random_sizes(images: int, longest: int) -> list[tuple[int, int]]:
    """(H, W) of as many images, each side from 1 to `longest`."""
    return [tuple(size) for size in torch.randint(1, longest + 1, (images, 2)).tolist()]


def random_maps(sizes: Sequence[tuple[int, int]], d: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """One map (H, W, d) for each size (H, W)."""
    return [torch.randn(height, width, d, dtype=dtype) for height, width in sizes]

"""Where a walk over pixels is cut into clusters.

Shapes: B images, N pixels in the order of the walk, d features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CUTS = ("bends", "steps")


def at_bends(bends: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The regions of the paper, maximal runs of equal sign: index (B, N) and count (B,)."""
    behind_first = torch.arange(1, bends.shape[1], device=bends.device)
    starts = (bends[:, 1:] != bends[:, :-1]) & (behind_first < lengths[:, None])
    index = F.pad(starts.cumsum(1), (1, 0))
    return index, index[:, -1] + 1


def at_steps(key: Tensor, order: Tensor, lengths: Tensor, count: Tensor) -> Tensor:
    """Cuts where the keys change most along the walk, so that those of a cluster are alike.

    The change between two neighbours is the distance of the means of two pixels on either side. Its peaks come first, the highest
    ones, since next to an edge that is wider than a pixel a second cut gains little; then all others. Of equal ones, the first.

    Args:
        key: (B, N, d), in the order in which they are given.
        order: (B, N) long, which of them is the i-th of the walk; anything behind ``lengths``.
        lengths: (B,) number of valid pixels, at least 1.
        count: (B,) number of clusters, 1 to ``lengths``.

    Returns:
        index (B, N) in the order of the walk; anything behind ``lengths``.
    """
    batch, n, _ = key.shape
    extended = torch.arange(-1, n + 1, device=key.device).clamp(min=0).minimum(lengths[:, None] - 1)  # the ends are repeated
    rows = order.gather(1, extended) + n * torch.arange(batch, device=key.device)[:, None]
    walked = key.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (batch, n + 2))
    walked = walked.to(torch.promote_types(key.dtype, torch.float32))
    pairs = walked[:, 1:] + walked[:, :-1]
    change = torch.linalg.vector_norm(pairs[:, 2:] - pairs[:, :-2], dim=-1)  # (B, N - 1)
    change = change.nan_to_num(nan=0.0, posinf=0.0)  # a diverged model still has clusters: its loss is where that is noticed

    behind = torch.arange(1, n, device=key.device) >= lengths[:, None]
    change = change.masked_fill(behind, -1.0)
    before, after = F.pad(change, (1, 0), value=-1.0)[:, :-1], F.pad(change, (0, 1), value=-1.0)[:, 1:]
    peak = (change > before) & (change >= after)
    rank = torch.where(peak, 1 + change, change / (1 + change)).masked_fill(behind, -1.0)  # 0 to 1 where there is no peak
    rank = F.pad(rank, (1, 0), value=torch.inf)  # a cluster begins at the first pixel in any case
    least = rank.sort(dim=1, descending=True).values.gather(1, count[:, None] - 1)
    above, equal = rank > least, rank == least
    starts = above | equal & (equal.cumsum(1) <= count[:, None] - above.sum(1, keepdim=True))
    return starts.cumsum(1) - 1


def in_windows(lengths: Tensor, regions: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """As in the released code, equal windows of the mean region length.

    Returns:
        index (B, N), count (B,), and dropped (B, N), True for the pixels left over.
    """
    length = (lengths.double() / regions).round().long()  # half to even, as Python's round
    count = lengths // length
    offset = (lengths - count * length) // 2
    shifted = torch.arange(n, device=lengths.device) - offset[:, None]
    index = shifted.div(length[:, None], rounding_mode="floor")
    dropped = (index < 0) | (index >= count[:, None])
    return index.clamp(min=0).minimum(count[:, None] - 1), count, dropped

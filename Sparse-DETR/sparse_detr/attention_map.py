"""The decoder attention map: how much each token of the encoder is looked at (Roh et al., ICLR 2022, section 3.2).

Shapes: B images, N tokens of S feature levels, L decoder layers, Q queries, M heads, P points.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.models.sampling import starts_of


@torch.no_grad()
def decoder_attention_map(locations: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """The attention that each token gets from all layers, queries and heads.

    A point's weight is shared out among four pixels as if pixels lay at the corners of the grid: half a pixel to the right of and
    below where the attention samples. The published networks learned from it, so it stays.

    Args:
        locations: (L, B, Q, M, S, P, 2) x, y in the padded maps, whose corners are (0, 0) and (1, 1).
        weights: (L, B, Q, M, S, P).
        shapes: (H, W) of the levels.

    Returns:
        (B, N) float32. What falls outside the maps is lost.
    """
    starts = starts_of(shapes)
    sizes, first = torch.tensor([(w, h) for h, w in shapes]), torch.tensor(starts[:-1])
    sizes, first = (x.to(locations.device, non_blocking=True) for x in (sizes, first))
    position = (locations.float() * sizes[:, None]).nan_to_num(-1.0, posinf=-1.0, neginf=-1.0)
    corner = position.floor()
    corners = torch.stack((corner, corner + 1))  # (2, ..., 2)
    shares = 1 - (position - corners).abs()
    inside = (corners >= 0) & (corners < sizes[:, None])
    (x, y), (share_x, share_y) = corners.unbind(-1), torch.where(inside, shares, 0.0).unbind(-1)
    # One axis for the left and right pixel, one for the upper and lower.
    column, row = x[:, None].clamp(min=0), y[None].clamp(min=0)
    token = (first[:, None] + torch.minimum(row, sizes[:, None, 1] - 1) * sizes[:, None, 0]).long()
    token = token + torch.minimum(column, sizes[:, None, 0] - 1).long()
    amount = share_x[:, None] * share_y[None] * weights.float()
    token, amount = (t.transpose(0, 3).flatten(1) for t in (token, amount))
    return amount.new_zeros(len(amount), starts[-1]).scatter_add_(1, token, amount)


@torch.no_grad()
def most_attended(attention: Tensor, mask: Tensor, counts: Tensor, most: int) -> Tensor:
    """1.0 at the tokens that the decoder looks at most, else 0.0: (B, N).

    Args:
        attention: (B, N).
        mask: (B, N) bool, True = padding, which is never among them.
        counts: (B,) how many in each image.
        most: at least the largest of them.
    """
    best = attention.masked_fill(mask, -1.0).topk(most, dim=1).indices
    chosen = torch.arange(most, device=mask.device) < counts[:, None]
    return torch.zeros_like(attention).scatter_(1, best, chosen.float())


@torch.no_grad()
def shares_attended(attention: Tensor, tokens: Tensor, kept: Tensor, shapes: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """How much of the decoder's attention falls on the tokens that the encoder updated, as a mean over the images.

    Args:
        attention: (B, N).
        tokens, kept: (B, k) of the selection.
        shapes: (H, W) of the levels.

    Returns:
        ``corr_mask_attn_map_dec_all``, and ``corr_mask_attn_map_dec_<l>`` within level l: NaN where that got no attention.
    """
    selected = torch.zeros_like(attention).scatter_(1, tokens, kept.float()) * attention
    parts = [h * w for h, w in shapes]
    shares = {"all": selected.sum(1) / attention.sum(1)}
    for level, (part, whole) in enumerate(zip(selected.split(parts, 1), attention.split(parts, 1))):
        shares[str(level)] = part.sum(1) / whole.sum(1)
    return {f"corr_mask_attn_map_dec_{name}": share.mean() for name, share in shares.items()}

"""Feature maps of several strides as one sequence of tokens.

Shapes: B images, N tokens of L levels, d features; level l has H_l x W_l pixels. Coordinates are x, y, sizes w, h, in this order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .backbone import resize_mask

# Proposals whose box comes closer than this to an end of [0, 1] are not valid: their logits would be too large.
MARGIN = 0.01
# The side of a proposal on the first level, as a share of the image; on each further level it is twice as large.
PROPOSAL_SIDE = 0.05


GROUPS = 32  # of the norm behind a projection


class InputProjections(nn.ModuleList):
    """From a backbone's stages to levels of d features: 1 x 1 convolutions, and behind the last stage further levels, each half of
    the one before; group norms behind all.

    Args:
        channels: of the backbone's stages.
        d_model: d, divisible by 32.
        num_levels: L, at least as many as stages.
    """

    def __init__(self, channels: Sequence[int], d_model: int, num_levels: int):
        convolutions = [nn.Conv2d(n, d_model, kernel_size=1) for n in channels]
        for n in [channels[-1], *[d_model] * num_levels][: num_levels - len(channels)]:
            convolutions.append(nn.Conv2d(n, d_model, kernel_size=3, stride=2, padding=1))
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)
        super().__init__(nn.Sequential(convolution, nn.GroupNorm(GROUPS, d_model)) for convolution in convolutions)

    def forward(self, features: Sequence[tuple[Tensor, Tensor]], mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The backbone's features and their masks, and the full-size mask (B, H0, W0) -> (B, d, H_l, W_l) and mask of each level.

        The first level behind the backbone sees its last features, the others the level before.
        """
        levels = [(proj(src), level_mask) for proj, (src, level_mask) in zip(self, features)]
        last = features[-1][0]
        for proj in list(self)[len(features) :]:
            last = proj(last)
            levels.append((last, resize_mask(mask, last.shape[-2:])))
        return levels


@dataclass(frozen=True)
class Levels:
    """The tokens of a batch, level after level, each row by row.

    Attributes:
        src: (B, N, d) features.
        pos: (B, N, d) positions.
        mask: (B, N) bool, True = padding.
        shapes: (H_l, W_l) of the levels.
        valid_sizes: (B, L, 2) columns and rows of each level that are not padding.
    """

    src: Tensor
    pos: Tensor
    mask: Tensor
    shapes: tuple[tuple[int, int], ...]
    valid_sizes: Tensor

    @cached_property
    def valid_ratios(self) -> Tensor:
        """(B, L, 2) shares of each map's width and height that are not padding."""
        return self.valid_sizes / _sizes(self.shapes, self.valid_sizes)

    @cached_property
    def centres(self) -> Tensor:
        """(B, N, 2) of the pixels, as shares of the valid part of the image; beyond 1 at padding."""
        centres = []
        for (height, width), valid_size in zip(self.shapes, self.valid_sizes.unbind(1), strict=True):
            x = torch.arange(width, device=self.src.device) + 0.5
            y = torch.arange(height, device=self.src.device) + 0.5
            pixels = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1).flatten(0, 1)
            centres.append(pixels / valid_size[:, None])
        return torch.cat(centres, dim=1)

    @cached_property
    def references(self) -> Tensor:
        """(B, N, L, 2) the centre of each token's pixel in every padded map."""
        return self.in_maps(self.centres)

    def in_maps(self, reference: Tensor) -> Tensor:
        """Points or boxes (B, n, 2 or 4) of the valid part of the image, in every padded map: (B, n, L, 2 or 4)."""
        ratios = self.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)
        return reference[:, :, None] * ratios[:, None]

    @cached_property
    def proposals(self) -> Tensor:
        """(B, N, 4) the logits of a box around each token's pixel, +inf at padding and at what is not valid.

        A box is a square in the unit of the image's sides. It is valid where its four numbers lie inside [0.01, 0.99]: a level with
        50 or more columns or rows loses the first and the last, and those from the sixth on lose all.
        """
        sides = [PROPOSAL_SIDE * 2**level for level, _ in enumerate(self.shapes)]
        side = torch.cat([self.centres.new_full((h * w,), side) for side, (h, w) in zip(sides, self.shapes, strict=True)])
        boxes = torch.cat((self.centres, side[:, None, None].expand(-1, self.src.shape[0], 2).transpose(0, 1)), dim=-1)
        valid = ((boxes > MARGIN) & (boxes < 1 - MARGIN)).all(-1) & ~self.mask
        return torch.where(valid[..., None], torch.logit(boxes), torch.inf)

    @cached_property
    def valid(self) -> Tensor:
        """(B, N) bool: tokens with a valid proposal."""
        return self.proposals[..., 0].isfinite()


def flatten_levels(features: Sequence[tuple[Tensor, Tensor]], position_embedding: nn.Module, level_embed: Tensor) -> Levels:
    """Lines the levels' tokens up.

    Args:
        features: per level (B, d, H_l, W_l) and its mask (B, H_l, W_l), True = padding.
        position_embedding: mask (B, H, W) -> (B, H, W, d).
        level_embed: (L, d), added to the positions of each level.
    """
    masks = [mask for _, mask in features]
    return Levels(
        src=torch.cat([src.flatten(2).transpose(1, 2) for src, _ in features], dim=1),
        pos=torch.cat([(position_embedding(mask) + level).flatten(1, 2) for mask, level in zip(masks, level_embed)], dim=1),
        mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
        shapes=tuple(tuple(mask.shape[1:]) for mask in masks),
        valid_sizes=torch.stack([torch.stack(((~m[:, 0]).sum(1), (~m[:, :, 0]).sum(1)), dim=-1) for m in masks], dim=1),
    )


def _sizes(shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(L, 2) width and height."""
    return torch.tensor([(width, height) for height, width in shapes]).to(like.device, non_blocking=True)

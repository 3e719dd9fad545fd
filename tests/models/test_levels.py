"""Several feature maps as one sequence of tokens."""

import math

import torch
from torch import Tensor, nn

from common.models.levels import flatten_levels
from common.models.positions import PositionEmbeddingSine

SIZES = ((4, 6), (2, 3))
VALID = ((4, 6), (3, 4))  # rows and columns of the two images on the first level; on the second half of them, rounded up
D_MODEL = 8


def levels_of(valid: tuple = VALID, sizes: tuple = SIZES):
    features = []
    for level, (height, width) in enumerate(sizes):
        mask = torch.ones(len(valid), height, width, dtype=torch.bool)
        for image, (rows, columns) in enumerate(valid):
            mask[image, : -(-rows // 2**level), : -(-columns // 2**level)] = False
        features.append((torch.randn(len(valid), D_MODEL, height, width), mask))
    embed = torch.arange(1.0, len(sizes) + 1)[:, None].expand(-1, D_MODEL) * 100
    return flatten_levels(features, PositionEmbeddingSine(D_MODEL, shift=-0.5), embed), features


def tokens(levels, x: Tensor, level: int) -> Tensor:
    """The part of one level as a map (B, H, W, ...)."""
    return x.split([h * w for h, w in levels.shapes], dim=1)[level].unflatten(1, levels.shapes[level])


def test_tokens_are_lined_up_level_by_level_and_row_by_row():
    """Published weights know this order, and each level's own embedding."""
    levels, features = levels_of()
    for level, (src, mask) in enumerate(features):
        assert torch.equal(tokens(levels, levels.src, level).permute(0, 3, 1, 2), src)
        assert torch.equal(tokens(levels, levels.mask, level), mask)
        sine = PositionEmbeddingSine(D_MODEL, shift=-0.5)(mask) + 100 * (level + 1)
        torch.testing.assert_close(tokens(levels, levels.pos, level), sine)


def test_positions_are_those_of_the_pixels_centres():
    """The first pixel of n is at 0.5 / n of the circle, not at 1 / n as DETR has it."""
    position = PositionEmbeddingSine(4, shift=-0.5)(torch.zeros(1, 2, 5, dtype=torch.bool))
    angle = torch.tensor([0.25, 0.75]) * 2 * math.pi
    torch.testing.assert_close(position[0, :, 0, 0], angle.sin(), rtol=0, atol=1e-5)
    angle = (torch.arange(5) + 0.5) / 5 * 2 * math.pi
    torch.testing.assert_close(position[0, 0, :, 3], angle.cos(), rtol=0, atol=1e-5)


def test_a_zero_offset_samples_the_tokens_own_pixel():
    """References are in the padded maps: times its size, the centre of the token's pixel on its own level."""
    levels, _ = levels_of()
    for level, (height, width) in enumerate(SIZES):
        own = tokens(levels, levels.references[:, :, level], level) * torch.tensor([width, height])
        x, y = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
        torch.testing.assert_close(own, torch.stack((x, y), dim=-1).expand_as(own))


def test_a_reference_is_relative_to_the_valid_part():
    """The middle of the image is the middle of what is not padding, on every level."""
    levels, _ = levels_of()
    middle = levels.in_maps(torch.full((2, 1, 4), 0.5))
    ratios = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[4 / 6, 3 / 4], [2 / 3, 2 / 2]]])  # x, y
    torch.testing.assert_close(middle[:, 0], 0.5 * ratios.repeat(1, 1, 2))


def test_proposals_are_squares_around_the_pixels():
    """Boxes are in shares of the valid image, their sides double from level to level; padding has none."""
    levels, _ = levels_of()
    boxes = levels.proposals.sigmoid()
    assert (boxes[levels.mask] == 1).all() and torch.equal(levels.valid, ~levels.mask)
    torch.testing.assert_close(tokens(levels, boxes, 0)[1, 2, 1], torch.tensor([1.5 / 4, 2.5 / 3, 0.05, 0.05]))
    torch.testing.assert_close(tokens(levels, boxes, 1)[0, 1, 0], torch.tensor([0.5 / 3, 1.5 / 2, 0.1, 0.1]))


def test_the_border_of_large_maps_and_high_levels_have_no_proposals():
    """With 50 columns the first centre lies at 0.01, which is not inside; on the sixth level a side is longer than the image's."""
    sizes = ((3, 51), (3, 49), (2, 2), (1, 1), (1, 1), (1, 1))
    features = [(torch.zeros(1, D_MODEL, *size), torch.zeros(1, *size, dtype=torch.bool)) for size in sizes]
    levels = flatten_levels(features, PositionEmbeddingSine(D_MODEL, shift=-0.5), torch.zeros(len(sizes), D_MODEL))
    valid = [tokens(levels, levels.valid, level)[0] for level in range(len(sizes))]
    assert not valid[0][:, [0, -1]].any() and valid[0][:, 1:-1].all()
    assert all(v.all() for v in valid[1:5]) and not valid[5].any()
    assert isinstance(levels.proposals, Tensor) and levels.proposals[~levels.valid].isposinf().all()
    assert nn.functional.sigmoid(levels.proposals).isfinite().all()

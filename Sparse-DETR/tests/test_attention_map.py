"""The decoder attention map and what the scoring network learns from it."""

import math

import torch

from sparse_detr.attention_map import decoder_attention_map, most_attended, shares_attended

SHAPES = ((5, 7), (3, 4), (1, 1))
TOKENS = sum(h * w for h, w in SHAPES)


def random_attention(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """2 layers, 2 images, 3 queries, 2 heads, 2 points: locations from outside to outside, weights that add up to 1."""
    generator = torch.Generator().manual_seed(seed)
    locations = torch.rand(2, 2, 3, 2, len(SHAPES), 2, 2, generator=generator) * 1.4 - 0.2
    weights = torch.rand(2, 2, 3, 2, len(SHAPES) * 2, generator=generator).softmax(-1)
    return locations, weights.unflatten(-1, (len(SHAPES), 2))


def by_loops(locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    found = torch.zeros(locations.shape[1], TOKENS)
    starts = [sum(h * w for h, w in SHAPES[:level]) for level in range(len(SHAPES))]
    for index in torch.cartesian_prod(*[torch.arange(n) for n in weights.shape]).tolist():
        image, level = index[1], index[4]
        height, width = SHAPES[level]
        x, y = (locations[tuple(index)] * torch.tensor([width, height])).tolist()
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(x - column)) * (1 - abs(y - row))
                    found[image, starts[level] + row * width + column] += weights[tuple(index)] * share
    return found


def test_the_map_is_that_of_the_loop():
    """Every layer, query, head, level and point counts once; what falls outside is lost."""
    locations, weights = random_attention()
    found = decoder_attention_map(locations, weights, SHAPES)
    torch.testing.assert_close(found, by_loops(locations, weights), rtol=0, atol=1e-5)
    inside = decoder_attention_map(locations.clamp(0.2, 0.5), weights, SHAPES[:1] + ((3, 4), (9, 9)))
    torch.testing.assert_close(inside.sum(1), weights.sum((0, 2, 3, 4, 5)))


def test_a_location_on_a_pixels_corner_gives_it_everything():
    """As published: half a pixel beside where the attention samples."""
    location = torch.tensor([2 / 7, 3 / 5]).view(1, 1, 1, 1, 1, 1, 2)
    found = decoder_attention_map(location, torch.ones(1, 1, 1, 1, 1, 1), SHAPES[:1]).view(SHAPES[0])
    assert found[3, 2] > 0.999 and found.sum() <= 1.0001


def test_a_location_that_diverged_is_lost():
    """It reaches the loss, which stops the run; here it must not end the process."""
    locations, weights = random_attention()
    locations[0, 0, 0, 0, 0, 0], locations[1, 1, 1, 1, 1, 1] = torch.nan, torch.inf
    assert decoder_attention_map(locations, weights, SHAPES).isfinite().all()


def test_the_target_has_as_many_ones_as_tokens_are_kept():
    """In every image its own number, at the tokens with the most attention, and none at padding."""
    attention = torch.rand(2, 10)
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[1, 4:] = True
    target = most_attended(attention, mask, torch.tensor([6, 2]), 7)
    assert target.sum(1).tolist() == [6, 2] and not target[1, 4:].any()
    assert attention[0][target[0] == 1].min() > attention[0][target[0] == 0].max()


def test_all_tokens_get_all_attention():
    """The logged share is 1 where every token is selected, and counts no surplus."""
    attention = by_loops(*random_attention())
    tokens, kept = torch.arange(TOKENS).expand(2, -1), torch.ones(2, TOKENS, dtype=torch.bool)
    shares = shares_attended(attention, tokens, kept, SHAPES)
    assert list(shares) == [f"corr_mask_attn_map_dec_{name}" for name in ("all", 0, 1, 2)]
    torch.testing.assert_close(torch.stack(list(shares.values())), torch.ones(4))
    assert shares_attended(attention, tokens, ~kept, SHAPES)["corr_mask_attn_map_dec_all"] == 0
    first = torch.arange(TOKENS) < 35
    assert shares_attended(attention * first, tokens, kept, SHAPES)["corr_mask_attn_map_dec_1"].isnan()

"""Position embeddings against their formulas, pixel by pixel."""

import math

import pytest
import torch

from common.errors import UserError
from common.models.positions import build_position_embedding, sine_embedding


def masks():
    """Padding at the right and bottom as batches have it, none at all, and all but one pixel."""
    mask = torch.ones(3, 5, 7, dtype=torch.bool)
    for image, (height, width) in enumerate([(3, 6), (5, 7), (1, 1)]):
        mask[image, :height, :width] = False
    return mask


def sine_formula(mask, num_feats):
    """DETR's embedding: sines and cosines of 2 pi times the share of the valid pixels that lie up to here, row before column."""
    batch, height, width = mask.shape
    expected = torch.zeros(batch, height, width, 2 * num_feats, dtype=torch.float64)
    valid = (~mask).int().tolist()
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                column = [valid[b][k][j] for k in range(height)]
                row = valid[b][i]
                for first, line, at in ((0, column, i), (num_feats, row, j)):
                    position = 2 * math.pi * sum(line[: at + 1]) / (sum(line) + 1e-6)
                    for k in range(num_feats):
                        angle = position / 10000 ** (2 * (k // 2) / num_feats)
                        expected[b, i, j, first + k] = math.cos(angle) if k % 2 else math.sin(angle)
    return expected


def test_sine_embedding_equals_the_formula():
    """Protects published weights, which were trained on exactly these values, padding included."""
    embedding = build_position_embedding("sine", 16)(masks())
    torch.testing.assert_close(embedding.double(), sine_formula(masks(), 8), rtol=0, atol=2e-6)


def test_sine_embedding_of_any_coordinates():
    """Protects its use for reference points: any leading shape, and the first features vary fastest."""
    embedding = sine_embedding(torch.tensor([[0.5], [2.0]]), 4)
    expected = [[[f(x / t) for t in (1, 100) for f in (math.sin, math.cos)]] for x in (0.5, 2.0)]
    torch.testing.assert_close(embedding, torch.tensor(expected))


@pytest.mark.parametrize("kind", ["sine", "learned"])
def test_an_image_is_embedded_alike_in_every_batch(kind):
    """Protects evaluation from depending on the batch size: neither other images nor padding change the valid pixels."""
    torch.manual_seed(0)
    embed, mask = build_position_embedding(kind, 8), masks()
    together = embed(mask)
    for image, (height, width) in enumerate([(3, 6), (5, 7), (1, 1)]):
        alone = embed(mask[image : image + 1, :height, :width])
        assert torch.equal(together[image, :height, :width], alone[0])


def test_learned_embedding_is_column_then_row():
    """Protects DETR's layout, under which published weights load."""
    embed = build_position_embedding("learned", 6)
    assert {k: tuple(v.shape) for k, v in embed.state_dict().items()} == {"row_embed.weight": (50, 3), "col_embed.weight": (50, 3)}
    embedding = embed(torch.zeros(2, 4, 50, dtype=torch.bool))
    assert embedding.shape == (2, 4, 50, 6)
    for b, i, j in ((0, 0, 0), (0, 3, 0), (1, 2, 49)):
        assert torch.equal(embedding[b, i, j], torch.cat((embed.col_embed.weight[j], embed.row_embed.weight[i])))


@pytest.mark.parametrize("height, width", [(51, 4), (4, 51)])
def test_learned_embedding_says_where_it_ends(height, width):
    """Protects users of large images from an index error."""
    with pytest.raises(UserError, match=f"50 x 50, not {height} x {width}: use --position_embedding sine"):
        build_position_embedding("learned", 6)(torch.zeros(1, height, width, dtype=torch.bool))

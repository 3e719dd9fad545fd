"""Which tokens the encoder updates, and what it does with them: against loops over single images."""

import pytest
import torch
from torch import Tensor

from common.models.levels import Levels, flatten_levels
from common.models.positions import PositionEmbeddingSine
from common.models.transformer import TransformerOptions
from sparse_detr.scoring import ScoringNetwork, count_tokens, select
from sparse_detr.transformer import DeformableOptions, Transformer

D_MODEL = 32
SIZES = [[(7, 9), (4, 5), (2, 3)], [(5, 3), (3, 2), (2, 1)], [(6, 9), (3, 5), (2, 3)]]  # (H, W) of the levels, image by image


def transformer(rho: float) -> Transformer:
    torch.manual_seed(0)
    options = TransformerOptions(D_MODEL, 4, 64, 0.0, enc_layers=3, dec_layers=1)
    deformable = DeformableOptions(num_feature_levels=3, num_queries=5, with_box_refine=True, two_stage=True, rho=rho)
    model = Transformer(options, deformable).eval()
    for parameter in model.parameters():  # what is zero at first would hide where attention looks
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return model


def images(number: int) -> list[list[Tensor]]:
    """Per image the projected features (d, H, W) of its levels."""
    generator = torch.Generator().manual_seed(number)
    return [[torch.randn(D_MODEL, *size, generator=generator) for size in sizes] for sizes in SIZES[:number]]


def batch(features: list[list[Tensor]], embed: Tensor) -> Levels:
    """The images padded to a common size, with numbers that must not matter."""
    levels = []
    for maps in zip(*features):
        height, width = (max(x.shape[axis] for x in maps) for axis in (1, 2))
        src, mask = torch.full((len(maps), D_MODEL, height, width), 50.0), torch.ones(len(maps), height, width, dtype=torch.bool)
        for image, x in enumerate(maps):
            src[image, :, : x.shape[1], : x.shape[2]] = x
            mask[image, : x.shape[1], : x.shape[2]] = False
        levels.append((src, mask))
    return flatten_levels(levels, PositionEmbeddingSine(D_MODEL, shift=-0.5), embed)


@pytest.mark.parametrize(
    ("valid", "rho", "expected"), [(10, 0.1, 2), (10, 1.0, 10), (1, 0.01, 1), (100, 0.29, 30), (22223, 0.3, 6667)]
)
def test_a_share_and_one_more_token_are_kept(valid, rho, expected):
    """Rounded down in float32, in which 10 x 0.1 is 1 and 100 x 0.29 is 29; never more than there are."""
    assert count_tokens(torch.tensor([valid]), rho).tolist() == [expected]


@pytest.mark.parametrize("rho", [0.01, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("number", [1, 2, 3])
@torch.no_grad()
def test_a_batch_is_encoded_as_its_images_one_by_one(number, rho):
    """Scores, tokens and memory of every image, from a loop that builds everything for a single image of its own size."""
    model, features = transformer(rho), images(number)
    levels = batch(features, model.level_embed)
    selection = model.select(levels)
    memory, _ = model.encoder(levels, selection)
    assert torch.equal(selection.counts, count_tokens((~levels.mask).sum(1), rho))
    for image, own in enumerate(features):
        alone = batch([own], model.level_embed)
        scores, expected = encode_alone(model, alone, rho)
        valid = ~levels.mask[image]
        torch.testing.assert_close(selection.scores[image][valid], scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(memory[image][valid], expected, rtol=0, atol=1e-4)
        kept = selection.tokens[image][selection.kept[image]]
        assert valid[kept].all() and len(kept.unique()) == len(kept)


def encode_alone(model: Transformer, levels: Levels, rho: float) -> tuple[Tensor, Tensor]:
    """Scores (N,) and memory (N, d) of one image without padding; tokens one after the other."""
    src, pos, valid = levels.src[0], levels.pos[0], levels.valid[0]
    m = torch.stack([x if ok else torch.zeros(D_MODEL) for x, ok in zip(src + pos, valid)])
    m = model.enc_output_norm(model.enc_output(m))
    hidden = model.enc_mask_predictor.layer1(m)
    mean = hidden[:, D_MODEL // 2 :].mean(0)
    scores = torch.cat([model.enc_mask_predictor.layer2(torch.cat((x[: D_MODEL // 2], mean))) for x in hidden])
    number = min(int(len(src) * rho + 1e-4) + 1, len(src))
    best = sorted(range(len(src)), key=lambda i: -scores[i])[:number]
    memory = src.clone()
    for layer in model.encoder.layers:
        new = [layer(memory[None, [i]], pos[None, [i]], levels.references[:, [i]], memory[None], levels)[0, 0] for i in best]
        memory[best] = torch.stack(new)
    return scores, memory


@torch.no_grad()
def test_with_all_tokens_it_is_the_dense_encoder():
    """rho = 1 and no rho at all: the same, but for padding, which the dense encoder updates and nobody sees."""
    model = transformer(1.0)
    levels = batch(images(3), model.level_embed)
    sparse, _ = model.encoder(levels, model.select(levels))
    dense, _ = model.encoder(levels, None)
    torch.testing.assert_close(sparse[~levels.mask], dense[~levels.mask], rtol=0, atol=1e-5)


@torch.no_grad()
def test_tokens_that_are_not_selected_stay_what_they_are():
    """Bit for bit; and every selected one changes."""
    model = transformer(0.3)
    levels = batch(images(3), model.level_embed)
    selection = model.select(levels)
    memory, _ = model.encoder(levels, selection)
    changed = (memory != levels.src).any(-1)
    chosen = torch.zeros_like(changed)
    for image, (tokens, kept) in enumerate(zip(selection.tokens, selection.kept)):
        chosen[image, tokens[kept]] = True
    assert torch.equal(changed, chosen)


def test_padding_is_selected_by_nobody_and_scores_nothing():
    """Whatever its score is: the largest of all changes no other score, and is not chosen."""
    torch.manual_seed(0)
    network, x = ScoringNetwork(D_MODEL), torch.randn(2, 20, D_MODEL)
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[1, 5:] = True
    scores = network(x, mask)
    x[1, 5:] = 1000.0
    assert torch.equal(network(x, mask)[~mask], scores[~mask])
    selection = select(scores.masked_fill(mask, 1e9), mask, 0.5)
    assert selection.counts.tolist() == [11, 3] and (selection.tokens[1, :3] < 5).all()

"""The options of Anchor DETR, and its published names.

Shapes: L decoder layers, B images, Q queries, C classes.
"""

import math

import pytest
import torch
from torch import nn

from anchor_detr.checkpoint import adapt, export
from anchor_detr.model import Transformer
from anchor_detr.recipe import DETECTOR
from anchor_detr.transformer import embed_2d, pixel_coordinates
from common.cli.options import parse
from common.errors import UserError

TINY = (
    "--hidden_dim 32 --nheads 4 --enc_layers 2 --dec_layers 2 --dim_feedforward 64 --backbone resnet10 --backbone_weights none "
    "--num_query_position 4 --num_query_pattern 2"
)
CLASSES = 6


def build(text: str, num_classes: int = CLASSES) -> tuple[nn.Module, nn.Module]:
    """The model and its losses."""
    args, _ = parse(DETECTOR, text.split())
    torch.manual_seed(0)
    return DETECTOR.build_model(args, num_classes, False), DETECTOR.build_criterion(args, num_classes)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images, the second one padded."""
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 40:] = mask[1, :, 70:] = True
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)), mask


@pytest.mark.parametrize("clustering", ["none", "region", "window"])
@pytest.mark.parametrize(
    "options",
    [
        "--attention_type RCDA",
        "--attention_type nn.MultiheadAttention",
        "--spatial_prior grid",
        "--no-dilation",
        "--num_feature_levels 3",
        "--num_feature_levels 3 --attention_type nn.MultiheadAttention",
    ],
)
def test_every_published_option_trains(options, clustering):
    """Each option builds a model of the right outputs, all of whose parameters a loss reaches."""
    model, criterion = build(f"{TINY} {options} --clustering {clustering}")
    images, mask = batch()
    outputs = model.train()(images, mask)
    assert outputs["pred_logits"].shape == (2, 2, 8, CLASSES) and outputs["pred_boxes"].shape == (2, 2, 8, 4)
    assert outputs["feature_size"] == ((2, 3) if "--no-dilation" in options else (4, 6))
    targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.4, 0.4, 0.3, 0.3]])} for _ in range(2)]
    loss, _ = criterion(outputs, targets, criterion.count(targets))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    scores = [p.grad.abs().max() for name, p in model.named_parameters() if name.endswith("W_prob.weight")]
    assert len(scores) == (0 if clustering == "none" else 2) and all(score > 0 for score in scores)


def test_attention_between_levels_sees_every_level_of_a_pixel_and_no_other_pixel():
    """The level encoder mixes the levels of one pixel: changing a pixel of one level changes that pixel in all levels only."""
    layer = build(f"{TINY} --num_feature_levels 3 --clustering none")[0].transformer.encoder_layers_level[0]
    generator = torch.Generator().manual_seed(0)
    src, level_embed = torch.randn(6, 4, 5, 32, generator=generator), torch.randn(3, 32, generator=generator)
    changed = src.clone()
    changed[4, 1, 2] += 1  # the second image's second level
    difference = (layer(changed, level_embed) - layer(src, level_embed)).abs().amax(-1) > 1e-6
    expected = torch.zeros(6, 4, 5, dtype=torch.bool)
    expected[3:, 1, 2] = True
    assert torch.equal(difference, expected)


def test_queries_are_patterns_at_anchor_points():
    """Pattern-major: all points with the first pattern, then all with the second; a box starts around its point, and small."""
    model = build(TINY)[0]
    reference, tgt = model.transformer._queries(batch=3)
    assert reference.shape == (3, 8, 2) and torch.equal(reference[0, :4], reference[0, 4:])
    assert torch.equal(tgt[2, :4], model.transformer.pattern.weight[:1].expand(4, -1))
    assert torch.equal(tgt[2, 4:], model.transformer.pattern.weight[1:].expand(4, -1))
    boxes = model.eval()(*batch())["pred_boxes"][-1]
    torch.testing.assert_close(boxes[..., :2], reference[:2].clamp(1e-5, 1 - 1e-5), rtol=0, atol=1e-5)
    torch.testing.assert_close(boxes[..., 2:], torch.full((2, 8, 2), 1 / (1 + math.e**2)), rtol=0, atol=1e-6)


def test_the_grid_is_a_grid():
    """``--spatial_prior grid`` fixes the points at the centres of equal cells."""
    grid = build(f"{TINY} --spatial_prior grid")[0].transformer.grid
    assert grid.tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


@pytest.mark.parametrize("options", ["--spatial_prior grid --num_query_position 5", "--num_feature_levels 3 --no-dilation"])
def test_options_that_contradict_each_other(options):
    """One sentence that names the option, instead of another model than the one asked for."""
    with pytest.raises(UserError, match=options.split()[0]):
        build(f"{TINY} {options}")


def test_positions_are_those_of_the_valid_pixels():
    """Coordinates are centres of pixels over the size of the valid part; the embedding is written out for one point."""
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    mask[1, 3:] = mask[1, :, 2:] = True
    x, y = pixel_coordinates(mask)
    torch.testing.assert_close(x[0], torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    torch.testing.assert_close(x[1, :2], torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(y[1, :3], torch.tensor([1 / 6, 0.5, 5 / 6]))
    features = embed_2d(torch.tensor([0.3, 0.6]), 8)
    angles = [2 * math.pi * value / 10000 ** (pair / 2) for value in (0.6, 0.3) for pair in (0, 1)]
    expected = [f(angle) for angle in angles for f in (math.sin, math.cos)]
    torch.testing.assert_close(features, torch.tensor(expected))


def test_the_heads_are_shared_and_repeated_in_the_state_dict():
    """As in the published checkpoints: ``class_embed.0`` to ``class_embed.5`` are the same weights."""
    transformer: Transformer = build(TINY)[0].transformer
    names = set(transformer.state_dict())
    assert {f"class_embed.{i}.weight" for i in range(2)} <= names
    assert transformer.class_embed[0] is transformer.class_embed[1]
    assert len([p for p in transformer.parameters() if p.shape == (CLASSES, 32)]) == 1


def test_released_checkpoints_are_converted():
    """``ENACT.W_prob`` moves into the attention, and k_row, k_col, q_row, q_col, v become q_row, q_col, k_row, k_col, v."""
    own = build(f"{TINY} --clustering window")[0].state_dict()
    released = {}
    for name, value in own.items():
        if "encoder_layers" in name and "self_attn.in_proj" in name:
            q_row, q_col, k_row, k_col, v = value.chunk(5)
            value = torch.cat((k_row, k_col, q_row, q_col, v))
        released[name.replace("self_attn.W_prob", "ENACT.W_prob")] = value
    adapted = adapt(released, 4)
    assert adapted.keys() == own.keys()
    assert all(torch.equal(adapted[name], value) for name, value in own.items())
    exported = export(own, 4)
    assert exported.keys() == released.keys() and all(torch.equal(exported[name], value) for name, value in released.items())
    assert all(adapt(own, 4)[name] is value for name, value in own.items())

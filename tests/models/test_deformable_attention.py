"""Multi-scale deformable attention: against another implementation, at its start, and with the compiled operator."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrMultiscaleDeformableAttention

from common.models import deformable_attention
from common.models.deformable_attention import DeformableAttention
from common.models.sampling import sample

SHAPES = ((6, 9), (3, 5), (2, 3), (1, 2))
TOKENS = sum(h * w for h, w in SHAPES)
D_MODEL, HEADS, POINTS = 32, 4, 3


def attention(scale: float = 0.3) -> DeformableAttention:
    """With weights that send the queries to different places, the same in every call."""
    torch.manual_seed(0)
    module = DeformableAttention(D_MODEL, len(SHAPES), HEADS, POINTS)
    for parameter in module.parameters():
        parameter.data.add_(scale * torch.randn(parameter.shape))
    return module


def data(queries: int, coordinates: int, batch: int = 2) -> tuple[torch.Tensor, ...]:
    """query, reference, memory and a mask with padding in the second image."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(batch, queries, D_MODEL, generator=generator)
    reference = torch.rand(batch, queries, len(SHAPES), coordinates, generator=generator)
    memory = torch.randn(batch, TOKENS, D_MODEL, generator=generator)
    mask = torch.zeros(batch, TOKENS, dtype=torch.bool)
    mask[1, ::3] = True
    return query, reference, memory, mask


@pytest.mark.parametrize("coordinates", [2, 4], ids=["points", "boxes"])
def test_it_is_that_of_transformers(coordinates):
    """Same weights, a padded batch, both kinds of references: same results and gradients."""
    config = DeformableDetrConfig(d_model=D_MODEL, num_feature_levels=len(SHAPES))
    ours, theirs = attention(), DeformableDetrMultiscaleDeformableAttention(config, HEADS, POINTS)
    theirs.load_state_dict(ours.state_dict())
    query, reference, memory, mask = data(7, coordinates)
    shapes, starts = torch.tensor(SHAPES), torch.tensor([0, *[h * w for h, w in SHAPES][:-1]]).cumsum(0)
    found, attended = ours(query, reference, memory, mask, SHAPES)
    expected, weights = theirs(
        query,
        attention_mask=~mask,
        encoder_hidden_states=memory,
        reference_points=reference,
        spatial_shapes=shapes,
        spatial_shapes_list=list(SHAPES),
        level_start_index=starts,
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(attended.weights, weights)
    for out in (found, expected):
        out.square().sum().backward()
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_it_starts_with_points_in_eight_directions_that_count_alike():
    """The mean of each head's points, 1 to 4 pixels away on every level, whatever the query is."""
    module = DeformableAttention(64, len(SHAPES), 8, 4)
    query, reference = torch.randn(1, 5, 64), torch.rand(1, 5, len(SHAPES), 2)
    _, attended = module(query, reference, torch.randn(1, TOKENS, 64), torch.zeros(1, TOKENS, dtype=torch.bool), SHAPES)
    assert torch.equal(attended.weights, torch.full_like(attended.weights, 1 / 16))
    sizes = torch.tensor([(w, h) for h, w in SHAPES])
    pixels = (attended.locations - reference[:, :, None, :, None]) * sizes[:, None]
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(directions):
        for point in range(4):
            expected = (point + 1.0) * torch.tensor(direction, dtype=torch.float32)
            torch.testing.assert_close(pixels[:, :, head, :, point], expected.expand(1, 5, len(SHAPES), 2), rtol=0, atol=1e-5)


def test_values_at_padding_may_be_anything():
    """A padded token is worth what lies outside the map, nothing."""
    module = attention()
    query, reference, memory, mask = data(7, 2)
    clean = module(query, reference, memory, mask, SHAPES)[0]
    memory[mask] = math.inf
    assert torch.equal(module(query, reference, memory, mask, SHAPES)[0], clean)


def test_locations_are_not_rounded_under_mixed_precision():
    """In bfloat16, coordinates in [0, 1] are up to 1/512 off, a pixel and more of the finest level of a large image."""
    module = attention(scale=0.02)
    query, reference, memory, mask = data(7, 2)
    exact = module(query, reference, memory, mask, SHAPES)[1]
    with torch.autocast("cpu", torch.bfloat16):
        out, attended = module(query, reference, memory, mask, SHAPES)
    assert out.dtype == torch.bfloat16 and attended.locations.dtype == attended.weights.dtype == torch.float32
    torch.testing.assert_close(attended, exact)


def test_the_compiled_operator_stands_in_where_it_is_installed(monkeypatch):
    """On a GPU the authors' operator gets what its interface asks for, both ways: here one that computes the same."""

    def unpack(value, sizes, starts, locations, weights):
        assert sizes.tolist() == [list(size) for size in SHAPES]
        assert starts.tolist() == [sum(h * w for h, w in SHAPES[:i]) for i in range(len(SHAPES))]
        assert all(x.is_contiguous() for x in (value, sizes, starts, locations, weights))
        return value, SHAPES, locations, weights

    def forward(*arguments):
        *tensors, step = arguments
        assert step == len(tensors[0])
        return sample(*unpack(*tensors))

    def backward(*arguments):
        value, sizes, starts, locations, weights, grad, step = arguments
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in (value, locations, weights)]
            out = sample(inputs[0], SHAPES, *inputs[1:])
        return torch.autograd.grad(out, inputs, grad)

    operator = SimpleNamespace(ms_deform_attn_forward=forward, ms_deform_attn_backward=backward, __spec__=object())
    monkeypatch.setitem(sys.modules, deformable_attention.COMPILED, operator)
    deformable_attention._compiled.cache_clear()
    results = []
    for run in (sample, deformable_attention._sample_compiled):
        module = attention()
        monkeypatch.setattr(deformable_attention, "sample", run)
        query, reference, memory, mask = data(7, 2)
        out = module(query, reference, memory, mask, SHAPES)[0]
        out.square().sum().backward()
        results.append([out.detach(), *[p.grad for p in module.parameters()]])
    deformable_attention._compiled.cache_clear()
    torch.testing.assert_close(*results)


def test_parameters_have_the_published_names():
    """Checkpoints load without renaming."""
    names = {name for name, _ in DeformableAttention(32, 1, 4, 2).named_children()}
    assert names == {"sampling_offsets", "attention_weights", "value_proj", "output_proj"}
    assert isinstance(DeformableAttention(32, 1, 4, 2).value_proj, nn.Linear)

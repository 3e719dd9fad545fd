"""Weighted bilinear samples, against a loop over corners."""

import math

import pytest
import torch
from torch import Tensor

from common.models import sampling
from common.models.sampling import sample

SHAPES = ((5, 7), (3, 1), (1, 1))


def by_loops(value: Tensor, shapes: tuple, locations: Tensor, weights: Tensor) -> Tensor:
    """One point after the other, one corner after the other."""
    batch, _, heads, features = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = [[[torch.zeros(features, dtype=value.dtype) for _ in range(heads)] for _ in range(queries)] for _ in range(batch)]
    for b in range(batch):
        start = 0
        for level, (height, width) in enumerate(shapes):
            for q in range(queries):
                for m in range(heads):
                    for p in range(points):
                        x = locations[b, q, m, level, p, 0] * width - 0.5
                        y = locations[b, q, m, level, p, 1] * height - 0.5
                        first_row, first_column = math.floor(y.item()), math.floor(x.item())
                        for row in (first_row, first_row + 1):
                            for column in (first_column, first_column + 1):
                                if 0 <= row < height and 0 <= column < width:
                                    share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                                    pixel = value[b, start + row * width + column, m]
                                    out[b][q][m] = out[b][q][m] + weights[b, q, m, level, p] * share * pixel
            start += height * width
    return torch.stack([torch.stack([torch.cat(query) for query in image]) for image in out])


def inputs(batch: int = 2, queries: int = 3, heads: int = 2, features: int = 3, points: int = 2) -> list[Tensor]:
    """Random maps, locations from well outside to well outside, and weights, in float64."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(h * w for h, w in SHAPES)
    value = torch.randn(batch, tokens, heads, features, dtype=torch.float64, generator=generator)
    locations = torch.rand(batch, queries, heads, len(SHAPES), points, 2, dtype=torch.float64, generator=generator) * 1.6 - 0.3
    weights = torch.rand(locations.shape[:-1], dtype=torch.float64, generator=generator)
    return [x.requires_grad_() for x in (value, locations, weights)]


def with_gradients(function, value, locations, weights) -> list[Tensor]:
    out = function(value, SHAPES, locations, weights)
    probe = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * probe).sum(), (value, locations, weights))]


@pytest.mark.parametrize("chunk", [1, sampling.CHUNK], ids=["image by image", "at once"])
def test_sums_and_gradients_are_those_of_the_loop(chunk, monkeypatch):
    """Values, and the gradients of maps, locations and weights: in odd sizes, in one pixel, and outside of the maps."""
    monkeypatch.setattr(sampling, "CHUNK", chunk)
    data = inputs()
    for ours, expected in zip(with_gradients(sample, *data), with_gradients(by_loops, *data), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_single_precision_is_close():
    """Protects the kernels for float32, which differ from those for float64."""
    data = inputs(queries=40)
    single = [x.detach().float().requires_grad_() for x in data]
    for ours, expected in zip(with_gradients(sample, *single), with_gradients(sample, *data), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-3)


def test_the_centre_of_a_pixel_is_the_pixel_and_the_corner_of_a_map_a_quarter():
    """Where pixels lie: half a pixel from the border, with zeros outside."""
    value = torch.arange(1.0, 7.0).view(1, 6, 1, 1)
    points = torch.tensor([[2.5 / 3, 1.5 / 2], [0.0, 0.0], [1.0, 1.0], [-0.2, 0.5], [0.5, 1.3]])
    found = sample(value, ((2, 3),), points.view(1, 5, 1, 1, 1, 2), torch.ones(1, 5, 1, 1, 1)).flatten()
    torch.testing.assert_close(found, torch.tensor([6.0, 0.25, 1.5, 0.0, 0.0]))


def test_what_is_not_a_number_is_one_sample_alone():
    """A location that diverged reaches the loss, which stops the run; it does not read some other memory, or end the process."""
    value, locations, weights = (x.detach() for x in inputs())
    expected = sample(value, SHAPES, locations, weights)
    locations[0, 1, 0, 0, 0] = torch.nan
    locations[1, 2, 1, 1, 1] = torch.inf
    found = sample(value, SHAPES, locations.requires_grad_(), weights)
    assert found[0, 1, :3].isnan().all() and found[0, 1, 3:].isfinite().all()
    untouched = torch.ones_like(found, dtype=torch.bool)
    untouched[0, 1] = untouched[1, 2] = False
    assert torch.equal(found[untouched], expected[untouched])
    found.sum().backward()


def test_nothing_is_kept_for_the_way_back_but_the_inputs():
    """Protects the memory of training: samples of all levels would be as large as the output 4 P times."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        data = inputs(queries=50)
        sample(data[0], SHAPES, *data[1:])
    assert sum(saved) == sum(x.numel() for x in data)

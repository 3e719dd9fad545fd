"""Cuts at the largest steps: as many clusters as information bends, along the walk, independent of the batch."""

import pytest
import torch

from enact import EntropyClustering
from enact.cuts import at_steps
from enact.scans import places
from tests.reference import pad, random_maps

SIZES = [(7, 9), (5, 4), (1, 6), (1, 1)]


def slow_steps(walked, clusters):
    """A loop over a list of pixels: peaks of the change first, the highest ones, then all others."""
    n = len(walked)
    at = [walked[min(max(i, 0), n - 1)] for i in range(-1, n + 1)]
    change = [(at[i + 2] + at[i + 3] - at[i] - at[i + 1]).square().sum().sqrt().item() for i in range(n - 1)]
    around = [-1.0, *change, -1.0]
    peak = [around[i] < around[i + 1] >= around[i + 2] for i in range(n - 1)]
    best = sorted(range(n - 1), key=lambda i: (not peak[i], -change[i], i))
    starts = {i + 1 for i in best[: clusters - 1]}
    index = [0]
    for i in range(1, n):
        index.append(index[-1] + (i in starts))
    return index


def clustering(scan="band", dtype=torch.float64, **options):
    torch.manual_seed(1)
    module = EntropyClustering(8, smoothing_sigma=1.0, scan=scan, band=3, dtype=dtype, **options)
    torch.nn.init.normal_(module.weight, std=0.7)
    return module


@pytest.mark.parametrize("scan", ["raster", "band"])
def test_cuts_are_the_largest_steps_of_the_walk(scan):
    """Equal to a loop over each image's pixels in the order of the walk, in as many clusters as the paper's, also where padded."""
    torch.manual_seed(0)
    maps = random_maps(SIZES, 8)
    key, padding = pad(maps, fill=1e30)
    found = clustering(scan, cuts="steps")(key, padding, feature_size=(7, 9))
    bends = clustering(scan)(key, padding, feature_size=(7, 9))
    assert torch.equal(found.count, bends.count) and not torch.equal(found.index, bends.index)
    for b, (pixels, (height, width)) in enumerate(zip(maps, SIZES)):
        walk = places(scan, (height, width), 3)[0].argsort()
        index = found.index[b, ~padding[b]]
        assert index[walk].tolist() == slow_steps(pixels.flatten(0, 1)[walk], int(found.count[b]))
        weight = torch.zeros(found.size, dtype=torch.float64).index_add(0, index, found.weight[b, ~padding[b]])
        torch.testing.assert_close(weight[: found.count[b]], torch.ones_like(weight[: found.count[b]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clusters_do_not_depend_on_the_batch(dtype):
    """An image beside larger ones, with anything at its padding, is cut where it is cut alone."""
    torch.manual_seed(2)
    maps = random_maps(SIZES, 8, dtype)
    key, padding = pad(maps, fill=float("inf"))
    module = clustering(dtype=dtype, cuts="steps")
    found = module(key, padding, feature_size=(7, 9))
    for b, pixels in enumerate(maps):
        alone = module(pixels.flatten(0, 1)[None], feature_size=pixels.shape[:2])
        assert found.index[b, ~padding[b]].tolist() == alone.index[0].tolist()


def test_pieces_are_found():
    """What cuts at steps are for: a walk over pieces of equal pixels, of three or more, is cut between the pieces."""
    pieces = torch.arange(7).repeat_interleave(torch.tensor([4, 7, 3, 30, 3, 5, 9]))
    n = len(pieces)
    order = torch.arange(n)[None]
    found = at_steps(torch.randn(7, 256)[pieces][None], order, torch.tensor([n]), torch.tensor([7]))
    assert torch.equal(found[0], pieces)


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_diverged_model_has_clusters(number):
    """Protects the loop's own sentence about a loss that is not finite: keys that are no numbers end in no other error."""
    key = torch.randn(2, 30, 8)
    key[0, :12] = number
    found = clustering("raster", torch.float32, cuts="steps")(key)
    assert found.index.min() == 0 and (found.index[:, 1:] - found.index[:, :-1]).unique().tolist() == [0, 1]
    assert found.weight[1].isfinite().all()


def test_a_capacity_keeps_the_largest_steps():
    """Where bends fill the last cluster with the surplus, steps choose the best cuts that there may be."""
    torch.manual_seed(3)
    key = torch.randn(1, 60, 8, dtype=torch.float64)
    assert clustering("raster")(key).size > 4
    found = clustering("raster", cuts="steps", capacity=4)(key)
    assert found.size == 4 and found.count.tolist() == [4]
    assert found.index[0].tolist() == slow_steps(key[0], 4)


@pytest.mark.parametrize("options", [{"cuts": "peaks"}, {"cuts": "steps", "clustering": "window"}])
def test_cuts_that_mean_nothing_are_refused(options):
    """One sentence when the module is built."""
    with pytest.raises(ValueError, match="cuts"):
        EntropyClustering(8, **options)

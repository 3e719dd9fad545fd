"""A fixed number of clusters: the same results where it suffices, and nothing that waits for the device or breaks a graph."""

import pytest
import torch
from torch import nn

from enact import ClusteredAttention, EntropyClustering
from enact.clustering import AutoCapacity
from enact.scans import SCANS
from tests.reference import CLUSTERINGS, pad, random_maps
from tests.synchronisations import Synchronisations

both = pytest.mark.parametrize("clustering", CLUSTERINGS)
SIZES = [(9, 14), (5, 8), (1, 3)]


def attention(clustering, capacity, dtype=torch.float64, **options):
    """The same random weights for every capacity; scores that spread, so that information bends far beyond rounding."""
    torch.manual_seed(1)
    clustered = ClusteredAttention(16, 2, batch_first=True, dtype=dtype, clustering=clustering, capacity=capacity, **options)
    nn.init.normal_(clustered.W_prob.weight, std=0.5)
    return clustered.eval()


def padded_batch(dtype=torch.float64):
    torch.manual_seed(0)
    return pad(random_maps(SIZES, 16, dtype), fill=7.0)


@both
@pytest.mark.parametrize("capacity", ["auto", 126, 1000])
def test_equals_the_exact_clusters_where_it_suffices(clustering, capacity):
    """Protects results from rows that stand for no cluster, also in images of three pixels beside others."""
    src, padding = padded_batch()
    exact, fixed = (attention(clustering, c)(src, src, src, padding) for c in (None, capacity))
    for found, expected in zip(fixed, exact):
        torch.testing.assert_close(found[~padding], expected[~padding], atol=1e-10, rtol=0)


@both
def test_the_surplus_joins_the_last_cluster(clustering):
    """Protects against pixels that are lost, or weights of a cluster that do not add up to 1."""
    src, padding = padded_batch()
    exact, fixed = (attention(clustering, c).W_prob(src, padding) for c in (None, 4))
    assert exact.count.max() > 4 and fixed.size == 4 and fixed.count.tolist() == exact.count.clamp(max=4).tolist()
    torch.testing.assert_close(fixed.index, exact.index.clamp(max=3))
    e = torch.where(exact.weight > 0, exact.smoothed.exp(), 0.0)
    for b in range(len(SIZES)):
        for m in range(fixed.count[b]):
            inside = fixed.index[b] == m
            torch.testing.assert_close(fixed.weight[b, inside], e[b, inside] / e[b, inside].sum())


@both
def test_nothing_waits_for_the_device(clustering):
    """Protects the point of a capacity; an exact clustering waits once."""
    src, padding = padded_batch()
    cases = [({}, 1)] + [({"capacity": "auto", "scan": scan, "size_bias": True}, 0) for scan in SCANS]
    cases += [({"capacity": "auto", "cuts": "steps"}, 0)] * (clustering == "region")
    for options, waits in cases:
        module = attention(clustering, **{"capacity": None} | options)
        with Synchronisations() as counted:
            module(src, src, src, padding, need_weights=False, feature_size=SIZES[0])
        assert sum(counted.found.values()) == waits


@pytest.mark.parametrize("cuts", ["bends", "steps"])
def test_compiles_as_one_graph(cuts):
    """``torch.compile(fullgraph=True)`` with its own backend, for batches of different sizes."""
    module = attention("region", "auto", torch.float32, cuts=cuts)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    src, padding = padded_batch(torch.float32)
    for rows in (slice(0, 3), slice(1, 3)):
        x, mask = src[rows], padding[rows]
        torch.testing.assert_close(compiled(x, x, x, mask)[0], module(x, x, x, mask)[0], atol=1e-5, rtol=0)


@both
@pytest.mark.parametrize("sigma", [1, 3, 5, 7])
def test_auto_has_room_for_noise(clustering, sigma):
    """Protects from pixels that join the last cluster unnoticed: independent pixels, whose regions are the shortest, fit."""
    torch.manual_seed(0)
    for n in (850, 3400):
        module = EntropyClustering(8, clustering, sigma, dtype=torch.float64)
        nn.init.normal_(module.weight, std=0.3)
        assert module(torch.randn(20, n, 8, dtype=torch.float64)).count.max() <= AutoCapacity(clustering, sigma).of(n)


@pytest.mark.parametrize("capacity", [0, -1, 2.5, "many"])
def test_impossible_capacities_are_refused(capacity):
    """Protects from an error deep inside the first forward pass."""
    with pytest.raises(ValueError, match="capacity must be"):
        EntropyClustering(8, capacity=capacity)

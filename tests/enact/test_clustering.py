"""The clustering: equal to slow loops written from the paper, and independent of padding, batch and memory layout."""

import pytest
import torch

from enact import EntropyClustering
from enact.clustering import cluster
from tests.reference import CLUSTERINGS, pad, random_maps, random_sizes, reference_clusters

both = pytest.mark.parametrize("clustering", CLUSTERINGS)
both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
WIDELY_DIFFERENT = [(1, 1), (20, 25), (1, 40), (30, 1)]


def module(d, clustering, sigma, dtype=torch.float64):
    """The ENACT module with scores that spread by about 2, whatever d is: information then bends far beyond rounding."""
    enact = EntropyClustering(d, clustering, sigma, dtype=dtype)
    torch.nn.init.normal_(enact.weight, std=2 * d**-0.5)
    torch.nn.init.constant_(enact.bias, 0.3)
    return enact


def random_keys(n, d):
    """Pixels that all differ."""
    return torch.randn(n, d, dtype=torch.float64)


def flat_keys(n, d):
    """Runs of equal pixels, longer than a small kernel: between them, the second derivative is exactly zero."""
    return torch.randn(n // 10 + 1, d, dtype=torch.float64).repeat_interleave(10, 0)[:n]


@both
@pytest.mark.parametrize("sigma", [1, 3, 5])
@pytest.mark.parametrize("keys", [random_keys, flat_keys])
def test_equals_the_loops_of_the_reference(clustering, sigma, keys):
    """The vectorised code computes what the paper (region) and the released code (window) say, for any number of pixels."""
    torch.manual_seed(0)
    for n in [1, 2, 3, 4, 5, 16, 17, *torch.randint(6, 130, (12,)).tolist()]:
        enact = module(3, clustering, sigma)
        key, value = keys(n, 3), torch.randn(n, 3, dtype=torch.float64)
        scores = [sum(k * w for k, w in zip(row, enact.weight[0].tolist())) + enact.bias.item() for row in key.tolist()]
        expected = reference_clusters(scores, clustering, sigma)
        found = enact(key[None])

        assert found.count.tolist() == [found.size] == [expected.count] and not found.ragged
        assert [m if w else None for m, w in zip(found.index[0].tolist(), found.weight[0].tolist())] == expected.index
        for name in ("information", "smoothed", "weight"):
            torch.testing.assert_close(getattr(found, name)[0].tolist(), getattr(expected, name), atol=1e-10, rtol=0)
        for x in (key, value):
            torch.testing.assert_close(found.pool(x[None])[0].tolist(), expected.pool(x), atol=1e-10, rtol=0)


@both
@both_precisions
def test_clusters_do_not_depend_on_the_batch(clustering, dtype):
    """An image among padded others, with anything at its padding, has the clusters that it has alone."""
    torch.manual_seed(8)  # in float32, no second derivative of these keys is closer to zero than 20 roundings
    for sizes in [WIDELY_DIFFERENT, *(random_sizes(4, 11) for _ in range(12))]:
        enact = module(8, clustering, 3, dtype)
        maps = random_maps(sizes, 8, dtype)
        key, padding = pad(maps, fill=1e30)
        found = enact(key, padding)
        present = found.present()
        assert found.size == found.count.max()
        assert not found.weight[padding].any() and not found.information[padding].any()

        for b, pixels in enumerate(map(lambda x: x.flatten(0, 1), maps)):
            alone = enact(pixels[None])
            assert found.count[b] == alone.size
            assert present is None or present[b].sum() == alone.size
            torch.testing.assert_close(found.index[b, ~padding[b]], alone.index[0])
            for name in ("information", "smoothed", "weight"):
                torch.testing.assert_close(getattr(found, name)[b, ~padding[b]], getattr(alone, name)[0], atol=1e-6, rtol=0)
            pooled = found.pool(key)[b]
            torch.testing.assert_close(pooled[: alone.size], alone.pool(pixels[None])[0], atol=1e-6, rtol=0)
            assert not pooled[alone.size :].any()


@both_precisions
@pytest.mark.parametrize("layout", ["pixels first", "channels first"])
def test_equal_keys_are_one_cluster(dtype, layout):
    """Without a change of information there is one region, equally weighted: rounding must not depend on where a pixel is.

    Channels first is the memory layout of a backbone's map after `flatten(2).transpose(1, 2)`.
    """
    torch.manual_seed(2)
    for n in [*range(1, 40), 63, 64, 65, 127, 129, 255, 257, 901]:
        for sigma in (1, 3, 5):
            enact = EntropyClustering(256, "region", sigma, dtype=dtype)
            key = torch.randn(2, 1, 256, dtype=dtype).expand(-1, n, -1).contiguous()
            if layout == "channels first":
                key = key.transpose(1, 2).contiguous().transpose(1, 2)
            found = enact(key)
            assert found.count.tolist() == [1, 1], (n, sigma)
            torch.testing.assert_close(found.weight, torch.full_like(found.weight, 1 / n))


@both_precisions
def test_equal_keys_are_one_cluster_in_a_padded_batch(dtype):
    """A blank image stays one cluster beside others, whatever its shape."""
    torch.manual_seed(3)
    for height in range(1, 9):
        maps = [torch.randn(256, dtype=dtype).expand(height, 9 - height, 256), torch.randn(7, 8, 256, dtype=dtype)]
        found = module(256, "region", 1, dtype)(*pad(maps, fill=-1e30))
        assert found.count[0] == 1 < found.count[1]


@both
def test_mask_without_padding_changes_nothing(clustering):
    """Full images take the same decisions with a mask and without one."""
    torch.manual_seed(4)
    enact, key = module(4, clustering, 3), torch.randn(2, 50, 4, dtype=torch.float64)
    masked, plain = enact(key, torch.zeros(2, 50, dtype=torch.bool)), enact(key)
    for name in ("index", "weight", "count"):
        torch.testing.assert_close(getattr(masked, name), getattr(plain, name))


def test_certain_scores_stay_finite():
    """A probability of 1 beside zeros gives numbers and gradients: eq. 3 never sees the logarithm of 0."""
    logits = torch.zeros(1, 30, requires_grad=True)
    found = cluster(logits + 1e4 * torch.eye(30)[7], None, "region", 3.0)
    found.weight.square().sum().backward()
    assert all(x.isfinite().all() for x in (found.information, found.smoothed, found.weight, logits.grad))


@pytest.mark.parametrize(
    ("option", "value"), [("clustering", "none"), ("smoothing_sigma", 0.5), ("smoothing_sigma", float("inf")), ("band", 0)]
)
def test_impossible_options_are_refused(option, value):
    """A clustering that does not exist or a Gaussian narrower than a pixel is an error when the module is built."""
    with pytest.raises(ValueError, match=option):
        EntropyClustering(8, **{option: value})

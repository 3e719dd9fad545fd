"""Orders of pixels: each a walk over exactly the valid pixels, and clusters that follow it."""

import pytest
import torch

from enact import EntropyClustering
from enact.scans import SCANS, places
from tests.reference import pad, random_maps, reference_clusters


def walk(scan, height, width, band=3):
    """The rows and columns of a map in the order of the walk, where it stands beside a larger image, and alone."""
    mask = torch.ones(2, height + 2, width + 3, dtype=torch.bool)
    mask[0, :height, :width] = False
    mask[1] = False
    place = places(scan, (height + 2, width + 3), band, mask)[0].view(height + 2, width + 3)[:height, :width].flatten()
    assert sorted(place.tolist()) == list(range(height * width))
    assert torch.equal(place, places(scan, (height, width), band)[0])
    order = place.argsort()
    return order // width, order % width


@pytest.mark.parametrize("scan", SCANS)
def test_every_pixel_has_a_place_and_the_next_is_a_neighbour(scan):
    """For all sizes. Rasters jump at the ends of rows, bands of an even number of columns at their end, by their height; a Hilbert
    curve of an odd by an even side has one diagonal step."""
    for height in range(1, 18):
        for width in range(1, 18):
            rows, columns = walk(scan, height, width)
            steps = rows.diff().abs() + columns.diff().abs()
            jumps = steps[steps > 1]
            if scan == "raster":
                assert len(jumps) == (height - 1 if width > 1 else 0)
            elif scan == "band":
                assert len(jumps) <= (height - 1) // 3 * (width % 2 == 0) and (jumps <= 3).all()
            else:
                assert len(jumps) <= (scan == "hilbert") and (jumps == 2).all()


def test_a_band_is_walked_column_by_column():
    """There and back, as `images/scans.png` shows it."""
    place = places("band", (3, 4), 2).view(3, 4)
    assert place.tolist() == [[0, 3, 4, 7], [1, 2, 5, 6], [11, 10, 9, 8]]


@pytest.mark.parametrize("scan", SCANS)
def test_clusters_are_those_of_the_walked_sequence(scan):
    """Equal to the loops of the reference on the pixels in the order of the walk, alone and in a padded batch."""
    torch.manual_seed(0)
    sizes = [(7, 9), (5, 4), (1, 6)]
    maps = random_maps(sizes, 8)
    key, padding = pad(maps, fill=1e3)
    module = EntropyClustering(8, smoothing_sigma=1.0, scan=scan, band=3, size_bias=True, dtype=torch.float64)
    torch.nn.init.normal_(module.weight, std=0.7)
    found = module(key, padding, feature_size=(7, 9))
    for b, (pixels, (height, width)) in enumerate(zip(maps, sizes)):
        rows, columns = walk(scan, height, width)
        walked = pixels[rows, columns]
        expected = reference_clusters((walked @ module.weight[0] + module.bias).tolist(), "region", 1)
        order = (rows * width + columns).argsort()
        valid = ~padding[b]
        assert found.index[b, valid].tolist() == torch.tensor(expected.index)[order].tolist()
        torch.testing.assert_close(found.weight[b, valid], torch.tensor(expected.weight)[order].double(), atol=1e-6, rtol=0)
        counts = torch.tensor(expected.index).bincount().log()
        torch.testing.assert_close(found.bias[b, : expected.count], counts.double(), atol=1e-6, rtol=0)


def test_a_map_without_a_size_is_square():
    """As hosts such as ViTs have it, unless they were told another; other lengths are refused in one sentence."""
    module, key = EntropyClustering(8, scan="band"), torch.randn(1, 16, 8)
    assert module(key).index.shape == (1, 16)
    with pytest.raises(ValueError, match="feature_size"):
        module(torch.randn(1, 15, 8))
    expected = module(key, feature_size=(2, 8)).index
    assert not torch.equal(module(key).index, expected)
    module.feature_size = (2, 8)
    assert torch.equal(module(key).index, expected)


def test_the_better_regions_are_regions_along_bands_that_count_as_their_pixels():
    """What "region+" names, and that an option goes before it."""
    key, options = torch.randn(1, 12, 8), {"smoothing_sigma": 1.0}
    found = {}
    for name, others in {
        "region+": {},
        "region": {"scan": "band", "size_bias": True},
        "region+ ": {"scan": "raster", "size_bias": False},
        "region ": {},
    }.items():
        torch.manual_seed(0)
        found[name] = EntropyClustering(8, name.strip(), **options, **others)(key, feature_size=(3, 4))
    assert torch.equal(found["region+"].index, found["region"].index) and torch.equal(found["region+"].bias, found["region"].bias)
    assert torch.equal(found["region+ "].index, found["region "].index) and found["region+ "].bias is found["region "].bias is None
    assert not torch.equal(found["region+"].index, found["region "].index)

"""Batches: padding, and which images come in which batch of which process."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.data import build_dataset, evaluation_loader, pad_batch, training_loader
from common.errors import UserError
from common.shapes import write_shapes_dataset


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes_dataset(tmp_path_factory.mktemp("data") / "shapes", train=11, val=5, image_size=32, progress=False)


@pytest.fixture
def training(shapes):
    return build_dataset(shapes, "train", image_size=32, seed=0)


def batches_of(loader, epoch=0):
    """The image ids of each batch."""
    loader.sampler.set_epoch(epoch)
    return [[target["image_id"] for target in batch.targets] for batch in loader]


def test_padding_is_zero_and_marked():
    """Protects the contract with the models: pixels at the top left, zeros and True right of and below them."""
    sizes = [(3, 7), (5, 2), (1, 1)]
    images = [torch.rand(3, *size) + 1 for size in sizes]
    batch, mask = pad_batch(images)
    assert batch.shape == (3, 3, 5, 7) and mask.shape == (3, 5, 7) and mask.dtype == torch.bool
    for image, padded, padding, (h, w) in zip(images, batch, mask, sizes):
        assert torch.equal(padded[:, :h, :w], image) and padded.count_nonzero() == image.numel()
        assert not padding[:h, :w].any() and padding.sum() == 5 * 7 - h * w


@pytest.mark.parametrize("bucket", [False, True])
def test_batches_of_two_processes_are_those_of_one_with_twice_the_size(training, bucket):
    """Protects the recipe on several GPUs: the same images in each step, none twice, in an order that changes by epoch and seed."""

    def batches(batch_size, rank, world_size, epoch=0, seed=0):
        return batches_of(training_loader(training, batch_size, 0, seed, rank, world_size, False, bucket), epoch)

    whole = batches(4, 0, 1)
    assert [len(batch) for batch in whole] == [4, 4] and len(set(sum(whole, []))) == 8
    parts = zip(batches(2, 0, 2), batches(2, 1, 2), strict=True)
    assert [sorted(a + b) for a, b in parts] == [sorted(batch) for batch in whole]
    assert batches(4, 0, 1) == whole != batches(4, 0, 1, epoch=1) and batches(4, 0, 1, seed=1) != whole


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generators_alone(training, workers, monkeypatch):
    """Protects resumed runs: dropout draws the same numbers, here and on a GPU, whether or not images were loaded in between."""
    seeded = []
    monkeypatch.setattr("torch.cuda.manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    assert len(batches_of(training_loader(training, 5, workers, 0, 0, 1, False))) == 2
    assert torch.equal(torch.get_rng_state(), before) and not seeded


def test_evaluation_keeps_the_last_batch(shapes):
    """Protects the images of a last, smaller batch, and the order of the dataset."""
    dataset = build_dataset(shapes, "val", image_size=32, seed=0)
    ids = [[target["image_id"] for target in batch.targets] for batch in evaluation_loader(dataset, 2, 0, 0, 1, False)]
    assert ids == [[1, 2], [3, 4], [5]]


@pytest.mark.parametrize("batch_size, world_size", [(12, 1), (6, 2)])
def test_a_dataset_smaller_than_a_batch_is_refused(training, batch_size, world_size):
    """Protects from epochs without a single step, which would look like training."""
    with pytest.raises(UserError, match="11 images, fewer than one batch of 12: choose a smaller --batch_size"):
        training_loader(training, batch_size, 0, 0, 0, world_size, False)
    assert len(batches_of(training_loader(training, 11, 0, 0, 0, 1, False))) == 1


def test_cached_files_give_the_same_batches(shapes, tmp_path):
    """Protects --cache_mode: the bits of the plain path, also out of workers, and no file is read again, changed as it may be."""
    folder = Path(shutil.copytree(shapes, tmp_path / "shapes"))
    plain, cached = (build_dataset(folder, "train", image_size=32, seed=0) for _ in range(2))
    expected = list(training_loader(plain, 3, 0, 0, 0, 1, False))
    cached.keep_files(progress=False)
    for path in (folder / "train2017").iterdir():
        path.write_bytes(b"something else")
    for workers in (0, 2):
        torch.testing.assert_close(list(training_loader(cached, 3, workers, 0, 0, 1, False)), expected, rtol=0, atol=0)
    with pytest.raises(UserError, match="is not a readable image"):
        plain[0]


def test_a_cache_larger_than_the_memory_is_refused(training, monkeypatch):
    """Protects the machine: before anything is read, one sentence says how much is needed and what to leave out."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(UserError, match=r"train2017 take 0.0 GiB, and 0.0 GiB of memory are free: leave out --cache_mode"):
        training.keep_files(progress=False)
    assert training.files is None and len(training[0]) == 2

"""Batches: padding, and which images come in which batch of which process."""

import os

import pytest
import torch

from common.data.loading import build_dataset, collate, evaluation_loader, pad_batch, training_loader
from common.data.shapes import write_shapes_dataset
from common.data.transforms import normalize
from common.errors import UserError


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


def test_batches_are_bytes_until_they_are_on_the_device(training):
    """Protects the speed of loading: a quarter of the memory travels, channels innermost as they are decoded and computed with."""
    loader = training_loader(training, 4, 0, 0, 0, 1, False)
    batch = next(iter(loader))
    assert batch.images.dtype == torch.uint8 and batch.images.is_contiguous(memory_format=torch.channels_last)
    assert not batch.images.is_contiguous()
    arrived = batch.to(torch.device("cpu"))
    assert arrived.images.dtype == torch.float32 and arrived.images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(arrived.images, normalize(batch.images, batch.mask), rtol=0, atol=0)
    assert batch.mask.any() and not arrived.images.permute(0, 2, 3, 1)[batch.mask].any()
    again = arrived.to(torch.device("cpu"))
    assert torch.equal(again.images, arrived.images), "what is normalised already is left alone"


def process_of_sample(samples):
    """The images of a batch, and the process that has made it."""
    return os.getpid(), collate(samples)


def test_workers_live_on_and_hear_of_each_epoch(training, monkeypatch):
    """Protects augmentation with persistent workers, whose copy of the dataset is that of the start of the run.

    Every epoch has its own augmentation, that of a run without workers, though the processes stay the same.
    """
    monkeypatch.setattr("common.data.loading.collate", process_of_sample)

    def epochs(workers):
        loader = training_loader(training, 4, workers, 0, 0, 1, False)
        for epoch in (0, 1, 2):
            loader.sampler.set_epoch(epoch)
            processes, batches = zip(*loader)
            yield set(processes), {t["image_id"]: image for b in batches for t, image in zip(b.targets, b.images)}, batches

    alone, helped = list(epochs(0)), list(epochs(2))
    processes = [found for found, _, _ in helped]
    assert len(processes[0]) == 2 and os.getpid() not in processes[0] and processes == [processes[0]] * 3
    for (_, _, expected), (_, _, found) in zip(alone, helped, strict=True):
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.images, theirs.images) and torch.equal(ours.mask, theirs.mask)
            torch.testing.assert_close(ours.targets, theirs.targets, rtol=0, atol=0)
    (_, first, _), (_, second, _), _ = helped
    both = first.keys() & second.keys()
    assert len(both) > 4 and sum(not torch.equal(first[i], second[i]) for i in both) > len(both) / 2

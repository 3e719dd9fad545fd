"""Which images come in which batch: in evaluation all of them, in training those of similar shape together."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from common.data.loading import build_dataset, training_loader
from common.data.sampling import BucketSampler, EvaluationSampler, ShuffledSampler
from common.data.shapes import write_shapes_dataset


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9])
def test_evaluation_covers_every_image_once(length, world_size):
    """Protects the accuracy from images that a process repeats or leaves out to come out even."""
    samplers = [EvaluationSampler(length, rank, world_size) for rank in range(world_size)]
    assert sorted(i for sampler in samplers for i in sampler) == list(range(length))
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]


def test_shuffling_depends_on_seed_and_epoch_alone():
    """Protects resumed runs and several processes: what comes in an epoch is known, and every image says which epoch it is of."""
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (5, 0), (0, 0)):
        parts = [ShuffledSampler(11, seed, rank, 2) for rank in range(2)]
        for sampler in parts:
            sampler.set_epoch(epoch)
        items = [item for sampler in parts for item in sampler]
        assert {e for e, _ in items} == {epoch} and len({i for _, i in items}) == len(items) == 10
        assert orders.setdefault((seed, epoch), items) == items
    assert len({tuple(i for _, i in items) for items in orders.values()}) == 3


IMAGES, BATCH = 1003, 4


@pytest.fixture(scope="module")
def ratios():
    """Of images like COCO's: two thirds are 4:3 or 3:2, the others anything between upright and lying."""
    generator = torch.Generator().manual_seed(0)
    any_shape = torch.rand(IMAGES, generator=generator) * 2 - 1
    usual = torch.tensor([math.log(4 / 3), math.log(3 / 2)])[torch.randint(2, (IMAGES,), generator=generator)]
    return torch.where(torch.rand(IMAGES, generator=generator) < 2 / 3, usual, any_shape).exp().tolist()


def batches(ratios, epoch=0, seed=0, batch_size=BATCH, rank=0, world_size=1):
    sampler = BucketSampler(ratios, batch_size, seed, rank, world_size)
    sampler.set_epoch(epoch)
    epochs, order = zip(*sampler)
    assert len(order) == len(sampler) and set(epochs) == {epoch}
    return [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]


def spread(batch, ratios):
    """By which factor the shapes of a batch differ."""
    found = [ratios[i] for i in batch]
    return max(found) / min(found)


def test_buckets_hold_every_image_at_most_once(ratios):
    """Protects the recipe: an epoch has as many batches as without buckets, and only what does not fill the last is left out."""
    images = [i for batch in batches(ratios) for i in batch]
    assert len(images) == len(set(images)) == IMAGES - IMAGES % BATCH and set(images) < set(range(IMAGES))


def test_buckets_hold_similar_shapes_in_random_order(ratios):
    """Protects what buckets are for, and training from going through the shapes one after the other."""
    found = batches(ratios)
    spreads = sorted(spread(batch, ratios) for batch in found)
    assert spreads[len(spreads) // 2] < 1.05 and spreads[-5] < 1.5
    neighbours = [spread([a[0], b[0]], ratios) for a, b in zip(found, found[1:])]
    assert sum(neighbours) / len(neighbours) > 1.3


def test_buckets_depend_on_seed_and_epoch_alone(ratios):
    """Protects resumed runs: an epoch is the same whatever came before it, and another one has other batches."""
    sampler = BucketSampler(ratios, BATCH, 0, 0, 1)
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        assert list(sampler) == [(epoch, i) for i in sum(batches(ratios, epoch), [])]
    first, second, other = ({frozenset(b) for b in batches(ratios, epoch, seed)} for epoch, seed in ((0, 0), (1, 0), (0, 1)))
    assert len(first & second) < len(first) / 10 and len(first & other) < len(first) / 10


def test_buckets_of_two_processes_make_those_of_one(ratios):
    """Protects the recipe on several GPUs: equally many batches, no image in both, together a batch of twice the size."""
    a, b = (batches(ratios, batch_size=BATCH // 2, rank=rank, world_size=2) for rank in range(2))
    assert [sorted(x + y) for x, y in zip(a, b, strict=True)] == [sorted(batch) for batch in batches(ratios)]


def test_buckets_need_less_padding(tmp_path):
    """Protects the reason for buckets, through the loader and with DETR's augmentation, which crops at random."""
    folder = write_shapes_dataset(tmp_path / "shapes", train=160, val=1, image_size=64, progress=False)

    def padding(bucket):
        loader = training_loader(build_dataset(folder, "train", 64, 0), 8, 0, 0, 0, 1, False, bucket)
        return sum(batch.mask.float().mean().item() for batch in loader) / len(loader)

    assert padding(bucket=True) < padding(bucket=False) - 0.02


def test_shapes_come_from_the_files_where_the_entries_lack_them(dataset, tmp_path):
    """Protects exports of other tools, which leave out width and height or fill in zeros."""
    folder = Path(shutil.copytree(dataset, tmp_path / "data"))
    expected = build_dataset(folder, "train", 64, 0).aspect_ratios()
    path = folder / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    assert expected == [image["width"] / image["height"] for image in content["images"]] and len(set(expected)) > 5
    for image, wrong in zip(content["images"], ({}, {"width": 0, "height": 0}, {"width": None, "height": "64"}, {"width": 64})):
        image.pop("width"), image.pop("height")
        image.update(wrong)
    path.write_text(json.dumps(content))
    assert build_dataset(folder, "train", 64, 0).aspect_ratios() == expected

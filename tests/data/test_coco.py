"""Datasets in COCO's format: what becomes a target, what is drawn at random, and which files are missed."""

import json
from functools import partial
from traceback import clear_frames

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from common.data.annotations import category_names
from common.data.coco import CocoDetection
from common.data.loading import build_dataset, collate
from common.data.shapes import write_shapes_dataset
from common.errors import UserError
from tests.small_datasets import HEIGHT, WIDTH, content, sentence, write_images


def as_it_is(image, target):
    return pil_to_tensor(image), target


def dataset_of(folder, annotations, images=2):
    write_images(folder / "images", images)
    (folder / "annotations.json").write_text(json.dumps(content(annotations, images)))
    return CocoDetection(folder / "images", folder / "annotations.json", as_it_is)


def test_targets_hold_the_usable_boxes(tmp_path):
    """Protects training from crowds, boxes without area and boxes beyond the image, and evaluation from a lost image."""
    annotations = [
        ([4, 5, 10, 20], {"category_id": 7}),
        ([0, 0, 40, 30], {"iscrowd": 1}),
        ([4, 5, 0, 20], {}),
        ([4, 5, 10, -2], {}),
        ([40, 5, 10, 10], {}),
        ([-20, 5, 15, 10], {}),
        ([-5, -5, 15, 15], {}),
        ([30.5, 20, 100, 100], {"category_id": 7}),
    ]
    dataset = dataset_of(tmp_path, annotations)
    assert dataset.ids == [1, 2] and len(dataset) == 2 and category_names(dataset.coco) == {3: "cat", 7: "dog"}
    image, target = dataset[0]
    assert image.shape == (3, HEIGHT, WIDTH) and (image[0] == 1).all()
    assert target["boxes"].tolist() == [[4, 5, 14, 25], [0, 0, 10, 10], [30.5, 20, 40, 30]]
    assert target["labels"].tolist() == [1, 0, 1] and dataset.category_ids == [3, 7]
    assert target["image_id"] == 1 and target["orig_size"].tolist() == [HEIGHT, WIDTH]
    _, empty = dataset[1]
    assert empty["boxes"].shape == (0, 4) and empty["labels"].shape == (0,) and empty["labels"].dtype == torch.long
    assert [remark.split()[0] for remark in dataset.remarks()] == ["4", "1", "1"]  # flat or outside, crowds, empty images


def test_nothing_is_remarked_where_all_is_well(tmp_path):
    """Protects the attention for the remarks that matter."""
    assert dataset_of(tmp_path, [([1, 1, 5, 5], {})], images=1).remarks() == []


def test_images_of_another_size_than_their_entries_are_remarked(tmp_path):
    """Protects from boxes of the upright picture where the file is rotated, which would be trained on without a word."""
    dataset = dataset_of(tmp_path, [([1, 1, 5, 5], {})])
    entries = dataset.coco.imgs
    entries[1]["width"], entries[1]["height"] = HEIGHT, WIDTH
    del entries[2]["width"]
    assert dataset.remarks()[0].startswith("1 images of another size")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes_dataset(tmp_path_factory.mktemp("data") / "shapes", train=6, val=1, image_size=48, progress=False)


def pictures(dataset, order):
    items = {i: dataset[i] for i in order}
    return [(items[i][0], items[i][1]["boxes"]) for i in sorted(items)]


def equal(these, those):
    return [all(map(torch.equal, a, b)) for a, b in zip(these, those, strict=True)]


def test_augmentation_depends_on_seed_epoch_and_index_only(shapes):
    """Protects reproducibility: neither workers, nor the order, nor earlier random numbers change what an image looks like."""
    dataset = build_dataset(shapes, "train", image_size=64, seed=5)
    expected = pictures(dataset, range(6))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert all(equal(pictures(dataset, reversed(range(6))), expected))
    for workers in (0, 2):
        # The generator keeps the loader itself from drawing a seed for its workers.
        loader = DataLoader(dataset, num_workers=workers, collate_fn=collate, generator=torch.Generator())
        assert all(equal([(batch.images[0], batch.targets[0]["boxes"]) for batch in loader], expected))
    assert torch.equal(torch.get_rng_state(), before)

    assert not all(equal(pictures(build_dataset(shapes, "train", 64, seed=6), range(6)), expected))
    assert not all(equal(pictures(dataset, [(1, i) for i in range(6)]), expected))
    assert all(equal(pictures(dataset, [(0, i) for i in range(6)]), expected))


def test_images_of_an_epoch_are_augmented_differently(tmp_path):
    """Protects the augmentation from one seed for all: copies of an image do not stay copies."""
    copies = dataset_of(tmp_path, [], images=8)
    copies.transforms = lambda image, target: float(torch.rand(()))
    assert len({copies[i] for i in range(8)}) == 8


def test_missing_files_are_told_before_the_work_starts(tmp_path):
    """Protects the hours before an epoch would come to the image that is not there; says what is missing and where."""
    dataset_of(tmp_path, [])
    load = partial(CocoDetection, transforms=as_it_is)
    images, annotations = tmp_path / "images", tmp_path / "annotations.json"
    (tmp_path / "empty").mkdir()
    for folder, file, said in (
        (images, tmp_path / "none.json", "none.json does not exist"),
        (tmp_path / "none", annotations, "none is missing or empty"),
        (tmp_path / "empty", annotations, "empty is missing or empty"),
    ):
        with pytest.raises(UserError, match=said):
            load(folder, file)
    (images / "2.png").unlink()
    with pytest.raises(UserError) as raised:
        load(images, annotations)
    assert sentence(raised.value) == f"{annotations} lists the image 2.png, which is not in {images}"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_told_in_one_sentence_through_a_loader_too(tmp_path, workers):
    """Protects the message: a worker's error comes with the worker's traceback, which the user has no use for."""
    dataset = dataset_of(tmp_path, [])
    path = dataset.path(2)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError) as raised:
        list(DataLoader(dataset, num_workers=workers, collate_fn=collate))
    assert sentence(raised.value).startswith(f"{path} is not a readable image (")
    clear_frames(raised.tb)  # frees the loader now: found by the garbage collector, it waits for its workers in vain

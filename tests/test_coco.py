"""Datasets in COCO's format: what becomes a target, which images are read, what is drawn at random, and how mistakes are told."""

import copy
import json
from functools import partial
from traceback import clear_frames

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from common.coco import CocoDetection, category_names, read_annotations, read_image
from common.data import build_dataset, collate
from common.errors import UserError
from common.shapes import write_shapes_dataset

WIDTH, HEIGHT = 40, 30


def as_it_is(image, target):
    return pil_to_tensor(image), target


def content(annotations=(), images=2):
    """What an annotation file holds; each annotation is given by its box and what else differs from the usual."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(images, 0, -1)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 3, "bbox": bbox, "area": 1.0, "iscrowd": 0} | rest
            for i, (bbox, rest) in enumerate(annotations, start=1)
        ],
    }


def dataset_of(folder, annotations, images=2):
    (folder / "images").mkdir()
    for i in range(1, images + 1):
        Image.new("RGB", (WIDTH, HEIGHT), (i, 0, 0)).save(folder / "images" / f"{i}.png")
    (folder / "annotations.json").write_text(json.dumps(content(annotations, images)))
    return CocoDetection(folder / "images", folder / "annotations.json", as_it_is)


def sentence(raised):
    """The message of an error, which has to be one line without a traceback."""
    text = str(raised.value)
    assert "\n" not in text and "Traceback" not in text and text == text.strip()
    return text


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
    assert target["labels"].tolist() == [7, 3, 7]
    assert target["image_id"] == 1 and target["orig_size"].tolist() == [HEIGHT, WIDTH]
    _, empty = dataset[1]
    assert empty["boxes"].shape == (0, 4) and empty["labels"].shape == (0,) and empty["labels"].dtype == torch.long
    assert [remark.split()[0] for remark in dataset.remarks()] == ["4", "1", "1"]  # flat or outside, crowds, empty images


def test_nothing_is_remarked_where_all_is_well(tmp_path):
    """Protects the attention for the remarks that matter."""
    assert dataset_of(tmp_path, [([1, 1, 5, 5], {})], images=1).remarks() == []


@pytest.mark.parametrize(
    "mode, suffix, colour",
    [
        ("RGB", "png", (204, 102, 51)),
        ("P", "png", (204, 102, 51)),
        ("RGBA", "png", (204, 102, 51)),
        ("CMYK", "jpg", (204, 102, 51)),
        ("L", "jpg", (90, 90, 90)),
        ("LA", "png", (90, 90, 90)),
        ("I;16", "png", (90, 90, 90)),
        ("I;16", "tiff", (90, 90, 90)),
        ("1", "png", (255, 255, 255)),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, suffix, colour):
    """Protects datasets that mix kinds of images: the colours stay, also those of 16 bits, which are not to be cut off at 255."""
    path = tmp_path / f"image.{suffix}"
    if mode == "I;16":
        Image.fromarray(np.full((HEIGHT, WIDTH), 257 * colour[0], np.uint16)).save(path)
    else:
        Image.new("RGB", (WIDTH, HEIGHT), colour).convert(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    image = read_image(path)
    assert image.mode == "RGB" and image.size == (WIDTH, HEIGHT)
    assert np.allclose(np.asarray(image), colour, rtol=0, atol=2)


def test_exif_rotation_is_ignored(tmp_path):
    """Protects the boxes, which COCO annotates on the pixels as they are stored."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    exif = image.getexif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees
    image.save(tmp_path / "image.jpg", exif=exif)
    assert read_image(tmp_path / "image.jpg").size == (WIDTH, HEIGHT)


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
    dataset.epoch = 1
    assert not all(equal(pictures(dataset, range(6)), expected))
    dataset.epoch = 0
    assert all(equal(pictures(dataset, range(6)), expected))


def test_images_of_an_epoch_are_augmented_differently(tmp_path):
    """Protects the augmentation from one seed for all: copies of an image do not stay copies."""
    copies = dataset_of(tmp_path, [], images=8)
    copies.transforms = lambda image, target: float(torch.rand(()))
    assert len({copies[i] for i in range(8)}) == 8


def test_what_exports_leave_out_is_filled_in(tmp_path):
    """Protects datasets of other tools: COCO's evaluation needs iscrowd and area, detection can tell them."""
    exported = content([([1, 2, 3, 4], {})])
    del exported["annotations"][0]["iscrowd"], exported["annotations"][0]["area"], exported["categories"][0]["name"]
    (tmp_path / "annotations.json").write_text(json.dumps(exported))
    coco = read_annotations(tmp_path / "annotations.json")
    assert (coco.anns[1]["iscrowd"], coco.anns[1]["area"]) == (0, 12)
    assert category_names(coco) == {3: "3", 7: "dog"}


def changed(part, **entry):
    """The annotation file with another value in the first entry of a part; None leaves the key out."""
    broken = copy.deepcopy(content([([1, 2, 3, 4], {})]))
    broken[part][0] = {key: value for key, value in (broken[part][0] | entry).items() if value is not None}
    return broken


def without(part):
    return {key: value for key, value in content().items() if key != part}


BROKEN = {
    "not JSON": ("{", "JSON"),
    "not text": (b"\xff\xfe\x00", "JSON"),
    "empty": ("", "JSON"),
    "a list": ([], "list"),
    "a number": (3, "int"),
    "no images": (without("images"), "images"),
    "no annotations": (without("annotations"), "annotations"),
    "no categories": (without("categories"), "categories"),
    "images empty": (content(images=0), "no images"),
    "categories empty": (content() | {"categories": []}, "no categories"),
    "annotations of another kind": (content() | {"annotations": {}}, "'annotations' is not a list"),
    "image without id": (changed("images", id=None), "id"),
    "image without file": (changed("images", file_name=None), "file_name"),
    "category of a name": (changed("categories", id="cat"), "category"),
    "category below 0": (changed("categories", id=-1), "category id"),
    "unlisted image": (changed("annotations", image_id=9), "annotation 1 belongs to image 9"),
    "unlisted category": (changed("annotations", category_id=9), "annotation 1 has category 9"),
    "no box": (changed("annotations", bbox=None), "bbox"),
    "box of 3": (changed("annotations", bbox=[1, 2, 3]), "bbox of annotation 1"),
    "box with NaN": (changed("annotations", bbox=[1, 2, 3, float("nan")]), "bbox of annotation 1"),
    "box with null": (changed("annotations", bbox=[1, 2, 3, None]), "bbox of annotation 1"),
    "box of texts": (changed("annotations", bbox=["1", "2", "3", "4"]), "annotations.json"),
}


@pytest.mark.parametrize("broken, said", BROKEN.values(), ids=list(BROKEN))
def test_broken_annotations_are_told_in_one_sentence(tmp_path, broken, said, capsys):
    """Protects users from a traceback out of pycocotools, and from a run that fails hours later."""
    path = tmp_path / "annotations.json"
    if isinstance(broken, bytes):
        path.write_bytes(broken)
    else:
        path.write_text(broken if isinstance(broken, str) else json.dumps(broken))
    with pytest.raises(UserError) as raised:
        read_annotations(path)
    assert sentence(raised).startswith(str(path)) and said in str(raised.value)
    assert capsys.readouterr().out == ""


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
    assert sentence(raised) == f"{annotations} lists the image 2.png, which is not in {images}"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_told_in_one_sentence_through_a_loader_too(tmp_path, workers):
    """Protects the message: a worker's error comes with the worker's traceback, which the user has no use for."""
    dataset = dataset_of(tmp_path, [])
    path = dataset.path(2)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError) as raised:
        list(DataLoader(dataset, num_workers=workers, collate_fn=collate))
    assert sentence(raised).startswith(f"{path} is not a readable image (")
    clear_frames(raised.tb)  # frees the loader now: found by the garbage collector, it waits for its workers in vain


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tiff", "gif"])
def test_whatever_a_broken_file_provokes_in_pillow_is_told(tmp_path, suffix, monkeypatch):
    """Protects against the many exceptions of the decoders: cut anywhere, of another kind, or too large to be meant."""
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for part in (b"", b"not an image", *(whole[: len(whole) * i // 10] for i in range(1, 10))):
        path.write_bytes(part)
        with pytest.raises(UserError, match=f"{path} is not a readable image"):
            read_image(path)
    path.write_bytes(whole)
    assert read_image(path).size == (WIDTH, HEIGHT)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=f"{path} is not a readable image"):
        read_image(path)

"""Panoptic annotations: those of the shapes, how they are read, and what is refused."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from torchvision.ops import box_convert

from common.data.loading import build_dataset
from common.data.panoptic import CocoPanoptic, digits_of, read_panoptic
from common.data.shapes_drawing import MIN_VISIBLE
from common.errors import UserError
from tests.small_datasets import sentence


def test_every_pixel_of_the_shapes_has_a_segment(dataset):
    """PNG, segments and instances agree: things lie where their outlines do, the ground is all the rest."""
    instances = COCO(str(dataset / "annotations" / "instances_train2017.json"))
    content = json.loads((dataset / "annotations" / "panoptic_train2017.json").read_text())
    isthing = {c["id"]: c["isthing"] for c in content["categories"]}
    assert len(content["annotations"]) == len(instances.imgs) and list(isthing.values()) == [1] * 6 + [0] * 2
    lightness = {7: [], 8: []}
    for entry in content["annotations"]:
        png = cv2.imread(str(dataset / "panoptic_train2017" / entry["file_name"]))[..., ::-1].astype(int)
        ids, segments = png @ [1, 256, 65536], entry["segments_info"]
        assert dict(zip(*map(list, np.unique(ids, return_counts=True)))) == {s["id"]: s["area"] for s in segments}
        ground, *things = sorted(segments, key=lambda s: isthing[s["category_id"]])
        assert not isthing[ground["category_id"]] and all(isthing[s["category_id"]] for s in things)
        image = cv2.imread(str(dataset / "train2017" / instances.imgs[entry["image_id"]]["file_name"]))
        lightness[ground["category_id"]].append(cv2.cvtColor(image, cv2.COLOR_BGR2LAB)[..., 0][ids == ground["id"]].mean())
        annotations = instances.imgToAnns[entry["image_id"]]
        assert [(s["category_id"], s["iscrowd"]) for s in things] == [(a["category_id"], a["iscrowd"]) for a in annotations]
        for segment, annotation in zip(things, annotations):
            mask, whole = ids == segment["id"], instances.annToMask(annotation)
            around = cv2.dilate(whole, np.ones((3, 3)))  # pycocotools leaves out pixels that an outline covers in part
            assert not mask[around == 0].any() and mask.sum() >= 0.9 * MIN_VISIBLE * whole.sum() - 4
            assert segment["bbox"] == list(cv2.boundingRect(mask.astype(np.uint8)))
    assert max(lightness[7]) < min(lightness[8])


def test_targets_are_the_segments(dataset):
    """Boxes, labels and masks of things and stuff without crowds, transformed alike; precision is measured on the instances."""
    images = build_dataset(dataset, "val", 64, 0, masks=True, panoptic_path=dataset)
    instances = build_dataset(dataset, "val", 64, 0, masks=True)
    assert isinstance(images, CocoPanoptic) and images.truth.anns.keys() == instances.coco.anns.keys()
    for index in range(len(images)):
        image, target = images[index]
        size, orig_size = target["size"].tolist(), target["orig_size"].tolist()
        listed = [a for a in images.coco.imgToAnns[target["image_id"]] if not a["iscrowd"]]
        assert torch.equal(image, instances[index][0])
        assert [images.category_ids[c] for c in target["labels"]] == [a["category_id"] for a in listed]
        assert target["masks"].shape == (len(listed), *size) and bool((target["masks"].sum(0) <= 1).all())
        boxes = box_convert(target["boxes"], "cxcywh", "xywh") * torch.tensor(orig_size[::-1] * 2)
        torch.testing.assert_close(boxes, torch.tensor([a["bbox"] for a in listed]).float(), rtol=0, atol=1e-3)
    assert images.segments(1).shape == tuple(images[0][1]["orig_size"].tolist())


def test_boxes_alone_need_no_pngs(dataset, tmp_path):
    """The first step of DETR's recipe."""
    folder = copied(dataset, tmp_path)
    shutil.rmtree(folder / "panoptic_val2017")
    assert "masks" not in build_dataset(folder, "val", 64, 0, panoptic_path=folder)[0][1]


def copied(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def change(folder: Path, **changes) -> None:
    """Other entries in the first segment of the first image; None removes one."""
    path = folder / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    segment = content["annotations"][0]["segments_info"][0]
    segment.update(changes)
    [segment.pop(name) for name, value in changes.items() if value is None]
    path.write_text(json.dumps(content))


def write_png(folder: Path, pixels: np.ndarray) -> None:
    cv2.imwrite(str(folder / "panoptic_val2017" / "000000000001.png"), pixels)


def write_json(folder: Path, name: str, content: object) -> None:
    (folder / "annotations" / name).write_text(json.dumps(content))


def without_the_last_image(folder: Path) -> None:
    content = json.loads((folder / "annotations" / "panoptic_val2017.json").read_text())
    del content["annotations"][-1]
    write_json(folder, "panoptic_val2017.json", content)


def fewer_instances(folder: Path) -> None:
    content = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    del content["images"][-1]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] < 5]
    write_json(folder, "instances_val2017.json", content)


PNG, JSON = "000000000001.png", "panoptic_val2017.json"
BAD = {
    "no JSON": (lambda f: (f / "annotations" / JSON).unlink(), [JSON, "--coco_panoptic_path"]),
    "half a JSON": (lambda f: (f / "annotations" / JSON).write_text('{"images": ['), [JSON, "JSON"]),
    "a list": (lambda f: write_json(f, JSON, []), [JSON]),
    "instances": (lambda f: shutil.copy(f / "annotations/instances_val2017.json", f / "annotations" / JSON), [JSON, "lacks"]),
    "segments of no kind": (lambda f: write_json(f, JSON, {"images": [], "annotations": [3], "categories": []}), [JSON]),
    "no box": (lambda f: change(f, bbox=None), [JSON, "lacks 'bbox'"]),
    "unknown category": (lambda f: change(f, category_id=99), [JSON, "99"]),
    "an image without segments": (without_the_last_image, [JSON, "image 5"]),
    "other instances": (fewer_instances, ["instances_val2017.json", JSON, "different images"]),
    "no PNGs": (lambda f: shutil.rmtree(f / "panoptic_val2017"), [PNG, "panoptic_val2017"]),
    "a PNG is missing": (lambda f: (f / "panoptic_val2017" / PNG).unlink(), [PNG, "panoptic_val2017"]),
    "an unreadable PNG": (lambda f: (f / "panoptic_val2017" / PNG).write_bytes(b"\x89PNG"), [PNG, "not a readable image"]),
    "a grey PNG": (lambda f: write_png(f, np.zeros((64, 64), np.uint8)), [PNG, "RGB"]),
    "another PNG": (lambda f: write_png(f, np.full((64, 64, 3), 7, np.uint8)), [PNG, "460551", "lacks"]),
    "another segment": (lambda f: change(f, id=5), [JSON, PNG, "lacks"]),
}


@pytest.mark.parametrize(("damage", "said"), BAD.values(), ids=BAD)
def test_what_does_not_fit_ends_with_one_sentence(damage, said, dataset, tmp_path):
    """Missing, unreadable and contradicting files are named."""
    folder = copied(dataset, tmp_path)
    damage(folder)
    with pytest.raises(UserError) as error:
        build_dataset(folder, "val", 64, 0, masks=True, panoptic_path=folder)[0]
    assert all(part in sentence(error.value) for part in said), error.value


def test_a_png_of_another_size(dataset, tmp_path):
    """Both sizes are named."""
    folder = copied(dataset, tmp_path)
    path = folder / "panoptic_val2017" / PNG
    png = cv2.imread(str(path))
    cv2.imwrite(str(path), np.concatenate([png, png]))
    with pytest.raises(UserError, match=f"{PNG} has {png.shape[1]} x {2 * png.shape[0]} pixels and its image {png.shape[1]} x"):
        build_dataset(folder, "val", 64, 0, masks=True, panoptic_path=folder)[0]


def test_ids_are_three_digits(dataset):
    """The PNG's red is the lowest; pseudo-annotations know their image and their segment."""
    ids = np.array([[0, 255, 256], [65536, 2**24 - 1, 0x9E3779]])
    assert (digits_of(ids).astype(int) @ [1, 256, 65536] == ids).all() and digits_of(ids)[0, 2].tolist() == [0, 1, 0]
    coco = read_panoptic(dataset / "annotations" / "panoptic_val2017.json")
    assert len({a["id"] for a in coco.anns.values()}) == len(coco.anns) and coco.anns[1]["segment"] == 0x9E3779

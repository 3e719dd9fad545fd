"""The layouts of other tools: each is recognised, and read as the same dataset in COCO's layout is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.data.layouts import Layout, of_pairs, recognise
from common.data.loading import build_dataset
from common.errors import UserError
from tests.small_datasets import content, sentence, write_images


def coco(root: Path) -> Path:
    for split, images in (("train", 4), ("val", 2)):
        write_images(root / f"{split}2017", images)
        write_json(root / "annotations" / f"instances_{split}2017.json", images)
    return root


def roboflow(root: Path) -> Path:
    """With an unused category 0, above the others, as it is exported."""
    for split, images in (("train", 4), ("valid", 2), ("test", 1)):
        write_images(root / split, images)
        path = write_json(root / split / "_annotations.coco.json", images)
        exported = json.loads(path.read_text())
        exported["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
        path.write_text(json.dumps(exported))
    return root


def flat(root: Path, images: str = ".", annotations: str = "labels.json", count: int = 10) -> Path:
    write_images(root / images, count)
    write_json(root / annotations, count)
    return root


def write_json(path: Path, images: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content([([4, 5, 10, 20], {"category_id": 7})], images)))
    return path


def names_of(layout: Layout, split: str) -> list[str]:
    images = build_dataset(layout, split, 64, 0)
    return [images.coco.imgs[i]["file_name"] for i in images.ids]


@pytest.mark.parametrize(("write", "said"), [(coco, "COCO 2017"), (roboflow, "Roboflow")], ids=["COCO 2017", "Roboflow"])
def test_exports_with_splits_are_recognised(write, said, tmp_path):
    """Both splits with their images, boxes and classes; what was recognised is one line."""
    layout = recognise(write(tmp_path))
    assert said in layout.said and str(tmp_path) in layout.said and "\n" not in layout.said and not layout.shared
    train, val = (build_dataset(layout, split, 64, 0) for split in ("train", "val"))
    assert (len(train), len(val)) == (4, 2) and train.path(1).parent.name == layout.train.name
    _, target = val[0]
    assert [val.category_ids[c] for c in target["labels"]] == [7]


@pytest.mark.parametrize("images", [".", "images"])
@pytest.mark.parametrize("annotations", ["labels.json", "annotations/instances_default.json"])
def test_one_file_is_parted(images, annotations, tmp_path):
    """Images of a flat folder: a share of them is for validation, whatever their order in the file; none is in both parts."""
    root = flat(tmp_path, images, annotations)
    layout = recognise(root, val_share=0.3, seed=1)
    train, val = names_of(layout, "train"), names_of(layout, "val")
    assert (len(train), len(val)) == (7, 3) and {*train} | {*val} == {f"{i}.png" for i in range(1, 11)}
    assert layout.shared and "10 images 3 are for validation (--val_share 0.3, --seed 1)" in layout.said
    path = root / annotations
    entries = json.loads(path.read_text())
    path.write_text(json.dumps(entries | {"images": entries["images"][::-1]}))
    assert names_of(recognise(root, 0.3, 1), "val") == val != names_of(recognise(root, 0.3, 2), "val")
    for share, count in ((0.01, 1), (0.9, 9)):
        assert len(names_of(recognise(root, share, 1), "val")) == count


def test_one_image_is_never_in_both_parts(tmp_path):
    """Protects from a leak where a file is listed under two ids; annotations go with their images, dangling ones are told."""
    root = flat(tmp_path, count=6)
    path = root / "labels.json"
    entries = json.loads(path.read_text())
    entries["images"] += [image | {"id": image["id"] + 100} for image in entries["images"]]
    path.write_text(json.dumps(entries))
    for seed in range(5):
        layout = recognise(root, 0.5, seed)
        train, val = names_of(layout, "train"), names_of(layout, "val")
        assert not {*train} & {*val} and len(train) + len(val) == 12
        assert sum(len(build_dataset(layout, split, 64, 0).coco.anns) for split in ("train", "val")) == 1
    entries["annotations"][0]["image_id"] = 77
    path.write_text(json.dumps(entries))
    with pytest.raises(UserError, match="belongs to image 77, which is not listed"):
        build_dataset(root, "train", 64, 0)


def test_any_pair_and_sub_folders(tmp_path):
    """Folders and files of any name; file names with folders in them."""
    write_images(tmp_path / "pictures" / "a", 2)
    entries = content([([4, 5, 10, 20], {})])
    entries["images"] = [image | {"file_name": f"a/{image['file_name']}"} for image in entries["images"]]
    (tmp_path / "x.json").write_text(json.dumps(entries))
    layout = of_pairs(None, (tmp_path / "pictures", tmp_path / "x.json"))
    images = build_dataset(layout, "val", 64, 0)
    assert images.path(1) == tmp_path / "pictures" / "a" / "1.png" and len(images[0][1]["boxes"]) == 1
    assert "x.json" in layout.said and "train" not in layout.said


def yolo(root: Path, **description: object) -> Path:
    """Three images to train on: a box, an outline and a box, none; one to validate on, without objects."""
    write_images(root / "images" / "train", 3)
    write_images(root / "images" / "val" / "more", 1)
    for name, rows in {"train/1": "0 0.5 0.5 0.25 0.5\n", "train/2": "1 0 0 .5 0 .5 1\n\n0 .5 .5 1 1", "val/more/1": ""}.items():
        path = root / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rows)
    entries = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"], "nc": 2} | description
    (root / "data.yaml").write_text(json.dumps({k: v for k, v in entries.items() if v is not None}))  # JSON is YAML
    return root


def test_yolo_is_read(tmp_path):
    """Boxes, outlines, empty and missing text files; sub-folders; what an outline encloses is its mask and its area."""
    root = yolo(tmp_path)
    for given in (root, root / "data.yaml"):
        train = build_dataset(recognise(given), "train", 64, 0)
        assert [train.path(i).name for i in train.ids] == ["1.png", "2.png", "3.png"]
    box, outline, whole = train.coco.dataset["annotations"]
    assert (box["bbox"], box["area"], box["category_id"]) == ([15, 7.5, 10, 15], 150, 0)  # of 40 x 30 pixels
    assert (outline["bbox"], outline["area"], outline["category_id"]) == ([0, 0, 20, 30], 300, 1)
    assert outline["segmentation"] == [[0, 0, 20, 0, 20, 30]] and whole["bbox"] == [0, 0, 40, 30]
    assert train.coco.cats[1]["name"] == "dog" and train.remarks() == ["1 images without annotations, kept as negatives"]
    assert len(train[2][1]["boxes"]) == 0
    assert [i["file_name"] for i in build_dataset(root, "val", 64, 0).coco.dataset["images"]] == [
        str(root / "images/val/more/1.png")
    ]
    with pytest.raises(UserError, match="annotation 1 has no segmentation: train and evaluate without --masks"):
        build_dataset(root, "train", 64, 0, masks=True)
    (root / "labels/train/1.txt").unlink()
    (root / "labels/train/2.txt").write_text("1 0 0 .5 0 .5 1\n")
    masks = build_dataset(root, "train", 64, 0, masks=True)
    assert masks.coco.dataset["annotations"][0]["segmentation"]


def listed(root: Path) -> dict:
    (root / "train.txt").write_text("./images/train/1.png\nimages/train/2.png\n")
    (root / "more.txt").write_text(f"{root}/images/train/3.png\n")
    return {"train": ["train.txt", "more.txt"]}


WAYS = {
    "absolute path": lambda root: {"path": str(root)},
    "moved": lambda root: {"path": "/nowhere/else"},
    "Roboflow's dots": lambda root: {"train": "../images/train", "val": "../images/val"},
    "several folders": lambda root: {"train": ["images/train", "images/val/../train"]},
    "lists of images": listed,
    "names by number": lambda root: {"names": {"0": "cat", "1": "dog"}, "nc": None},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_yolo_says_where_images_are_in_many_ways(way, tmp_path):
    """Each of them finds the same three images, once, with their objects."""
    yolo(tmp_path, **way(tmp_path))
    train = build_dataset(tmp_path, "train", 64, 0)
    assert [train.path(i).name for i in train.ids] == ["1.png", "2.png", "3.png"] and len(train.coco.anns) == 3
    assert [c["name"] for c in train.coco.dataset["categories"]] == ["cat", "dog"]


def test_yolo_keypoints_leave_their_boxes(tmp_path):
    """Behind a box come the points of ``kpt_shape``, which are no outline."""
    yolo(tmp_path, kpt_shape=[2, 3])
    (tmp_path / "labels/train/1.txt").write_text("0 .5 .5 .5 1 .1 .1 2 .9 .9 2\n")
    (tmp_path / "labels/train/2.txt").unlink()
    [found] = build_dataset(tmp_path, "train", 64, 0).coco.dataset["annotations"]
    assert found["bbox"] == [10, 0, 20, 30] and "segmentation" not in found


def row(text: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        yolo(root)
        (root / "labels/train/2.txt").write_text(f"0 .5 .5 .1 .1\n{text}\n")

    return write


def without_labels(root: Path) -> None:
    shutil.rmtree(yolo(root) / "labels")


def text(name: str, value: bytes) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (yolo(root) / name).write_bytes(value)

    return write


ROW = "labels/train/2.txt, line 2: "
REFUSED = {
    "nothing": (lambda root: None, ["holds no dataset", "train2017/", "_annotations.coco.json", "data.yaml", "--train_images"]),
    "no folder": (lambda root: root.rmdir(), ["is no folder", "data.yaml"]),
    "two JSON files": (lambda r: (flat(r), flat(r, annotations="annotations/b.json")), ["2 JSON files", "--train_annotations"]),
    "one image": (lambda root: flat(root, count=1), ["labels.json lists 1 image", "validation"]),
    "no COCO": (lambda root: (flat(root) / "labels.json").write_text('{"images": 3}'), ["labels.json is not a COCO detection"]),
    "images elsewhere": (lambda root: shutil.rmtree(flat(root, "a/b") / "a" / "b"), ["labels.json lists the image"]),
    "no Roboflow train": (lambda root: shutil.rmtree(roboflow(root) / "train"), ["train is missing or empty"]),
    "row of texts": (row("cat .5 .5 .1 .1"), [ROW, "cat .5 .5 .1 .1", "numbers"]),
    "row of 4": (row("0 .5 .5 .1"), [ROW, "4 numbers are not"]),
    "row with a score": (row("0 .5 .5 .1 .1 .9"), [ROW, "6 numbers are not"]),
    "half a corner": (row("0 0 0 .5 0 .5 .5 .5"), [ROW, "8 numbers are not"]),
    "unknown class": (row("2 .5 .5 .1 .1"), [ROW, "the class 2 has no name in data.yaml"]),
    "half a class": (row("0.5 .5 .5 .1 .1"), [ROW, "class 0.5"]),
    "pixels": (row("0 20 15 10 10"), [ROW, "20 is not in [0, 1]"]),
    "NaN": (row("0 nan .5 .1 .1"), [ROW, "nan is not in [0, 1]"]),
    "binary text": (text("labels/train/2.txt", b"\xff\xfe"), ["labels/train/2.txt cannot be read as text"]),
    "no labels": (without_labels, ["no image", "labels/train/1.txt"]),
    "no images": (lambda r: shutil.rmtree(yolo(r) / "images"), ["data.yaml names images/train"]),
    "no train": (lambda root: yolo(root, train=None), ["data.yaml names no images as train"]),
    "no names": (lambda root: yolo(root, names=None), ["data.yaml", "lacks 'names'"]),
    "names of no kind": (lambda root: yolo(root, names=3), ["data.yaml", "names"]),
    "other nc": (lambda root: yolo(root, nc=3), ["nc: 3", "names 2 classes"]),
    "train a number": (lambda root: yolo(root, train=3), ["data.yaml", "train"]),
    "train a file": (lambda root: yolo(root, train="data.yaml"), ["neither a folder nor a text file"]),
    "a list of nothing": (lambda r: (yolo(r, train="x.txt") / "x.txt").write_text("a.png"), ["x.txt lists in line 1 a.png"]),
    "no YAML": (text("data.yaml", b"{"), ["data.yaml is not YAML"]),
    "a deep YAML": (text("data.yaml", b"[" * 5000), ["data.yaml is not YAML"]),
    "YAML of a text": (text("data.yaml", b"x"), ["data.yaml is not a description of a YOLO dataset"]),
}


@pytest.mark.parametrize(("write", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_missing_or_wrong_is_one_sentence(write, words, tmp_path):
    """It names the file, of text files the line, and what to do."""
    root = tmp_path / "data"
    root.mkdir()
    write(root)
    with pytest.raises(UserError) as raised:
        build_dataset(root, "train", 64, 0)
    assert [word for word in words if word not in sentence(raised.value)] == [], raised.value


def test_every_layout_gives_the_same_items(tmp_path):
    """One image and its box: pixels and targets are equal, but for the id of the image."""
    layouts = [recognise(write(tmp_path / write.__name__)) for write in (coco, roboflow)]
    layouts.append(of_pairs(None, (tmp_path / "coco" / "val2017", tmp_path / "coco" / "annotations" / "instances_val2017.json")))
    root = yolo(tmp_path / "yolo")
    (root / "labels/val/more/1.txt").write_text(f"1 {9 / 40} {15 / 30} {10 / 40} {20 / 30}\n")
    items = [build_dataset(layout, "val", 64, 0)[0] for layout in (*layouts, recognise(root))]
    for image, target in items[1:]:
        assert torch.equal(image, items[0][0])
        torch.testing.assert_close(target["boxes"], items[0][1]["boxes"])

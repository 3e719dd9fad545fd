"""The built-in shapes dataset: valid COCO annotations, reproducible bytes, and a folder that is written as a whole."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

import common
from common.data import shapes
from common.data.shapes import ensure_shapes_dataset, write_shapes_dataset
from common.data.shapes_context import FAR, PUPILS, draw_context_scene
from common.data.shapes_drawing import CLASSES, MIN_VISIBLE, polygon_annotation, rasterize, shape_polygons
from common.errors import UserError

SMALL = {"train": 4, "val": 2, "image_size": 32, "seed": 0, "progress": False}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_shapes_dataset(
        tmp_path_factory.mktemp("shapes") / "data" / "shapes", train=200, val=20, image_size=96, progress=False
    )


@pytest.fixture(scope="module")
def coco(root):
    return COCO(str(root / "annotations/instances_train2017.json"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_are_consistent_coco(root, split):
    """Protects training and evaluation from boxes, masks, sizes or ids that pycocotools would read differently."""
    coco = COCO(str(root / f"annotations/instances_{split}2017.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    ids = [annotation["id"] for annotation in coco.dataset["annotations"]]
    assert len(set(ids)) == len(ids) > 0 and len(coco.imgs) == len(coco.dataset["images"])
    assert {image["file_name"] for image in coco.imgs.values()} == {p.name for p in (root / f"{split}2017").iterdir()}
    for image in coco.imgs.values():
        height, width = image["height"], image["width"]
        assert cv2.imread(str(root / f"{split}2017" / image["file_name"])).shape == (height, width, 3)
        assert max(height, width) == 96 and min(height, width) >= 0.7 * 96 - 1
        for annotation in coco.imgToAnns[image["id"]]:
            x, y, w, h = annotation["bbox"]
            assert 0 <= x and 0 <= y and w > 0 and h > 0 and x + w <= width and y + h <= height
            assert isinstance(annotation["segmentation"], dict) == annotation["iscrowd"]
            mask = coco.annToMask(annotation)
            assert 0 < annotation["area"] == pytest.approx(mask.sum(), rel=0.1, abs=0.6 * (w + h))
            left, top, columns, rows = cv2.boundingRect(mask)
            # pycocotools leaves out pixels that a tip covers only in part
            assert np.allclose([left, top, left + columns, top + rows], [x, y, x + w, y + h], rtol=0, atol=2.5)


@pytest.mark.parametrize("centre", [(40.3, 30.8), (4.0, 50.0), (74.0, 3.0)], ids=["inside", "left", "corner"])
@pytest.mark.parametrize("name", CLASSES)
def test_boxes_are_tight_around_the_drawn_pixels(name, centre):
    """Protects the accuracy at high IoU, which boxes that are off by pixels from what is drawn would bound."""
    height, width = 60, 80
    polygons = [np.round((polygon + centre) * 16) / 16 for polygon in shape_polygons(name, 24.0, 0.3)]
    annotation = polygon_annotation(polygons, height, width)
    raster = rasterize(polygons, height, width, rim=1.0)
    drawn = np.zeros((height, width), np.float32)
    drawn[raster.crop] = raster.whole[..., 0]
    x, y, w, h = annotation["bbox"]
    for coverage, tolerance in ((0.0, 1.0), (0.25, 1.5)):
        left, top, columns, rows = cv2.boundingRect(np.uint8(drawn > coverage))
        assert np.allclose([left, top, left + columns, top + rows], [x, y, x + w, y + h], rtol=0, atol=tolerance)
    assert annotation["area"] == pytest.approx(drawn.sum(), rel=0.05)


def test_images_cover_what_a_detector_meets(coco):
    """Protects the variety: empty images, crowds, every class, many scales, formats and overlaps in few images."""
    annotations = coco.dataset["annotations"]
    counts = [len(coco.imgToAnns[image]) for image in coco.imgs]
    assert 0.02 <= np.mean(np.array(counts) == 0) <= 0.1 and max(counts) >= 6
    assert 0.005 <= sum(annotation["iscrowd"] for annotation in annotations) / len(counts) <= 0.06
    assert {annotation["category_id"] for annotation in annotations} == set(range(1, len(CLASSES) + 1))
    sides = [max(annotation["bbox"][2:]) for annotation in annotations if not annotation["iscrowd"]]
    assert min(sides) < 12 and max(sides) > 45
    assert {int(np.sign(image["width"] - image["height"])) for image in coco.imgs.values()} == {-1, 0, 1}


def test_objects_stay_visible(coco):
    """Protects against objects that nobody could find: annotations go from bottom to top, none is nearly hidden."""
    shares = []
    for image in coco.imgs:
        above = np.zeros((coco.imgs[image]["height"], coco.imgs[image]["width"]), bool)
        for annotation in reversed(coco.imgToAnns[image]):
            mask = coco.annToMask(annotation) > 0
            shares.append((mask & ~above).sum() / mask.sum())
            above = above | mask
    assert MIN_VISIBLE - 0.1 <= min(shares) < 0.6


def test_colours_contrast_with_the_background_and_hint_at_the_class(coco, root):
    """Protects the task: an object stands out, and its hue is in its class's sixth of the circle (to what JPEG changes)."""
    categories = set()
    for annotation in coco.dataset["annotations"]:
        if len(coco.imgToAnns[annotation["image_id"]]) > 1 or annotation["iscrowd"] or annotation["area"] < 200:
            continue
        image = cv2.imread(str(root / "train2017" / coco.imgs[annotation["image_id"]]["file_name"]))
        mask = cv2.erode(coco.annToMask(annotation), np.ones((5, 5), np.uint8)) > 0
        lab = cv2.cvtColor(np.float32(image) / 255, cv2.COLOR_BGR2LAB)
        if mask.any():
            inside = np.median(lab[mask], axis=0)
            background = np.median(lab[coco.annToMask(annotation) == 0], axis=0)
            assert np.linalg.norm(inside - background) > 25
            turn = np.arctan2(inside[2], inside[1]) - (annotation["category_id"] - 1) * np.pi / 3
            assert abs(np.angle(np.exp(1j * turn))) < np.pi / 6 + 0.15
            categories.add(annotation["category_id"])
    assert len(categories) >= 3


def test_same_seed_same_bytes_and_larger_datasets_begin_with_the_smaller(tmp_path):
    """Protects comparisons between runs and between dataset sizes."""
    small, again, other, large = (
        write_shapes_dataset(tmp_path / name, **{**SMALL, **changes})
        for name, changes in (("a", {}), ("b", {}), ("c", {"seed": 1}), ("d", {"train": 7, "val": 3}))
    )
    assert contents(small) == contents(again)
    images = {name for name in contents(small) if name.endswith(".jpg")}
    assert len(images) == 6 and not any(contents(small)[name] == contents(other)[name] for name in images)
    assert all(contents(small)[name] == contents(large)[name] for name in images)
    assert contents(small)["train2017/000000000001.jpg"] != contents(small)["val2017/000000000001.jpg"]
    few, many = (json.loads((folder / "annotations/instances_train2017.json").read_text()) for folder in (small, large))
    for key in ("images", "annotations"):
        assert many[key][: len(few[key])] == few[key] and len(many[key]) > len(few[key])


def test_the_default_dataset_stays(tmp_path):
    """Protects published numbers: format 2 is these annotations, to the byte, and these images, as far as JPEG encoders agree."""
    root = write_shapes_dataset(tmp_path / "shapes", **SMALL)
    files = [path for name, path in sorted((p.name, p) for p in (root / "annotations").iterdir())]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    assert digest == "9a726f558e8578fc1e413eb29c7009247d42183f7936a89d275ec67e5e17c409"
    images = [cv2.imread(str(path)) for path in sorted(root.glob("*2017/*.jpg"))]
    assert np.allclose([image.mean() for image in images], [61.01, 100.53, 199.14, 218.31, 208.14, 204.19], atol=0.5)


def test_the_key_of_an_objects_own_colour_tells_its_class():
    """Protects the task "context": one key has the object's very colour and lies far away; its pupil is the class."""
    classes = []
    for index in range(30):
        scene = draw_context_scene(0, "val", index, 96)
        image, short = scene.pixels(), min(scene.height, scene.width)
        for number, annotation in enumerate(scene.annotations, start=1):
            colours, counts = np.unique(image[scene.owner == number], axis=0, return_counts=True)
            alike = (image == colours[counts.argmax()]).all(axis=2)
            places = [cv2.boundingRect(np.uint8(alike & (scene.owner == k))) for k in (number, 0)]
            (x, y), (key_x, key_y) = ((left + width / 2, top + height / 2) for left, top, width, height in places)
            assert np.hypot(x - key_x, y - key_y) > FAR * short - 4 and max(places[1][2:]) <= 0.3 * short
            assert (image[int(key_y), int(key_x)] == [*PUPILS.values()][annotation["category_id"] - 1]).all()
        ids = [annotation["category_id"] for annotation in scene.annotations]
        assert 1 <= len(ids) <= 2 and len(ids) == len(set(ids))
        classes += ids
    assert 1.2 < len(classes) / 30 < 1.8 and 0.35 < np.mean(np.array(classes) == 1) < 0.65


def test_the_task_context_is_written_in_the_same_layout(tmp_path, root):
    """Protects training on it: COCO's layout with its own classes, and the same bytes from the same seed."""
    context, again = (write_shapes_dataset(tmp_path / name, **SMALL, task="context") for name in ("a", "b"))
    assert contents(context) == contents(again)
    coco = COCO(str(context / "annotations/instances_train2017.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == [*PUPILS] and len(coco.imgs) == 4
    panoptic = json.loads((context / "annotations/panoptic_train2017.json").read_text())
    assert [category["name"] for category in panoptic["categories"]] == [*PUPILS, "dark ground", "light ground"]
    shown = [segment["category_id"] for annotation in panoptic["annotations"] for segment in annotation["segments_info"]]
    annotated = [annotation["category_id"] for annotation in coco.dataset["annotations"]]
    assert [category for category in shown if category <= len(PUPILS)] == annotated


@pytest.mark.parametrize("error, raised", [(KeyboardInterrupt, KeyboardInterrupt), (OSError, UserError)])
@pytest.mark.parametrize("exists", [False, True])
def test_interrupted_writes_leave_nothing(tmp_path, monkeypatch, error, raised, exists):
    """Protects a later run from training on half a dataset."""
    task = shapes.TASKS["outline"]

    def fail_in_the_middle(seed, split, index, image_size):
        if (split, index) == ("val", 1):
            raise error("stopped")
        return task.draw(seed, split, index, image_size)

    root = tmp_path / "shapes"
    if exists:
        root.mkdir()
    monkeypatch.setitem(shapes.TASKS, "outline", task._replace(draw=fail_in_the_middle))
    with pytest.raises(raised):
        write_shapes_dataset(root, **SMALL)
    assert [path for path in tmp_path.rglob("*") if path != root] == [] and root.exists() == exists


def test_ensure_writes_once(tmp_path, monkeypatch):
    """Protects the time of the second run: a complete dataset is used as it is."""
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "new" / "shapes"):
        assert ensure_shapes_dataset(str(root), **SMALL) == root and len(contents(root)) == 16
    monkeypatch.setitem(shapes.TASKS, "outline", shapes.TASKS["outline"]._replace(draw=None))
    assert ensure_shapes_dataset(root, **SMALL) == root


def test_ensure_never_touches_anything_else(tmp_path):
    """Protects a user's files: other parameters, a damaged dataset and foreign folders are refused, not replaced."""
    root = write_shapes_dataset(tmp_path / "shapes", **SMALL)
    for changes in ({"train": 5}, {"val": 1}, {"image_size": 33}, {"seed": 1}, {"task": "context"}):
        before = contents(tmp_path)
        with pytest.raises(UserError, match=f"{root} .*choose another folder or remove it"):
            ensure_shapes_dataset(root, **{**SMALL, **changes})
        assert contents(tmp_path) == before
    with pytest.raises(UserError, match=f"{root} .*choose another folder"):
        write_shapes_dataset(root, **SMALL)
    (root / "val2017/000000000002.jpg").unlink()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    for folder in (root, tmp_path / "foreign", tmp_path / "foreign" / "notes.txt"):
        before = contents(tmp_path)
        with pytest.raises(UserError, match=f"{folder} .*choose another folder"):
            ensure_shapes_dataset(folder, **SMALL)
        assert contents(tmp_path) == before
    with pytest.raises(UserError, match="cannot be written"):
        ensure_shapes_dataset(tmp_path / "foreign" / "notes.txt" / "shapes", **SMALL)


def test_processes_may_write_the_same_dataset_at_once(tmp_path, monkeypatch):
    """Protects distributed runs on one disk: whoever comes second uses the dataset of the first."""
    root, task = tmp_path / "shapes", shapes.TASKS["outline"]

    def let_another_process_finish(*arguments):
        monkeypatch.setitem(shapes.TASKS, "outline", task)
        write_shapes_dataset(root, **SMALL)
        return task.draw(*arguments)

    monkeypatch.setitem(shapes.TASKS, "outline", task._replace(draw=let_another_process_finish))
    assert ensure_shapes_dataset(root, **SMALL) == root
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"] and len(contents(root)) == 16


@pytest.mark.parametrize("changes", [{"train": 0}, {"train": 0, "val": 0}, {"image_size": 16, "train": 60}])
def test_small_datasets_work(tmp_path, changes):
    """Protects smoke tests, which ask for as little as possible."""
    options = {**SMALL, **changes}
    root = write_shapes_dataset(tmp_path / "shapes", **options)
    for split in ("train", "val"):
        coco = COCO(str(root / f"annotations/instances_{split}2017.json"))
        assert len(coco.imgs) == options[split] == len(list((root / f"{split}2017").iterdir()))
        assert all(min(annotation["bbox"][2:]) >= 1 for annotation in coco.dataset["annotations"])


@pytest.mark.parametrize("name, value", [("train", -1), ("val", -1), ("seed", -1), ("image_size", 1), ("image_size", 9999)])
def test_impossible_numbers_are_refused(tmp_path, name, value):
    """Protects users from a traceback out of numpy or OpenCV; nothing is written."""
    with pytest.raises(UserError, match=f"{name}={value}"):
        ensure_shapes_dataset(tmp_path / "shapes", **{**SMALL, name: value})
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path):
    """Protects the generator's command, its closing line, and one sentence with exit code 2 for bad input."""
    shutil.copytree(Path(common.__file__).parent, tmp_path / "common", ignore=shutil.ignore_patterns("__pycache__"))

    def call(size):
        command = (*"-m common.data.shapes --output out --train 3 --val 1 --image_size".split(), size)
        return subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)

    done, refused = call("32"), call("1")
    assert (done.returncode, done.stdout) == (0, "out: 3 training and 1 validation images of the shapes dataset\n")
    assert len(contents(tmp_path / "out")) == 12
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "image_size=1" in refused.stderr

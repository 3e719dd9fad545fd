"""Detectors from Python, as ``torch.hub`` loads them: they find what the command line finds."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from common.predictor import Predictor
from tests.detector_runs import EXAMPLE, read_checkpoint, run_here, tiny
from tests.tiny_checkpoints import tiny_checkpoint, tiny_published
from tools.detectors import CLUSTERED, ROOT


def hub(entry: str, *args, **options):
    return torch.hub.load(str(ROOT), entry, *args, source="local", device="cpu", **options)


def equal(found: dict, expected: dict, tolerance: float = 0.0) -> None:
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance)


def test_every_detector_is_recognised(detector, dataset, tmp_path):
    """By what the file says, or else by its weights alone; its own entry loads it, too; several live in one process."""
    path = tiny_checkpoint(tmp_path / "x.pth", detector, 0)
    bare = {name: value for name, value in read_checkpoint(path).items() if name != "detector"}
    torch.save(bare, tmp_path / "bare.pth")
    image = dataset / "val2017" / "000000000001.jpg"
    entries = (("load", path), ("load", tmp_path / "bare.pth"), (detector.lower().replace("-", "_"), path))
    predictors = [hub(entry, checkpoint=file) for entry, file in entries]
    assert [p.detector.name for p in predictors] == [detector] * 3 and isinstance(predictors[0], Predictor)
    first, *others = (p(image, score_threshold=0.0) for p in predictors)
    for other in others:
        equal(other, first)
    assert len(first["boxes"]) == len(first["names"]) > 0 and first["scores"].diff().le(0).all()


@pytest.mark.parametrize("detector", CLUSTERED)
def test_published_files_are_recognised(detector, tmp_path):
    """Which name neither detector nor options."""
    assert hub("load", tiny_published(tmp_path / "x.pth", detector, 0)).detector.name == detector


def test_what_is_nobodys_is_refused(tmp_path):
    """Weights of something else; a checkpoint of another detector than the entry's."""
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="has the weights of none of DETR-ENACT, "):
        hub("load", tmp_path / "x.pth")
    with pytest.raises(UserError, match="is one of PnP-DETR, and not a checkpoint of Sparse-DETR"):
        hub("sparse_detr", tiny_checkpoint(tmp_path / "y.pth", "PnP-DETR", 0))


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """A checkpoint with masks of a panoptic dataset."""
    folder = tmp_path_factory.mktemp("trained")
    argv = ("--coco_path", dataset, "--masks", "--dataset_file", "coco_panoptic", "--epochs", 1, "--batch_size", 8)
    assert run_here(EXAMPLE, *tiny(EXAMPLE), *argv, "--panoptic_threshold", 0, "--output_dir", folder) == 0
    return folder / "checkpoint.pth"


def test_it_finds_what_the_evaluation_finds(trained, dataset, tmp_path):
    """Boxes, scores, classes, masks and panoptic maps of every image."""
    out = tmp_path / "eval"
    data = ("--coco_path", dataset, "--dataset_file", "coco_panoptic", "--batch_size", 1, "--num_workers", 0)
    assert run_here(EXAMPLE, "--eval", *data, "--resume", trained, "--output_dir", out, "--device", "cpu") == 0
    results = json.loads((out / "predictions.json").read_text())
    segments = {a["image_id"]: a["segments_info"] for a in json.loads((out / "panoptic.json").read_text())["annotations"]}
    predictor = hub("load", trained)
    paths = sorted((dataset / "val2017").iterdir())
    for image_id, found in enumerate(predictor(paths, score_threshold=0.0), start=1):
        rows = sorted((r for r in results if r["image_id"] == image_id), key=lambda r: -r["score"])
        boxes = torch.tensor([r["bbox"] for r in rows])
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(found["boxes"], boxes, rtol=0, atol=1e-4)
        assert found["scores"].tolist() == pytest.approx([r["score"] for r in rows], abs=1e-6)
        assert found["labels"].tolist() == [r["category_id"] for r in rows]
        assert found["masks"].shape == (len(rows), *found["panoptic"]["ids"].shape)
        shown, expected = found["panoptic"]["segments"], segments[image_id]
        assert [s["category_id"] for s in shown] == [s["category_id"] for s in expected]
        assert [s["area"] for s in shown] == pytest.approx([s["area"] for s in expected], abs=4)  # rounding at edges


def test_images_of_every_kind_are_the_same(trained, dataset):
    """A path, PIL's image, an array and tensors; alone, in a list, and in batches."""
    predictor, path = hub("load", trained), sorted((dataset / "val2017").iterdir())[1]
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = predictor(path, score_threshold=0.0)
    for like in (str(path), image, array, tensor, tensor / 255):
        equal(predictor(like, score_threshold=0.0), expected)
    batch = predictor([path, path], score_threshold=0.0, batch_size=2)
    equal(batch[1], expected, tolerance=1e-3)
    assert len(predictor([])) == 0 and len(predictor(path, score_threshold=1.0)["boxes"]) == 0
    assert predictor(path, information=True)["information"]["Self-information"].ndim == 2
    assert isinstance(predictor.model, torch.nn.Module)


@pytest.mark.parametrize(
    "thing",
    [3, None, np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), torch.zeros(4, 4), "nowhere.jpg"],
    ids=lambda thing: type(thing).__name__,
)
def test_what_is_no_image_is_said(thing, trained):
    """With what may be passed."""
    with pytest.raises(UserError, match="pass|exist"):
        hub("load", trained)(thing)


def test_training_from_python(dataset, tmp_path):
    """The run of the command line, with its options by name."""
    options = {name.removeprefix("--"): value for name, value in zip(tiny(EXAMPLE)[::2], tiny(EXAMPLE)[1::2])}
    recipe = {"coco_path": dataset, "epochs": 1, "batch_size": 8, "output_dir": tmp_path, "bucket": True, "compile": None}
    torch.hub.load(str(ROOT), "train", EXAMPLE, source="local", **options | recipe)
    assert read_checkpoint(tmp_path / "checkpoint.pth")["args"]["bucket"] is True

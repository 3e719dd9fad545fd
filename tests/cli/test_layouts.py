"""Runs on data in other layouts than COCO's."""

import json
import shutil
from pathlib import Path

import pytest

from tests.detector_runs import EXAMPLE, read_checkpoint, run_here, tiny

HERE = ("--device", "cpu", "--num_workers", 0)


@pytest.fixture(scope="module")
def flat(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training images of the shapes and their JSON in one folder."""
    folder = tmp_path_factory.mktemp("flat") / "shapes"
    shutil.copytree(dataset / "train2017", folder)
    shutil.copy(dataset / "annotations" / "instances_train2017.json", folder)
    return folder


@pytest.fixture(scope="module")
def trained(flat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run on three quarters of them."""
    out = tmp_path_factory.mktemp("trained")
    argv = ("--coco_path", flat, "--val_share", 0.25, "--seed", 5, "--epochs", 1, "--batch_size", 6, "--output_dir", out)
    assert run_here(EXAMPLE, *tiny(EXAMPLE), *argv) == 0
    return out / "checkpoint.pth"


def test_an_evaluation_validates_on_the_images_of_its_run(flat, trained, tmp_path, capsys):
    """The share and the seed are the checkpoint's; others, by which images that were trained on would count, are refused."""
    argv = ("--eval", "--resume", trained, "--coco_path", flat, "--output_dir", tmp_path, *HERE)
    assert run_here(EXAMPLE, *argv) == 0
    assert "24 images 6 are for validation (--val_share 0.25, --seed 5)" in capsys.readouterr().out
    assert len({row["image_id"] for row in json.loads((tmp_path / "predictions.json").read_text())}) == 6
    for name, value in (("--seed", 6), ("--val_share", 0.5)):
        assert run_here(EXAMPLE, *argv, name, value) == 2
        message = capsys.readouterr().err
        assert f"{name} {value} parts {flat} otherwise" in message and f"leave out {name}" in message and message.count("\n") == 1
    other = Path(shutil.copytree(flat, tmp_path / "other"))  # which it was not trained on
    assert run_here(EXAMPLE, *argv[:3], "--coco_path", other, *argv[5:], "--seed", 6) == 0


def test_named_files_are_trained_and_evaluated_on(flat, dataset, tmp_path, capsys):
    """Two pairs; the second alone for an evaluation, by which all images of a folder count; what is in both is said."""
    pair = (dataset / "val2017", dataset / "annotations" / "instances_val2017.json")
    train = ("--train_images", flat, "--train_annotations", flat / "instances_train2017.json")
    val = ("--val_images", pair[0], "--val_annotations", pair[1])
    out = tmp_path / "out"
    argv = (*tiny(EXAMPLE), "--epochs", 1, "--batch_size", 12)
    assert run_here(EXAMPLE, *argv, *train, *val, "--output_dir", out) == 0
    assert "are trained on and validated on" not in capsys.readouterr().out
    recorded = read_checkpoint(out / "checkpoint.pth")["args"]
    assert (recorded["train_images"], recorded["val_annotations"]) == (str(flat), str(pair[1]))
    evaluated = ("--eval", "--resume", out / "checkpoint.pth", *HERE, "--output_dir", tmp_path / "eval")
    assert run_here(EXAMPLE, *evaluated) == 0 and run_here(EXAMPLE, *evaluated, *val) == 0
    assert capsys.readouterr().out.count("5 images: AP") == 2
    same = [option.replace("--train", "--val") if isinstance(option, str) else option for option in train]
    assert run_here(EXAMPLE, *argv, *train, *same, "--output_dir", tmp_path / "same") == 0
    assert "24 images are trained on and validated on" in capsys.readouterr().out


@pytest.mark.parametrize("named", [False, True], ids=["one file", "named files"])
def test_panoptic_segmentation_needs_cocos_layout(named, flat, tmp_path, capsys):
    """Of other data there are no segments."""
    file = flat / "instances_train2017.json"
    pairs = [f"--{split}_{part}" for split in ("train", "val") for part in ("images", "annotations")]
    data = [word for name, path in zip(pairs, (flat, file) * 2) for word in (name, path)] if named else ("--coco_path", flat)
    argv = (*tiny(EXAMPLE), *data, "--dataset_file", "coco_panoptic", "--output_dir", tmp_path)
    assert run_here(EXAMPLE, *argv) == 2
    message = capsys.readouterr().err
    assert f"needs COCO 2017's layout, which {flat} does not have" in message and message.count("\n") == 1


def test_the_demo_draws_images_of_any_name(dataset, tmp_path):
    """On data of one's own, whose names have folders before them, and where a file is listed twice."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(dataset, data)
    (data / "val2017").rename(tmp_path / "deeper")
    (tmp_path / "deeper").rename((data / "val2017").mkdir() or data / "val2017" / "deeper")
    path = data / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["file_name"] = f"./deeper/{image['file_name']}"
    content["images"][1]["file_name"] = content["images"][0]["file_name"]
    path.write_text(json.dumps(content))
    argv = ("--demo", *tiny(EXAMPLE), "--coco_path", data, "--epochs", 1, "--output_dir", out)
    assert run_here(EXAMPLE, *argv) == 0
    assert len(list((out / "pictures").glob("*.png"))) == len(content["images"]) - 1

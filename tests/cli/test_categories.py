"""Category ids: classes are numbered inside, and whatever is written has the dataset's ids."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.cli.restore import Restored, restore
from common.data.coco_names import STUFF, THINGS, known_categories, number_classes
from common.data.shapes_drawing import CLASSES
from common.errors import UserError
from common.predictor import Predictor
from tests.detector_runs import EXAMPLE, assert_same_state, read_checkpoint, read_log, run_here, tiny
from tests.tiny_checkpoints import tiny_checkpoint
from tools.detectors import DETECTORS

PANOPTIC = ("--masks", "--dataset_file", "coco_panoptic", "--panoptic_threshold", 0)
ARGV = (*tiny(EXAMPLE), *PANOPTIC, "--batch_size", 8, "--epochs", 1)
HERE = ("--device", "cpu", "--num_workers", 0)


def large(category_id: int) -> int:
    return 5_000_000 + 7 * category_id


def renumbered(data: Path, folder: Path) -> Path:
    """The dataset with large ids in all its annotation files."""
    for path in (Path(shutil.copytree(data, folder)) / "annotations").iterdir():
        content = json.loads(path.read_text())
        for category in content["categories"]:
            category["id"] = large(category["id"])
        for entry in content["annotations"]:
            for owner in entry.get("segments_info", [entry]):
                owner["category_id"] = large(owner["category_id"])
        path.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Data and output folders of a run on the shapes and of the same run with large ids."""
    folder = tmp_path_factory.mktemp("runs")
    data = {"small": dataset, "large": renumbered(dataset, folder / "data")}
    for name, path in data.items():
        assert run_here(EXAMPLE, *ARGV, "--coco_path", path, "--output_dir", folder / name) == 0
    return {name: (path, folder / name) for name, path in data.items()}


def test_a_run_does_not_depend_on_the_numbers_of_its_categories(runs):
    """Weights and log are those of small ids, bit for bit; the checkpoint tells which id each class has."""
    (_, small), (_, big) = runs["small"], runs["large"]
    assert_same_state(small, big)
    assert read_log(small) == read_log(big)
    checkpoint = read_checkpoint(big / "checkpoint.pth")
    assert checkpoint["category_ids"] == [large(c) for c in range(1, 9)] and checkpoint["num_classes"] == 8
    assert checkpoint["stuff"] == [large(7), large(8)] and [*checkpoint["category_names"].values()][:6] == [*CLASSES]


def test_what_an_evaluation_writes_has_the_ids(runs, tmp_path):
    """Detections, panoptic maps and the precisions of classes are those of small ids; so are the numbers of the log."""
    written = {}
    for name, (data, run) in runs.items():
        out = tmp_path / name
        argv = ("--eval", *PANOPTIC[1:], "--coco_path", data, "--resume", run / "checkpoint.pth", "--batch_size", 8)
        assert run_here(EXAMPLE, *argv, "--output_dir", out, *HERE) == 0
        written[name] = [json.loads((out / f"{file}.json").read_text()) for file in ("eval", "predictions", "panoptic")]
    (numbers, found, maps), (same_numbers, same_found, same_maps) = written["small"], written["large"]
    assert same_found == [row | {"category_id": large(row["category_id"])} for row in found] and len(found) > 20
    for entry in maps["annotations"]:
        for segment in entry["segments_info"]:
            segment["category_id"] = large(segment["category_id"])
    assert same_maps["annotations"] == maps["annotations"] and any(entry["segments_info"] for entry in maps["annotations"])
    assert same_numbers | {"checkpoint": ""} == numbers | {"checkpoint": ""}
    assert [*numbers["coco_eval_bbox_per_class"]] == [*CLASSES]
    assert numbers["coco_eval_bbox"] == read_log(runs["small"][1])[0]["test_coco_eval_bbox"]


def test_predictions_have_the_ids(runs, dataset, tmp_path):
    """From Python, with names and panoptic maps; on pictures; and of an exported checkpoint, which keeps them."""
    image = sorted((dataset / "val2017").iterdir())[0]
    found = {}
    for name, (_, run) in runs.items():
        assert run_here(EXAMPLE, "--resume", run / "checkpoint.pth", "--export", tmp_path / f"{name}.pth") == 0
        for source in (run / "checkpoint.pth", tmp_path / f"{name}.pth"):
            restored = restore(DETECTORS[EXAMPLE], source)
            found[name, source.parent == run] = predicted(restored, image)
        argv = ("--predict", image, "--resume", run / "checkpoint.pth", "--score_threshold", 0)
        assert run_here(EXAMPLE, *argv, "--output_dir", tmp_path / name, *HERE) == 0
    expected = found["small", True]
    for own in (True, False):
        assert torch.equal(found["large", own]["labels"], large(found["small", own]["labels"]))
        assert found["large", own]["names"] == found["small", own]["names"] == expected["names"]
        segments = [segment["category_id"] for segment in expected["panoptic"]["segments"]]
        assert [s["category_id"] for s in found["large", own]["panoptic"]["segments"]] == [large(c) for c in segments]
    assert {*expected["names"]} <= {*read_checkpoint(runs["small"][1] / "checkpoint.pth")["category_names"].values()}
    assert len([*(tmp_path / "large").rglob("*.png")]) == 2


def predicted(restored: Restored, image: Path) -> dict:
    predictor = Predictor(DETECTORS[EXAMPLE], restored.model, restored.args, restored.categories, torch.device("cpu"))
    return predictor(image, score_threshold=0.0)


def test_a_run_goes_on_with_its_numbers(runs, tmp_path):
    """``--resume`` on its own data; on data with other ids it is refused."""
    (small, _), (_, run) = runs["small"], runs["large"]
    argv = ("--resume", run / "checkpoint.pth", "--epochs", 2, *HERE, "--output_dir", tmp_path / "on")
    assert run_here(EXAMPLE, *argv) == 0
    assert read_checkpoint(tmp_path / "on" / "checkpoint.pth")["category_ids"] == [large(c) for c in range(1, 9)]
    assert run_here(EXAMPLE, *argv, "--coco_path", small) == 2


@pytest.mark.parametrize("known", [True, False], ids=["the same categories", "others"])
def test_a_class_head_is_kept_where_the_classes_are_the_same(known, runs, tmp_path, capsys):
    """Protects ``--finetune``: as many other classes start anew, though the weights would fit."""
    (small, _), (data, run) = runs["small"], runs["large"]
    still = ("--lr", 0, "--lr_backbone", 0, "--weight_decay", 0, "--epochs", 1, "--batch_size", 8)
    argv = ("--finetune", run / "checkpoint.pth", *PANOPTIC, "--coco_path", data if known else small, *still)
    assert run_here(EXAMPLE, *argv, "--output_dir", tmp_path, *HERE) == 0
    before, after = (read_checkpoint(path / "checkpoint.pth") for path in (run, tmp_path))
    [head] = [name for name in before["model"] if name.endswith("class_embed.weight")]
    assert torch.equal(before["model"][head], after["model"][head]) == known
    assert ("class_embed" in capsys.readouterr().out) != known
    assert after["category_ids"] == [large(c) if known else c for c in range(1, 9)]


def test_an_old_checkpoint_has_its_ids_as_numbers(runs, dataset, tmp_path):
    """Without ``category_ids``, as written before or published: evaluated, continued from and predicted with as it was."""
    path = tiny_checkpoint(tmp_path / "old.pth", EXAMPLE, 0)  # of 7 classes, 0 being none
    out = tmp_path / "out"
    assert run_here(EXAMPLE, "--eval", "--resume", path, "--coco_path", dataset, "--output_dir", out, *HERE) == 0
    rows = json.loads((out / "predictions.json").read_text())
    assert {row["category_id"] for row in rows} <= {*range(7)} and known_categories({"num_classes": 3})["category_ids"] == [0, 1, 2]
    argv = ("--coco_path", dataset, "--finetune", path, "--output_dir", tmp_path / "fine", "--epochs", 1, "--batch_size", 24)
    assert run_here(EXAMPLE, *argv, *HERE) == 0
    fine = read_checkpoint(tmp_path / "fine" / "checkpoint.pth")
    assert fine["category_ids"] == [*range(7)] and fine["num_classes"] == 7
    assert run_here(EXAMPLE, "--eval", "--resume", path, "--coco_path", runs["large"][0], "--output_dir", out, *HERE) == 2


@pytest.mark.parametrize("ids", [[1, 2], [], [1, 1, 2, 3, 4, 5, 6], [-1, 1, 2, 3, 4, 5, 6], "1234567"], ids=str)
def test_damaged_numbers_are_told(ids, tmp_path):
    """As many different ids as the head has classes."""
    path = tiny_checkpoint(tmp_path / "x.pth", EXAMPLE, 0)
    torch.save(read_checkpoint(path) | {"category_ids": ids}, path)
    with pytest.raises(UserError, match="category_ids"):
        restore(DETECTORS[EXAMPLE], path)


def test_cocos_own_ids_stay_numbers():
    """Those of COCO 2017 make 91 classes, as in the published checkpoints; other ids or names make as many as there are."""
    coco = {i: name for i, name in THINGS.items() if name not in ("N/A", "__background__")}
    assert number_classes(coco) == [*range(91)] and len(coco) == 80
    assert len(number_classes(coco | STUFF)) == 201
    assert number_classes({i - 1: name for i, name in coco.items()}) == [i - 1 for i in coco]
    assert number_classes({9: "b", 3: "a"}) == [3, 9]


@pytest.mark.parametrize("swapped, code", [(True, 2), (False, 0)], ids=["other ids", "another name"])
def test_categories_that_changed_their_ids_are_refused(swapped, code, runs, tmp_path, capsys):
    """Protects evaluations from numbers of the wrong classes: names that swapped their ids are said, a renamed one is the same."""
    data, run = runs["small"]
    copied = Path(shutil.copytree(data, tmp_path / "data"))
    path = copied / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    first, second = content["categories"][:2]
    first["name"], second["name"] = (second["name"], first["name"]) if swapped else ("lorry", second["name"])
    path.write_text(json.dumps(content))
    argv = ("--finetune", run / "checkpoint.pth", "--coco_path", copied, *tiny(EXAMPLE), "--batch_size", 8, "--epochs", 1)
    assert run_here(EXAMPLE, *argv, "--output_dir", tmp_path / "out") == code
    assert ("under another id: give both the same categories" in capsys.readouterr().err) == swapped

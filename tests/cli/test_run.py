"""``--eval``: what is evaluated, and what is written. On one detector, since all share the command."""

import json
import shutil
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from common.data.shapes_drawing import CLASSES
from common.evaluation.coco import coco_evaluate
from tests.detector_runs import EXAMPLE, read_log, run_here, tiny


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    assert run_here(EXAMPLE, *tiny(EXAMPLE), "--coco_path", dataset, "--output_dir", folder, "--epochs", 1, "--batch_size", 4) == 0
    return folder


def evaluate(trained: Path, data: Path, out: Path, *argv: object) -> tuple[dict, list[dict]]:
    """What ``--eval`` writes: ``eval.json`` and ``predictions.json``."""
    argv = ("--coco_path", data, "--output_dir", out, "--eval", "--resume", trained / "checkpoint.pth", *argv)
    assert run_here(EXAMPLE, *argv, "--device", "cpu", "--num_workers", "0") == 0
    evaluation, results = (json.loads((out / f"{name}.json").read_text()) for name in ("eval", "predictions"))
    return evaluation, results


def test_an_evaluation_is_that_of_the_last_epoch(trained, dataset, tmp_path, capsys):
    """Protects reported numbers: precision and losses are those of the log, and follow from the detections that are written."""
    evaluation, results = evaluate(trained, dataset, tmp_path)
    assert "5 images" in capsys.readouterr().out
    [logged] = read_log(trained)
    assert evaluation["coco_eval_bbox"] == logged["test_coco_eval_bbox"]
    assert evaluation["losses"] == {
        k.removeprefix("test_"): v for k, v in logged.items() if k.startswith("test_") and "coco" not in k
    }
    assert (evaluation["images"], evaluation["detector"], evaluation["clustering"]) == (5, EXAMPLE, "region")
    assert {result["image_id"] for result in results} == {1, 2, 3, 4, 5}
    truth = COCO(str(dataset / "annotations" / "instances_val2017.json"))
    assert coco_evaluate(truth, results) == evaluation["coco_eval_bbox"]


def test_precisions_of_classes_are_those_of_the_whole(trained, dataset, tmp_path):
    """Their mean is the AP; classes have their names."""
    evaluation, _ = evaluate(trained, dataset, tmp_path)
    per_class = evaluation["coco_eval_bbox_per_class"]
    assert [*per_class] == [*CLASSES] and all(row.keys() == {"AP", "AP50", "AP75"} for row in per_class.values())
    for i, metric in enumerate(("AP", "AP50", "AP75")):
        known = [row[metric] for row in per_class.values() if row[metric] >= 0]
        assert sum(known) / len(known) == pytest.approx(evaluation["coco_eval_bbox"][i], abs=1e-9)


def test_the_evaluation_finds_what_was_predicted(trained, dataset, tmp_path):
    """Where the truth is the best detection of each image, the precision is high: boxes and images are not mixed up."""
    data, out = Path(shutil.copytree(dataset, tmp_path / "data")), tmp_path / "out"
    _, results = evaluate(trained, data, out)
    best = {result["image_id"]: result for result in sorted(results, key=lambda result: result["score"])}
    path = data / "annotations" / "instances_val2017.json"
    truth = [result | {"id": i, "iscrowd": 0, "area": 99.0} for i, result in enumerate(best.values(), start=1)]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": truth}))
    evaluation, again = evaluate(trained, data, out)
    assert again == results
    assert evaluation["coco_eval_bbox"][0] > 0.1

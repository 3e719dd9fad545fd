"""Average precision is pycocotools', and what goes into it is what the model said."""

import contextlib
import copy
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.evaluation.coco import METRICS, coco_evaluate, coco_results

IMAGES, CATEGORIES, SIDE = 24, (1, 2, 5), 300


def random_evaluation(seed, crowds=0.2, decimals=1):
    """Ground truth and noisy detections: all sizes, images and categories without objects, detections of no object, ties."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, IMAGES + 1):
        for _ in range(rng.integers(0, 9)):
            size = rng.choice([12, 60, 200]) * rng.uniform(0.5, 1.4, 2)
            box = np.concatenate((rng.uniform(0, SIDE - size), size))
            category = int(rng.choice(CATEGORIES[: 1 + image % 3]))
            crowd = int(rng.random() < crowds)
            area = float(box[2] * box[3] * rng.uniform(0.4, 1))
            annotations.append({"image_id": image, "category_id": category, "bbox": box.tolist(), "area": area, "iscrowd": crowd})
            for _ in range(rng.integers(0, 4 + 3 * crowd)):
                found = box + rng.normal(0, 0.08, 4) * np.tile(size, 2)
                results.append((image, category if rng.random() < 0.8 else 5, found, rng.random()))
    for _ in range(120):  # more in one image than count
        results.append((3, 1, rng.uniform(1, 100, 4), rng.random()))
    dataset = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE} for i in range(1, IMAGES + 1)],
        "categories": [{"id": c, "name": str(c)} for c in CATEGORIES],
        "annotations": [{"id": i} | a for i, a in enumerate(annotations, start=1)],
    }
    return dataset, [
        {"image_id": image, "category_id": category, "bbox": box.tolist(), "score": round(score, decimals)}
        for image, category, box, score in results
    ]


def indexed(dataset):
    """A dataset as pycocotools has it after reading its file."""
    coco = COCO()
    coco.dataset = copy.deepcopy(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def pycocotools(dataset, results):
    """The 12 numbers as pycocotools' users compute them; it cannot load an empty list of results."""
    truth = indexed(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        found = truth.loadRes(copy.deepcopy(results)) if results else indexed({**dataset, "annotations": []})
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize(
    "seed, options",
    [(0, {}), (1, {}), (2, {"decimals": 0}), (3, {"decimals": 9, "crowds": 0}), (4, {"crowds": 1})],
    ids=["a", "b", "ties everywhere", "no ties, no crowds", "crowds only"],
)
def test_average_precision_is_that_of_pycocotools(seed, options, capfd):
    """Protects every reported number: it is what loading the results and evaluating them with COCO's own code gives."""
    dataset, results = random_evaluation(seed, **options)
    stats = coco_evaluate(indexed(dataset), results)
    assert stats == pytest.approx(pycocotools(dataset, results), rel=0, abs=1e-12)
    assert len(stats) == len(METRICS) == 12 and all(isinstance(x, float) for x in stats)
    assert (max(stats) == -1) == (options.get("crowds") == 1) and max(stats) < 1
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("truth", [True, False], ids=["objects", "no objects"])
@pytest.mark.parametrize("found", [True, False], ids=["detections", "no detections"])
def test_average_precision_of_nothing(truth, found):
    """Protects the first epochs and datasets of negatives from a crash, and -1 from being taken for a precision."""
    dataset, results = random_evaluation(5)
    dataset, results = dataset | ({} if truth else {"annotations": []}), results if found else []
    stats = coco_evaluate(indexed(dataset), results)
    assert stats == pytest.approx(pycocotools(dataset, results), rel=0, abs=1e-12)
    assert (stats[0] == -1) == (not truth) and (truth and found) == (stats[0] > 0)


def test_evaluation_leaves_what_it_is_given_as_it_is():
    """Protects predictions.json, which is written afterwards, and the annotations, which every epoch is evaluated with."""
    dataset, results = random_evaluation(6)
    truth, before = indexed(dataset), copy.deepcopy((dataset, results))
    first = coco_evaluate(truth, results)
    assert (truth.dataset, results) == before
    assert coco_evaluate(truth, results) == first


def test_results_have_cocos_format():
    """Protects predictions.json for COCO's server: ids and boxes as [x, y, width, height] in plain numbers, image by image."""
    detections = [
        {"scores": [0.5, 0.25], "labels": [7, 3], "boxes": [[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 1.0, 1.0]]},
        {"scores": [], "labels": [], "boxes": []},
        {"scores": [1.0], "labels": [1], "boxes": [[10.5, 20.0, 11.0, 30.0]]},
    ]
    tensors = [{k: torch.tensor(v).reshape((-1, 4) if k == "boxes" else -1) for k, v in d.items()} for d in detections]
    results = coco_results([42, 43, 7], tensors)
    assert results == [
        {"image_id": 42, "category_id": 7, "bbox": [1, 2, 3, 6], "score": 0.5},
        {"image_id": 42, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 0.25},
        {"image_id": 7, "category_id": 1, "bbox": [10.5, 20, 0.5, 10], "score": 1},
    ]
    assert {type(x) for r in results for x in (r["image_id"], r["category_id"], r["score"], *r["bbox"])} == {int, float}

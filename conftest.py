"""For the tests of all folders: the detectors by the names of their packages, and a dataset that is drawn once."""

import json
from pathlib import Path

import pytest

import tools.detectors  # noqa: F401 - puts the detectors' folders on the path
from common.data.shapes import write_shapes_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in COCO's layout: the first 24 training and 5 validation images of the shapes dataset, at 64 pixels.

    Each class has one more object in every validation image, its middle: a box that a model finds before it has learned much,
    so that its average precision is not 0.
    """
    root = write_shapes_dataset(tmp_path_factory.mktemp("dataset") / "shapes", train=24, val=5, image_size=64, progress=False)
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        for category in content["categories"]:
            w, h = image["width"] / 2, image["height"] / 2
            ids = {"id": len(content["annotations"]) + 1, "image_id": image["id"], "category_id": category["id"]}
            polygon = [w / 2, h / 2, 1.5 * w, h / 2, 1.5 * w, 1.5 * h, w / 2, 1.5 * h]
            shape = {"bbox": [w / 2, h / 2, w, h], "area": w * h, "segmentation": [polygon]}
            content["annotations"].append(ids | shape | {"iscrowd": 0})
    path.write_text(json.dumps(content))
    return root

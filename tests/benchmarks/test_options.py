import json

import cv2
import pytest
import torch

from benchmarks.lib.cli import main
from benchmarks.speed import options
from benchmarks.speed.options import padding_share, write_pictures
from common.data.loading import build_dataset


def test_padding_share_is_what_the_batches_hold_beside_their_images(monkeypatch):
    """Images of one shape need no padding, and the share of two shapes follows from their sizes."""
    monkeypatch.setattr(options, "training_transforms", lambda _: options_of_no_change)
    assert padding_share([(64, 48)] * 4, [(0, i) for i in range(4)], 2) == 0
    sizes = [(60, 40), (40, 60), (60, 40), (60, 40), (1000, 10)]
    # 2 * 2400 of 2 * 3600 pixels, then a batch without padding; the last image fills no batch.
    assert padding_share(sizes, [(0, i) for i in range(5)], 2) == pytest.approx(1 - 9600 / (7200 + 4800))


def options_of_no_change(image, target):
    class Tensor:
        shape = (3, image.height, image.width)

    return Tensor, target


def test_the_options_are_measured_against_the_default(tmp_path, capsys):
    """The command prints a row per option, with ratios to the default, and measures padding and a worker."""
    argv = ["--quick", "--device", "cpu", "--detector", "DETR-ENACT", "--variants", "bf16", "--images", "1", "--sizes", "64x48"]
    assert main(options.NAME, options.run, [*argv, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "--bucket" in printed and printed.count("images/s") == 2
    content = json.loads((tmp_path / "options-cpu.json").read_text())
    default, bf16 = content["results"]
    assert default["option"] == options.DEFAULT and default["ratios"] == {"train": 1.0, "inference": 1.0}
    assert bf16["option"] == "bf16" and bf16["ratios"]["train"] == bf16["train"] / default["train"]
    assert 0 <= content["padding"]["--bucket"] < 0.9 and content["loading"]["image_size"] == 800
    for name in options.SPLITS.values():
        speed = content["loading"][name]
        assert speed["images_per_second"] * speed["seconds_per_image"] == pytest.approx(1) and len(speed["rounds_s"]) == 2
    assert cv2.imread(str(tmp_path / "options-cpu.png")) is not None


def test_a_worker_prepares_images_of_cocos_size(tmp_path):
    """What is timed is the training's own dataset: JPEG files of 640 x 480 with their boxes, resized as the recipe says."""
    write_pictures(tmp_path, 3)
    files = sorted(tmp_path.glob("*2017/*.jpg"))
    assert len(files) == 6 and all(cv2.imread(str(file)).shape == (480, 640, 3) for file in files)
    images = [build_dataset(tmp_path, split, 800, 0)[0] for split in options.SPLITS]
    assert images[1][0].shape == (3, 800, 1066) and images[1][0].dtype == torch.uint8
    assert 480 <= min(images[0][0].shape[1:]) <= 800 and max(images[0][0].shape[1:]) <= 1333
    boxes = [len(build_dataset(tmp_path, "val", 800, 0)[i][1]["boxes"]) for i in range(3)]
    assert sum(boxes) > 0 and sum(boxes) == len(build_dataset(tmp_path, "val", 800, 0).coco.anns)

import json

import cv2
import pytest
from torch.utils.data import SequentialSampler

from benchmarks import options
from benchmarks.common_cli import main
from benchmarks.options import padding_share


def test_padding_share_is_what_the_batches_hold_beside_their_images(monkeypatch):
    """Images of one shape need no padding, and the share of two shapes follows from their sizes."""
    monkeypatch.setattr(options, "training_transforms", lambda _: options_of_no_change)
    assert padding_share([(64, 48)] * 4, SequentialSampler(range(4)), 2) == 0
    sizes = [(60, 40), (40, 60), (60, 40), (60, 40), (1000, 10)]
    # 2 * 2400 of 2 * 3600 pixels, then a batch without padding; the last image fills no batch.
    assert padding_share(sizes, SequentialSampler(range(5)), 2) == pytest.approx(1 - 9600 / (7200 + 4800))


def options_of_no_change(image, target):
    class Tensor:
        shape = (3, image.height, image.width)

    return Tensor, target


def test_the_options_are_measured_against_the_plain_path(tmp_path, capsys):
    """The command prints a row per option, with ratios to the one without, and both of the loader's measurements."""
    argv = ["--quick", "--device", "cpu", "--detector", "DETR-ENACT", "--variants", "bf16", "--images", "1", "--sizes", "64x48"]
    assert main(options.NAME, options.run, [*argv, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "--bucket" in printed and "--cache_mode" in printed
    content = json.loads((tmp_path / "options-cpu.json").read_text())
    plain, bf16 = content["results"]
    assert plain["ratios"] == {"train": 1.0, "inference": 1.0}
    assert bf16["option"] == "bf16" and bf16["ratios"]["train"] == bf16["train"] / plain["train"]
    assert 0 <= content["padding"]["--bucket"] < 0.9 and content["loading"]["--cache_mode"] > 0
    assert cv2.imread(str(tmp_path / "options-cpu.png")) is not None

"""Training curves survive any log."""

import json

import cv2
import numpy as np
import pytest

from common.errors import UserError
from common.output import curves
from common.output.curves import plot_curves


def record(epoch, **changes):
    losses = {"loss": 9.0, "loss_ce": 0.5, "loss_bbox": 0.3, "loss_giou": 0.4}
    values = {f"{split}_{key}": value / (epoch + 1) for split in ("train", "test") for key, value in losses.items()}
    return {"epoch": epoch, **values, "train_lr": 1e-4, "test_coco_eval_bbox": [0.4, 0.6, 0.5] + [-1] * 9, **changes}


@pytest.mark.parametrize(
    "records",
    [
        [record(0)],
        [record(epoch) for epoch in range(30)],
        [record(0, test_coco_eval_bbox=None), record(1, train_loss=float("nan")), {"epoch": 2, "train_loss": 3}],
        [record(0, test_coco_eval_bbox=[-1] * 12)],
    ],
    ids=["one epoch", "many", "missing keys", "nothing to find"],
)
def test_curves_are_drawn(tmp_path, records):
    """A log of any length, with gaps, gives a figure."""
    log = tmp_path / "log.txt"
    log.write_text("".join(json.dumps(r) + "\n" for r in records))
    plot_curves(log, tmp_path / "curves.png")
    assert np.ptp(cv2.imread(str(tmp_path / "curves.png"))) > 0


def test_curves_show_the_log(tmp_path, monkeypatch):
    """AP is the first number, in percent; of an epoch run twice the last counts; an evaluation every 2 epochs shows."""
    shown = {}

    def save(figure, path, **_):
        for axes in figure.axes:
            for line in axes.lines:
                shown[line.get_label()] = list(zip(*(values.tolist() for values in line.get_data()), strict=True))

    monkeypatch.setattr(curves.Figure, "savefig", save)
    first, again = record(0, train_loss=5.0), record(0, train_loss=7.0)
    log = tmp_path / "log.txt"
    log.write_text("\n".join(map(json.dumps, [first, record(1, test_coco_eval_bbox=[]), again, record(2)])))
    plot_curves(log, tmp_path / "curves.png")
    assert shown["AP"] == [(0, 40), (2, 40)] and shown["AP50"][0] == (0, 60) and shown["AP75"][0] == (0, 50)
    assert shown["train, all decoder layers"] == [(0, 7), (1, 4.5), (2, 3)]
    assert shown["GIoU, test"][1] == (1, 0.2)


@pytest.mark.parametrize("text", ["", "{", "[1]\n", '{"train_loss": 1}\n', '{"epoch": 0}\n', '{"epoch": 0}\n{"epo'])
def test_broken_logs_are_named(tmp_path, text):
    """An empty, truncated or foreign file ends with one sentence naming it, and without a figure."""
    log = tmp_path / "log.txt"
    log.write_text(text)
    with pytest.raises(UserError, match=r"log\.txt"):
        plot_curves(log, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_curves_name_the_file_they_cannot_read_or_write(tmp_path):
    """A missing log, a missing folder and an unknown format end with one sentence."""
    log = tmp_path / "log.txt"
    with pytest.raises(UserError, match=r"log\.txt"):
        plot_curves(log, tmp_path / "curves.png")
    log.write_text(json.dumps(record(0)))
    for path in (tmp_path / "missing" / "curves.png", tmp_path / "curves.unknown"):
        with pytest.raises(UserError, match=path.name):
            plot_curves(log, path)

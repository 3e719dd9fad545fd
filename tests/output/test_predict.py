"""``--predict``: pictures of what a model finds, on each detector, since each tells its information in its own way."""

import json
import os
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from cv2 import VideoCapture
from pycocotools.coco import COCO
from pycocotools.mask import decode

from common.cli.restore import load_predictor
from tests.detector_runs import EXAMPLE, run_here
from tests.small_videos import FPS, HEIGHT, WIDTH, Camera, read_video, write_video
from tests.tiny_checkpoints import tiny_checkpoint
from tools.detectors import DETECTORS


def test_prediction_draws_one_picture_per_image(clustered, dataset, tmp_path):
    """``--predict`` takes folders and files, needs no dataset, and with ``--information`` draws the map beside the image.

    A detector without clustering has no map: its picture stands alone.
    """
    images = [dataset / "val2017", dataset / "train2017" / "000000000009.jpg"]
    widths = {}
    for clustering, option in (("region", ()), ("region", ("--information",)), ("none", ("--information",))):
        checkpoint = tiny_checkpoint(tmp_path / "x.pth", clustered, 0, "--clustering", clustering)
        out = tmp_path / f"{clustering}{len(option)}"
        argv = ("--predict", *images, "--resume", checkpoint, "--score_threshold", 0, "--device", "cpu", *option)
        assert run_here(clustered, *argv, "--output_dir", out) == 0
        shapes = {path.name: cv2.imread(str(path)).shape for path in (out / "predictions").iterdir()}
        assert shapes.keys() == {f"{i:012d}.png" for i in (1, 2, 3, 4, 5, 9)}
        widths[(clustering, *option)] = [width / height for height, width, _ in shapes.values()]
    map_beside, alone = widths["region", "--information"], widths["none", "--information"]
    assert all(both > 1.9 * one for both, one in zip(map_beside, alone, strict=True))


@pytest.fixture
def checkpoint(tmp_path):
    """Of a model with masks, which nobody trained."""
    return tiny_checkpoint(tmp_path / "x.pth", EXAMPLE, 0, "--masks")


def predict(checkpoint: Path, out: Path, *argv: object) -> int:
    threshold = ("--score_threshold", 0.2)
    return run_here(EXAMPLE, "--resume", checkpoint, "--output_dir", out, "--device", "cpu", *threshold, "--predict", *argv)


def test_results_of_any_source_are_cocos(checkpoint, dataset, tmp_path, capsys):
    """``loadRes`` takes them; images and frames have ids; boxes, scores and masks are those that ``Predictor`` finds."""
    video, out = write_video(tmp_path / "film.mp4", 3), tmp_path / "out"
    image = dataset / "val2017" / "000000000002.jpg"
    assert predict(checkpoint, out, video, image, "--save_json") == 0
    assert f"1 picture and 1 video of 3 frames in {out / 'predictions'}" in capsys.readouterr().out
    assert read_video(out / "predictions" / "film.mp4")[0] == FPS and len(read_video(out / "predictions" / "film.mp4")[1]) == 3
    coco = COCO(str(out / "images.json"))
    results = coco.loadRes(str(out / "predictions.json"))
    names = [coco.imgs[i]["file_name"] for i in (1, 2, 3, 4)]
    assert [Path(name).name for name in names] == [*(f"film.mp4#{i:06d}" for i in range(3)), image.name]
    assert (coco.imgs[1]["width"], coco.imgs[1]["height"]) == (WIDTH, HEIGHT)
    found = load_predictor([DETECTORS[EXAMPLE]], checkpoint, ["--device", "cpu"])(image, score_threshold=0.2)
    rows = results.imgToAnns[4]
    assert len(rows) == len(found["boxes"]) > 0 and {row["category_id"] for row in rows} <= set(coco.cats)
    for row, box, score, mask in zip(rows, found["boxes"].tolist(), found["scores"].tolist(), found["masks"].numpy(), strict=True):
        x, y, w, h = row["bbox"]
        assert [x, y, x + w, y + h] == pytest.approx(box, abs=1e-3) and row["score"] == pytest.approx(score)
        np.testing.assert_array_equal(decode(row["segmentation"]), mask)


def test_what_cannot_be_read_is_said_and_left_out(checkpoint, dataset, tmp_path, capsys):
    """Each in a line of its own; the good ones are drawn, and the exit code tells. Alone, it is the error."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in (1, 2):
        shutil.copy(dataset / "val2017" / f"{i:012d}.jpg", folder / f"{i}.jpg")
    (folder / "bad.jpg").write_bytes((folder / "1.jpg").read_bytes()[:600])
    whole = write_video(folder / "film.avi", 40, "MJPG").read_bytes()
    (folder / "film.avi").write_bytes(whole[: len(whole) // 2])
    assert predict(checkpoint, tmp_path / "out", folder) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.replace("\r", "\n").splitlines() if "it/s" not in line and line.strip()]
    assert sum("bad.jpg is not a readable image" in line for line in lines) == 1
    assert sum("film.avi breaks off" in line for line in lines) == 1
    assert lines[-1] == f"{EXAMPLE}: 2 of 4 could not be read whole, see above: repair or leave them out"
    assert "2 pictures and 1 video of " in said.out
    assert sorted(path.name for path in (tmp_path / "out" / "predictions").iterdir()) == ["1.png", "2.png", "film.mp4"]
    assert 5 < len(read_video(tmp_path / "out" / "predictions" / "film.mp4")[1]) < 30
    assert predict(checkpoint, tmp_path / "none", folder / "bad.jpg", "--save_json") == 2
    said = capsys.readouterr()
    assert said.err.count("bad.jpg is not a readable image") == 1 and "pictures" not in said.out
    assert not list((tmp_path / "none").glob("*.json"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_camera_is_drawn_until_it_is_interrupted(number, checkpoint, tmp_path, monkeypatch, capsys):
    """The video and the results hold what was seen until then; a camera that is not there is said."""
    monkeypatch.setattr("cv2.VideoCapture", lambda *given: Camera(*given) if isinstance(given[0], int) else VideoCapture(*given))
    monkeypatch.setattr(Camera, "at_end", staticmethod(lambda: os.kill(os.getpid(), number)))
    monkeypatch.chdir(tmp_path)
    assert predict(checkpoint, tmp_path / "out", "0", "--information", "--save_json") == 130
    stopped = f"{EXAMPLE}: stopped by {number.name}; 1 video of 3 frames in {tmp_path / 'out' / 'predictions'}"
    assert capsys.readouterr().err.split("\r")[-1].strip() == stopped
    fps, frames = read_video(tmp_path / "out" / "predictions" / "camera0.mp4")
    assert fps == FPS and len(frames) >= 3 and frames[0].shape[1] > 2 * frames[0].shape[0]  # beside its map
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == 3
    assert predict(checkpoint, tmp_path / "out", "7") == 2
    assert "the camera 7 cannot be opened" in capsys.readouterr().err

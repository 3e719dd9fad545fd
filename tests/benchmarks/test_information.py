import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.lib.cli import main
from benchmarks.lib.models import images_of, trained
from benchmarks.quality import information
from benchmarks.quality.information import (
    annotated_samples,
    brightness,
    coverage,
    detected_samples,
    draw,
    maps,
    measure,
    records_of,
    run,
)
from common.boundary.checkpoints import load_checkpoint
from common.data.loading import build_dataset, collate
from tests.tiny_checkpoints import tiny_checkpoint
from tools.detectors import CLUSTERED

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def load(path: Path):
    return trained(load_checkpoint(path), path, CLUSTERED, CPU, {})


def test_inside_and_outside_of_a_map_made_by_hand():
    """Pixels count by their covered share: two whole ones of 3 and 5 and a half of 2, against 1, 1, 1 and the other half."""
    signal = torch.tensor([[3.0, 5.0, 2.0], [1.0, 1.0, 1.0]])
    covered = torch.tensor([[1.0, 1.0, 0.5], [0.0, 0.0, 0.0]])
    assert brightness(signal, covered) == pytest.approx(((3 + 5 + 1) / 2.5) / ((1 + 3) / 3.5))
    assert brightness(torch.full((2, 3), 0.1), covered) == pytest.approx(1)
    assert brightness(signal, torch.zeros(2, 3)) is None and brightness(signal, torch.ones(2, 3)) is None


def test_coverage_counts_overlapping_boxes_once():
    """The share of each feature pixel inside any box, against points far finer than its parts; outside the image nothing counts."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(6, 4, generator=generator) * torch.tensor([1, 1, 0.5, 0.5])
    h, w, fine = 5, 7, 200
    y, x = np.meshgrid((np.arange(fine * h) + 0.5) / (fine * h), (np.arange(fine * w) + 0.5) / (fine * w), indexing="ij")
    inside = np.zeros((fine * h, fine * w), dtype=bool)
    for cx, cy, bw, bh in boxes.tolist():
        inside |= (abs(x - cx) <= bw / 2) & (abs(y - cy) <= bh / 2)
    expected = inside.reshape(h, fine, w, fine).mean((1, 3))
    np.testing.assert_allclose(coverage(boxes, (h, w)), expected, atol=1 / 8)
    assert coverage(boxes, (h, w)).mean() == pytest.approx(expected.mean(), abs=5e-3)

    quarter = coverage(torch.tensor([[0.25, 0.25, 0.5, 0.5]] * 2), (2, 4))
    assert quarter.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert coverage(torch.zeros(0, 4), (2, 4)).tolist() == [[0] * 4] * 2


def test_ratios_are_taken_per_image_and_layer(clustered, dataset, tmp_path):
    """Every image with objects and without a crowd, once; the geometric mean over them."""
    loaded = load(tiny_checkpoint(tmp_path / "x.pth", clustered, 1))
    val = build_dataset(dataset, "val", 64, 0)
    val.coco.imgToAnns[val.ids[1]][0]["iscrowd"] = 1
    val.coco.imgToAnns[val.ids[2]] = []
    ratios = measure(loaded, val, 10)
    expected = [[], []]
    for i in (0, 3, 4):
        batch = collate([val[i]])
        for layer, signal in zip(expected, maps(loaded, batch)[0], strict=True):
            layer.append(brightness(signal, coverage(batch.targets[0]["boxes"], signal.shape)))
    assert ratios == expected and measure(loaded, val, 2) == [layer[:2] for layer in expected]
    for record, values in zip(records_of(ratios, loaded), expected):
        assert record["ratio"] == pytest.approx(math.prod(values) ** (1 / 3))
        assert record["brighter"] == sum(value > 1 for value in values) / 3


def test_the_maps_are_those_of_the_layers(clustered, dataset, tmp_path):
    """Self-information (eq. 3) before it is smoothed, layer by layer, in the shape of the feature map."""
    loaded = load(tiny_checkpoint(tmp_path / "x.pth", clustered, 1))
    batch = collate([build_dataset(dataset, "val", 64, 0)[0]])
    met = []
    for module in loaded.model.modules():
        if type(module).__name__ == "EntropyClustering":
            module.register_forward_pre_hook(lambda module, inputs: met.append((inputs[0][0].double(), module.weight[0].double())))
    layers, outputs = maps(loaded, batch)
    size = tuple(-(-side // 8) for side in batch.images.shape[2:])
    assert len(layers) == len(met) == 2 and outputs["feature_size"] == size
    for layer, (key, weight) in zip(layers, met):
        scores = np.exp((key @ weight).detach().numpy())
        p = scores / scores.sum() + 1e-8
        np.testing.assert_allclose(layer.numpy(), (-p * np.log2(p)).reshape(size), atol=1e-6)


def test_the_command_writes_numbers_and_figure(dataset, tmp_path):
    """From anywhere, before and after training; a checkpoint of untrained weights has the same ratios twice."""
    checkpoint = tiny_checkpoint(tmp_path / "x.pth", "Conditional-DETR-ENACT", 42)
    options = ["--checkpoint", checkpoint, "--coco_path", dataset, "--count", 2, "--device", "cpu", "--quick"]
    command = [sys.executable, ROOT / "benchmarks" / "quality" / "information.py", *options, "--output", tmp_path / "out"]
    done = subprocess.run([str(c) for c in command], cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "before training" in done.stdout and "layer 1" in done.stdout

    content = json.loads((tmp_path / "out" / "information-cpu.json").read_text())
    assert content["machine"] and content["date"] and content["detector"] == "Conditional-DETR-ENACT" and content["layer"] == 1
    rows = [(r["state"], r["layer"]) for r in content["results"]]
    assert rows == [("before", 0), ("before", 1), ("after", 0), ("after", 1)]
    assert [r["ratios"] for r in content["results"][:2]] == [r["ratios"] for r in content["results"][2:]]
    height, width, _ = cv2.imread(str(tmp_path / "out" / "information-cpu.png")).shape
    assert width == 1640 and height > 800


def test_boxes_have_one_colour_in_the_image_and_in_its_map(dataset, tmp_path):
    """Every object's frame is in both, at the same place of the picture; lines of six images follow each other."""
    loaded = load(tiny_checkpoint(tmp_path / "x.pth", "DETR-ENACT", 1))
    [sample, *_] = annotated_samples(build_dataset(dataset, "val", 64, 0), 1)
    figure = draw(loaded, [sample] * 7, 0, "")
    assert len(figure.axes) == 14

    def frames(axes):
        height, width = axes.images[0].get_array().shape[:2]
        boxes = [((p.get_x() + 0.5) / width, (p.get_y() + 0.5) / height, p.get_width() / width) for p in axes.patches]
        return np.array(boxes), [p.get_edgecolor() for p in axes.patches]

    (above, colours), (below, same) = (frames(axes) for axes in figure.axes[:2])
    assert len(above) == len(sample.boxes) and colours == same
    np.testing.assert_allclose(above, below, atol=1e-6)
    np.testing.assert_allclose(above[:, 2], sample.boxes[:, 2], atol=1e-6)


def test_images_without_annotations_show_detections_and_measure_nothing(clustered, dataset, tmp_path, capsys):
    """Boxes of the model above its score threshold, in shares of the image."""
    path = tiny_checkpoint(tmp_path / "x.pth", clustered, 1)
    argv = ["--checkpoint", path, "--images", dataset / "val2017", "--count", 2, "--device", "cpu", "--output", tmp_path / "out"]
    assert main(information.NAME, run, [str(a) for a in argv]) == 0
    assert "detections" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "information-cpu.json").read_text())["results"] == []
    assert (tmp_path / "out" / "information-cpu.png").is_file()
    loaded = load(path)
    loaded.args.score_threshold = 0.0
    [sample] = detected_samples(loaded, images_of(dataset / "val2017", 1))
    _, outputs = maps(loaded, sample.batch)
    known = {tuple(box) for box in outputs["pred_boxes"][-1, 0].numpy().round(3).tolist()}
    assert {tuple(box) for box in sample.boxes.numpy().round(3).tolist()} == known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run `make demo` first"),
        (["--checkpoint", "CHECKPOINT", "--layer", "2"], "--layer 2"),
        (["--checkpoint", "CHECKPOINT", "--images", "x", "--coco_path", "y"], "choose one"),
        (["--checkpoint", "CHECKPOINT", "--images", "missing"], "--images missing"),
        (["--checkpoint", "CHECKPOINT", "--coco_path", "missing"], "missing"),
        (["--checkpoint", "CHECKPOINT", "--measure", "0"], "--measure"),
    ],
)
def test_mistakes_end_with_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    """Code 2, and one line that says what to do."""
    monkeypatch.setattr(information, "DEMO", tmp_path / "missing.pth")
    path = tiny_checkpoint(tmp_path / "x.pth", "DETR-ENACT", 1)
    argv = [str(path) if a == "CHECKPOINT" else a for a in arguments]
    assert main(information.NAME, run, [*argv, "--device", "cpu", "--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))

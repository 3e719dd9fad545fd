import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.lib.cli import main
from benchmarks.lib.models import before_training, demo, images_of, trained
from benchmarks.quality.regions import NAME, agreement, draw, measure, noise_length, records_of, run, run_lengths, steps
from common.boundary.checkpoints import load_checkpoint
from tests.detector_runs import run_here, tiny
from tests.tiny_checkpoints import tiny_checkpoint, tiny_published
from tools.detectors import CLUSTERED  # puts the detectors' packages on the path

# isort: split
from anchor_detr.rcda import ClusteredRCDA

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
DECOUPLED = "Anchor-DETR-ENACT"
SEED = 42  # the default of --seed


def load(path: Path):
    return trained(load_checkpoint(path), path, CLUSTERED, CPU, {})


def slow_step(key: np.ndarray, weight: np.ndarray, bias: float, sigma: int) -> list[bool]:
    """Equations 3 to 6 for the keys (N, d) of an image, in float64."""
    logits = [sum(k * w for k, w in zip(row, weight)) + bias for row in key.tolist()]
    total = sum(np.exp(logits))
    information = [-p * np.log2(p) for p in (np.exp(logit) / total + 1e-8 for logit in logits)]
    offsets = range(-3 * sigma, 3 * sigma + 1)
    kernel = [np.exp(-(x**2) / (2 * sigma**2)) / (np.sqrt(2 * np.pi) * sigma) for x in offsets]
    last = len(information) - 1
    smoothed = [sum(k * information[min(max(i + x, 0), last)] for k, x in zip(kernel, offsets)) for i in range(-1, last + 2)]
    return [-smoothed[i - 1] + 2 * smoothed[i] - smoothed[i + 1] > 0 for i in range(1, last + 2)]


def test_agreement_is_what_a_slow_loop_finds(dataset, tmp_path):
    """The row and column keys of every layer, with the layer's own weights, as the paper's equations say; and what chance gives."""
    loaded = load(tiny_checkpoint(tmp_path / "x.pth", DECOUPLED, 1))
    images = images_of(dataset / "val2017", 2)
    with torch.no_grad():
        loaded.model.transformer.adapt_pos1d[-1].weight *= 10  # else the features outweigh the positions, and all agree
    met = []
    for module in loaded.model.modules():
        if isinstance(module, ClusteredRCDA):
            module.register_forward_pre_hook(lambda module, inputs: met.append((module.W_prob, inputs[2][0], inputs[3][0])))
    layers = measure(loaded, images)["layers"]

    assert len(met) == 4 and len(layers) == 2
    for i, (prob, key_row, key_col) in enumerate(met):
        weight, bias = prob.weight.detach().double().numpy()[0], prob.bias.item()
        row, col = (slow_step(key.flatten(0, 1).double().numpy(), weight, bias, 3) for key in (key_row, key_col))
        p, q = np.mean(row), np.mean(col)
        image, layer = i // 2, layers[i % 2]
        assert layer["agreement"][image] == pytest.approx(np.mean(np.equal(row, col)))
        assert layer["chance"][image] == pytest.approx(p * q + (1 - p) * (1 - q))
        assert 0.5 < layer["agreement"][image] < 1


@pytest.mark.parametrize("clustering", ["region", "region+"])
def test_rows_and_columns_agree_wholly_where_their_positions_are_equal(clustering, dataset, tmp_path):
    """The yardstick's upper end: without positions both keys are the features, whatever walk both take."""
    loaded = load(tiny_checkpoint(tmp_path / "x.pth", DECOUPLED, 1, "--clustering", clustering))
    nn.init.zeros_(loaded.model.transformer.adapt_pos1d[-1].weight)
    layers = measure(loaded, images_of(dataset / "val2017", 5))["layers"]
    assert [layer["agreement"] for layer in layers] == [[1.0] * 5] * 2


def test_chance_is_the_agreement_of_independent_steps():
    """The formula against a draw of a million pixels."""
    generator = torch.Generator().manual_seed(0)
    row, column = (torch.rand(1_000_000, generator=generator) < share for share in (0.3, 0.8))
    share, chance = agreement(row, column)
    assert chance == pytest.approx(0.3 * 0.8 + 0.7 * 0.2, abs=2e-3) and share == pytest.approx(chance, abs=2e-3)


def test_run_lengths_and_those_of_noise():
    """Every run once; the length that the chart compares with, within 2 % of that of noise."""
    generator = torch.Generator().manual_seed(0)
    step = torch.rand(500, generator=generator) < 0.4
    assert run_lengths(step).tolist() == [len(list(run)) for _, run in groupby(step.tolist())]
    for sigma in (1, 3, 5):
        noise = steps(torch.randn(1, 100_000, generator=generator), sigma)[0]
        assert run_lengths(noise).double().mean() == pytest.approx(noise_length(sigma), rel=0.02)


@pytest.mark.parametrize("clustering", [("region",), ("region+",), ("region+", "--cuts", "steps")], ids=" ".join)
def test_counts_and_lengths_are_those_of_the_models_clusters(clustering, clustered, dataset, tmp_path):
    """What is reported is what the layers pool: their clusters, image by image, which together hold every pixel."""
    loaded = load(tiny_checkpoint(tmp_path / "x.pth", clustered, 1, "--clustering", *clustering))
    images = images_of(dataset / "val2017", 5)
    indices_met = []
    for module in loaded.model.modules():
        if type(module).__name__ == "EntropyClustering":
            module.register_forward_hook(lambda module, inputs, clusters: indices_met.append(clusters.index[0].tolist()))
    result = measure(loaded, images)
    # Behind the record of an image, an attention with columns is asked for those too.
    indices_met = [indices_met[i] for i in range(len(indices_met)) if clustered != DECOUPLED or i % 4 < 2]
    for i, layer in enumerate(result["layers"]):
        indices = indices_met[i::2]
        lengths = [index.count(i) for index in indices for i in range(max(index) + 1)]
        assert layer["counts"] == [max(index) + 1 for index in indices] and result["N"] == [len(index) for index in indices]
        assert layer["lengths"] == np.bincount(lengths).tolist()
        assert np.dot(layer["lengths"], range(len(layer["lengths"]))) == sum(result["N"])
        assert layer["mean_length"] == pytest.approx(sum(result["N"]) / sum(layer["counts"]))


def test_a_model_with_windows_is_measured_in_regions(clustered, dataset, tmp_path):
    """The first layer sees the same features whatever follows, so the regions there are those of the model with regions."""
    images = images_of(dataset / "val2017", 5)
    region, window = (load(tiny_checkpoint(tmp_path / kind, clustered, 1, "--clustering", kind)) for kind in ("region", "window"))
    assert (region.args.clustering, window.args.clustering) == ("region", "window")
    assert measure(region, images)["layers"][0] == measure(window, images)["layers"][0]


def test_a_published_file_is_recognised_by_its_weights(clustered, dataset, tmp_path):
    """It names no detector: each is tried, and the one that it fits gives the same results as the original."""
    [image] = images_of(dataset / "val2017", 1)
    published, own = tiny_published(tmp_path / "published.pth", clustered, 1), tmp_path / "own.pth"
    changes = {"image_size": 64, "smoothing_sigma": 3.0}
    loaded = trained(load_checkpoint(published), published, CLUSTERED, CPU, changes)
    assert loaded.detector.name == clustered and loaded.args.clustering == "window"
    original = load(tiny_checkpoint(own, clustered, 1, "--clustering", "window"))
    for a, b in zip(measure(loaded, [image])["layers"], measure(original, [image])["layers"], strict=True):
        assert a == b


def test_before_training_are_the_weights_that_training_starts_from(dataset, tmp_path):
    """A run whose learning rates are 0 leaves them in its checkpoint."""
    frozen = ("--lr", 0, "--lr_backbone", 0, "--epochs", 1, "--batch_size", 12, "--seed", 3)
    assert run_here("DETR-ENACT", *tiny("DETR-ENACT"), "--coco_path", dataset, "--output_dir", tmp_path, *frozen) == 0
    loaded = load(tmp_path / "checkpoint.pth")
    start = dict(before_training(loaded).model.named_parameters())
    assert loaded.args.seed == 3
    for name, parameter in loaded.model.named_parameters():
        torch.testing.assert_close(parameter, start[name], rtol=0, atol=0, msg=name)


def test_the_command_writes_numbers_and_chart_before_and_after_training(dataset, tmp_path):
    """One run over the checkpoints of all detectors, from anywhere; a checkpoint of untrained weights has two equal halves."""
    checkpoints = [str(tiny_checkpoint(tmp_path / f"{name}.pth", name, SEED)) for name in CLUSTERED]
    options = ["--checkpoint", *checkpoints, "--images", str(dataset / "val2017"), "--count", "2", "--device", "cpu", "--quick"]
    command = [sys.executable, str(ROOT / "benchmarks" / "quality" / "regions.py"), *options, "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "by chance" in done.stdout and "independent pixels would give regions of 5.95 pixels" in done.stdout

    content = json.loads((tmp_path / "out" / "regions-cpu.json").read_text())
    assert content["machine"] and content["date"] and content["settings"]["count"] == 2
    assert [r["detector"] for r in content["results"]] == [name for name in CLUSTERED for _ in range(2)]
    for before, after, path in zip(content["results"][::2], content["results"][1::2], checkpoints, strict=True):
        assert (before["state"], after["state"], after["checkpoint"]) == ("before", "after", path)
        assert before["layers"] == after["layers"] and len(after["N"]) == 2
        assert ("agreement" in after["layers"][0]) == (after["detector"] == DECOUPLED)
    height, width, _ = cv2.imread(str(tmp_path / "out" / "regions-cpu.png")).shape
    assert width == 1640 and height > 800


def test_without_a_checkpoint_the_demo_is_measured(clustered, dataset, tmp_path, capsys):
    """A first look needs no training; options beside the weights can be changed."""
    argv = ["--detector", clustered, "--images", dataset / "val2017", "--count", 2, "--image_size", 64, "--smoothing_sigma", 5]
    assert main(NAME, run, [str(a) for a in (*argv, "--device", "cpu", "--quick", "--output", tmp_path)]) == 0
    [record] = json.loads((tmp_path / "regions-cpu.json").read_text())["results"]
    assert (record["detector"], record["state"], record["checkpoint"]) == (clustered, "before", None)
    assert (record["smoothing_sigma"], record["image_size"]) == (5, 64)
    assert "\u03c3 = 5" in capsys.readouterr().out


def test_models_of_one_name_are_kept_apart(dataset):
    """The chart has a row for each of two checkpoints of one detector, and their agreement a curve each."""
    images = images_of(dataset / "val2017", 1)
    loaded = demo(DECOUPLED, CPU, {"image_size": 64})
    figure = draw([records_of(loaded, label, images) for label in ("first", "second")], "")
    titles = [text.get_text().partition(":")[0] for axes in figure.axes for text in axes.texts]
    assert [t for t in titles if t in ("first", "second")] == ["first", "second"]
    assert {"first, before training", "second, before training"} < {line.get_label() for line in figure.axes[-1].lines}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "missing"], "--images missing is not a folder"),
        (["--count", "0"], "--count"),
        (["--checkpoint", "missing.pth"], "missing.pth does not exist"),
        (["--checkpoint", "DETR-ENACT", "--detector", DECOUPLED], "is a checkpoint of DETR-ENACT"),
        (["--checkpoint", "PLAIN"], "--clustering region, region+ or window"),
        (["--checkpoint", "OTHER"], "not a checkpoint of"),
    ],
)
def test_mistakes_end_with_one_sentence(arguments, message, dataset, tmp_path, capsys):
    """Code 2, and one line that says what to do."""
    tiny_checkpoint(tmp_path / "DETR-ENACT", "DETR-ENACT", 1)
    tiny_checkpoint(tmp_path / "PLAIN", "DETR-ENACT", 1, "--clustering", "none")
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "OTHER")
    argv = ["--images", str(dataset / "val2017"), "--device", "cpu", "--quick", "--output", str(tmp_path / "out")]
    argv += [str(tmp_path / a) if (tmp_path / a).is_file() and not a.endswith(DECOUPLED) else a for a in arguments]
    assert main(NAME, run, argv) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))

import json

import cv2
import pytest
import torch

from benchmarks.lib.cli import main
from benchmarks.lib.flops import ENCODER, multiply_adds, three_parts
from benchmarks.lib.methods import METHODS, models
from benchmarks.lib.workload import COCO_CLASSES, build_batches
from benchmarks.speed import compare
from tools.detectors import DETECTORS, options

FORMS = {method.name: method for method in METHODS}


@pytest.mark.parametrize("name", ["DETR", "DETR + ENACT", "Conditional DETR", "Conditional DETR + ENACT"])
def test_an_encoder_layer_costs_what_its_formula_says(name):
    """N queries, M keys of d features, f in the feed-forward network: 2 N d^2 + 2 M d^2 + 2 N M d + 2 N d f, plain with M = N."""
    batch = build_batches([(64, 48)], 1, 192)[0].to(torch.device("cpu"))
    method, encoders = FORMS[name], []
    detector = DETECTORS[method.detector]
    for layers in ("1", "2"):
        args = options(method.detector, [*method.options, "--backbone", "resnet10", "--enc_layers", layers, "--dec_layers", "1"])
        torch.manual_seed(0)
        model = detector.build_model(args, COCO_CLASSES, False).eval()
        with detector.record(model) as clusters, torch.no_grad():
            model(batch.images, batch.mask)
        encoders.append(three_parts(multiply_adds(model, batch.images, batch.mask, data_dependent=True))[ENCODER])
    n, d, f = 6 * 8, 256, 2048
    counts = [found.size for found in clusters.values()] if method.enact else [n, n]
    first, second = (2 * n * d * d + 2 * m * d * d + 2 * n * m * d + 2 * n * d * f for m in counts)
    projection = n * 512 * d
    assert encoders[1] == projection + first + second and all(1 < m <= n for m in counts)
    assert not method.enact or max(counts) < n / 2


def test_the_methods_are_measured_side_by_side(tmp_path, capsys, monkeypatch):
    """A row per method in table, file and chart; PnP-DETR's shares are one training, and the encoder costs more with each."""
    argv = ["--quick", "--device", "cpu", "--detector", "PnP-DETR", "--image_size", "96", "--rounds", "3"]
    monkeypatch.setattr(compare, "peak_memory", lambda run, device: 2**30)
    durations = iter([9.0, 9.0, *range(1, 25)])
    monkeypatch.setattr(compare, "seconds", lambda *_: float(next(durations)))
    assert main(compare.NAME, compare.run, [*argv, "--output", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "compare-cost-PnP-DETR-cpu.json").read_text())
    rows = content["results"]
    assert [row["name"] for row in rows] == [method.name for method in METHODS if method.detector == "PnP-DETR"]
    plain, enact = rows[:3], rows[3:]
    for form in (plain, enact):
        assert [row["gflops"][ENCODER] for row in form] == sorted({row["gflops"][ENCODER] for row in form})
        assert len({row["train"] for row in form}) == 1
    assert all(e["gflops"][ENCODER] < p["gflops"][ENCODER] for p, e in zip(plain, enact))
    # Two models step in turn, three times after a round that does not count; then their six inferences, in turn as often.
    assert plain[0]["rounds"] == {"train": [1, 3, 5], "inference": [7, 13, 19]} and plain[0]["train"] == 3
    assert enact[2]["rounds"] == {"train": [2, 4, 6], "inference": [12, 18, 24]} and enact[2]["inference"] == 18
    assert content["table"] in capsys.readouterr().out and "96 \u00d7 128 pixels" in content["measured_on"]
    assert cv2.imread(str(tmp_path / "compare-cost-PnP-DETR-cpu.png")) is not None


def test_a_step_polls_the_mean_share():
    """One step draws one share, which would be the price of that share alone."""
    [*_, group] = models(method for method in METHODS if method.detector == "PnP-DETR")
    args = compare.parse(["--quick", "--detector", "PnP-DETR", "--device", "cpu"])
    model = compare.Model(group, build_batches([(64, 48)], 1, 96)[0], args)
    recipe = options("PnP-DETR")
    mean = (recipe.sample_ratio_lower_bound + recipe.sample_ratio_higher_bound) / 2
    model.step()
    assert model.model.step_ratio == pytest.approx(mean)
    model.infer(group[1])
    assert model.model.sample_topk_ratio == 0.5


def test_what_does_not_fit_is_said(tmp_path, capsys, monkeypatch):
    """A GPU that is too small ends in a sentence."""

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compare, "measure", fail)
    assert main(compare.NAME, compare.run, ["--quick", "--device", "cpu", "--output", str(tmp_path)]) == 2
    assert "--batch_size" in capsys.readouterr().err

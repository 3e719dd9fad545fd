import json

import cv2
import pytest

from benchmarks.lib.cli import main
from benchmarks.quality import tradeoff
from benchmarks.quality.tradeoff import ALL, parse, plan, summarise
from tests.tiny_checkpoints import tiny_checkpoint


def test_every_seed_has_both_runs(tmp_path):
    """One model that samples and the plain one behind it, as long as the demo."""
    demos = plan(parse(["--runs", str(tmp_path)]))
    assert [*demos] == [(sampling, seed) for seed in (42, 43, 44) for sampling in ("pnp", "none")]
    assert demos["pnp", 43].options == ("--sampling", "pnp", "--seed", "43") and demos["none", 42].epochs == 12


def test_means_and_ratios():
    """The numbers of the table follow from those of the runs; one seed has no spread."""
    cost = {"encoder_mflops": 2.0, "mflops": 8.0, "seconds": 0.5}
    precisions = {0.5: [[0.1, 0.2], [0.3, 0.6]], ALL: [[0.4, 0.8], [0.4, 0.8]]}
    half, plain = summarise(precisions, {0.5: {name: value / 2 for name, value in cost.items()}, ALL: cost})
    assert half["AP"] == pytest.approx(20) and half["AP50"] == pytest.approx(40) and half["AP_spread"] == pytest.approx(200**0.5)
    assert half["AP_ratio"] == pytest.approx(0.5) and half["ratios"] == dict.fromkeys(cost, 0.5) and plain["AP_ratio"] == 1
    [untrained] = summarise({ALL: [[0.0, 0.0]]}, {ALL: cost})
    assert untrained["AP_ratio"] is None and untrained["AP_spread"] is None


def test_runs_that_are_done_are_evaluated_at_every_ratio(tmp_path, dataset, capsys):
    """One checkpoint, several shares: a row each and the plain model's, in table, file and chart."""
    for sampling in ("pnp", "none"):
        folder = tmp_path / f"{sampling}-seed1"
        folder.mkdir()
        tiny_checkpoint(folder / "checkpoint.pth", "PnP-DETR", 0, "--sampling", sampling)
        (folder / "log.txt").write_text(json.dumps({"epoch": 0, "test_coco_eval_bbox": [0.2] * 12}) + "\n")
    argv = ["--device", "cpu", "--seeds", "1", "--epochs", "1", "--ratios", "0.7", "0.3", "--repeats", "1"]
    argv += ["--runs", str(tmp_path), "--coco_path", str(dataset), "--output", str(tmp_path)]
    assert main(tradeoff.NAME, tradeoff.run, argv) == 0
    content = json.loads((tmp_path / "tradeoff-cpu.json").read_text())
    assert [(r["share"], r["sampling"]) for r in content["results"]] == [(0.3, "pnp"), (0.7, "pnp"), (ALL, "none")]
    least, most, plain = content["results"]
    assert least["encoder_mflops"] < most["encoder_mflops"] and plain["AP"] == pytest.approx(20)
    assert "all (plain)" in capsys.readouterr().out and cv2.imread(str(tmp_path / "tradeoff-cpu.png")) is not None

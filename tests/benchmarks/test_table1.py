import json
from collections import Counter
from types import SimpleNamespace

import cv2
import pytest
import torch
from torch import nn
from torch.profiler import profile, record_function
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.lib.cli import main
from benchmarks.lib.workload import COCO_SIZES, Workload, build_batches, image_sizes
from benchmarks.speed import shares, table1
from benchmarks.speed.table1 import CLUSTERINGS, COLUMNS, PAPER, add_ratios

SMALL = ["--quick", "--device", "cpu", "--sizes", "64x48", "--detector", "DETR-ENACT"]


def test_table1_measures_every_row_in_its_own_process(tmp_path, capsys):
    """The command ends with a row per clustering and attention, whose numbers were measured and whose ratios are theirs."""
    assert main(table1.NAME, table1.run, [*SMALL, "--images", "1", "--attention", "math", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "memory (GiB)" in printed and "DETR" in printed
    content = json.loads((tmp_path / "table1-DETR-ENACT-cpu.json").read_text())
    plain, region = content["results"]
    assert (plain["clustering"], region["clustering"]) == ("none", "region")
    for row in (plain, region):
        assert row["attention"] == "math" and min(row["train_steps"] + row["inference_steps"]) > 0
        assert 2**30 > row["memory"] - row["memory_before"] >= 0 and row["memory_before"] > row["step_memory"] > 2**20
    assert plain["ratios"] == dict.fromkeys(COLUMNS, 1.0) and "N" not in plain
    assert region["ratios"]["train"] == region["train"] / plain["train"]
    assert 1 <= region["M"] <= region["N"] <= 24  # 128 x 170 pixels make at most 4 x 6 features
    assert cv2.imread(str(tmp_path / "table1-DETR-ENACT-cpu.png")) is not None


def test_a_row_that_runs_out_of_memory_does_not_end_the_table(tmp_path, monkeypatch, capsys):
    """The other rows are printed; where none is left, one sentence says what to do."""
    done = SimpleNamespace(returncode=-9, stderr="", stdout="")
    monkeypatch.setattr(table1.subprocess, "run", lambda *_, **__: done)
    assert main(table1.NAME, table1.run, [*SMALL, "--output", str(tmp_path)]) == 2
    assert "--batch_size" in capsys.readouterr().err
    numbers = dict.fromkeys(COLUMNS, 2.0)
    known = {"detector": "DETR-ENACT", "attention": "math"}
    rows = [known | {"clustering": "none"} | numbers, known | {"clustering": "window", "failed": "out of memory"}]
    add_ratios(rows)
    assert "out of memory" in table1.table(rows) and "ratios" not in rows[1]


def test_rounds_are_combined_by_their_medians():
    """One disturbed round does not decide, and a row that failed once is no row of numbers."""
    rounds = [{"detector": "x"} | dict.fromkeys(COLUMNS, value) for value in (1.0, 9.0, 2.0)]
    combined = table1.combine(rounds)
    assert [combined[column] for column in COLUMNS] == [2.0] * len(COLUMNS) and len(combined["rounds"]) == 3
    assert "train" not in table1.combine([*rounds, {"detector": "x", "failed": "out of memory"}])


def test_the_papers_ratios_are_those_it_states():
    """Section 4.5 gives the gains in percent: the numbers of table 1 that are printed beside ours agree with its text."""
    rows = [{"detector": d, "clustering": c, "attention": "math"} for d in PAPER for c in CLUSTERINGS]
    add_ratios(rows)
    gains = {r["detector"]: {k: 100 * (1 - v) for k, v in r["paper_ratios"].items()} for r in rows if r["clustering"] == "region"}
    assert [round(gains[d]["memory"], 1) for d in PAPER] == [35.6, 21.2, 40.4]  # the text has 20.4 for Conditional DETR
    assert [round(gains[d]["train"], 1) for d in PAPER] == pytest.approx([9.8, 5.7, 15.4], abs=0.11)


def test_the_images_are_like_cocos(tmp_path):
    """Sizes are drawn from the mix, from a dataset's own or taken in turn; batches are padded to their largest image."""
    sizes = image_sizes(400, None, None)
    shares_of = Counter(sizes)
    total = sum(COCO_SIZES.values())
    for size, weight in COCO_SIZES.items():
        assert abs(shares_of[size] / 400 - weight / total) < 0.07
    assert image_sizes(3, None, [(64, 48), (48, 64)]) == [(64, 48), (48, 64), (64, 48)]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 30, "height": 20} for i in range(2)]
    (tmp_path / "annotations").mkdir()
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    assert image_sizes(2, tmp_path, None) == [(30, 20), (30, 20)]

    [batch] = build_batches([(64, 48), (48, 64)], 2, 96)
    assert batch.images.shape == (2, 3, 128, 128) and (~batch.mask).sum((1, 2)).tolist() == [96 * 128, 96 * 128]
    boxes = torch.cat([t["boxes"] for t in batch.targets])
    assert len(boxes) > 0 and boxes.min() >= 0 and boxes.max() <= 1


def test_random_backbones_have_the_scale_of_trained_ones():
    """Without it the features would grow from block to block, and the clusters and times would be those of no real network."""
    options = ["--device", "cpu", "--enc_layers", "1", "--dec_layers", "1"]
    model = Workload("DETR-ENACT", options).model
    images = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = model.backbone[0](images, torch.zeros(1, 160, 160, dtype=torch.bool))[-1][0]
    assert 0.3 < features.std() < 3

    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    found = []
    for norm in norms:  # what follows may change the features in place, so they are looked at here
        norm.register_forward_hook(lambda module, inputs, output: found.append(torch.var_mean(output, dim=(0, 2, 3))))
    noise = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))  # which gave the statistics
    with torch.no_grad():
        model.backbone[0](noise, torch.zeros(2, 128, 128, dtype=torch.bool))
    assert len(found) == len(norms) > 50
    for variance, mean in found:
        assert mean.abs().max() < 1e-3 and (variance - 1).abs().max() < 0.05


def test_the_backward_pass_counts_for_the_part_whose_gradient_it_is():
    """A part with nearly all the work gets nearly all the time of forward and backward, wherever it stands in the model."""
    torch.manual_seed(0)
    for large in (0, 1):
        layers = [nn.Linear(512, 512) if i == large else nn.ReLU() for i in range(2)]
        with profile() as profiler:
            x = torch.randn(2048, 512, requires_grad=True)
            for name, layer in zip(("first", "second"), layers):
                with record_function(shares.MARK + name):
                    x = layer(x)
            x.backward(torch.ones_like(x))
        durations = shares.seconds_per_part(profiler.events(), torch.device("cpu"))
        name = ("first", "second")[large]
        assert durations[name] / (durations["first"] + durations["second"]) > 0.7
        backward = sum(e.cpu_time_total for e in profiler.events() if e.name.startswith(shares.BACKWARD + ": AddmmBackward"))
        assert durations[name] > 0.9e-6 * backward > 0


def test_shares_add_up_and_name_the_parts(tmp_path, capsys):
    """Every part of the model is durations in every row, and ENACT's parts only where there are clusters."""
    assert main(shares.NAME, shares.run, [*SMALL, "--output", str(tmp_path)]) == 0
    assert "backbone" in capsys.readouterr().out
    rows = json.loads((tmp_path / "shares-cpu.json").read_text())["results"]
    assert [(r["clustering"], r["attention"]) for r in rows] == list(shares.METHODS)
    for row in rows:
        assert row["step"] == row["rounds_s"][0] > 0 and row["ratio"] == row["step"] / rows[0]["step"]
        part = row["shares"]
        assert sum(part.values()) == pytest.approx(1) and part["other"] < 0.5
        assert min(part[p] for p in ("backbone", "encoder attention", "encoder, rest", "decoder", "losses", "optimiser")) > 0
        assert (part["clustering"] > 0) == (part["pooling"] > 0) == (row["clustering"] != "none")

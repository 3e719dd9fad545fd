import json

import cv2
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.lib.cli import main
from benchmarks.lib.flops import (
    BACKBONE,
    DECODER,
    ENCODER,
    HEADS,
    PARTS,
    SAMPLER,
    count_multiply_adds,
    count_parameters,
    depends_on_data,
    multiply_adds,
)
from benchmarks.lib.workload import COCO_CLASSES
from benchmarks.speed import cost
from common.models.sampling import sample
from tests.detector_runs import VARIANTS, tiny
from tools.detectors import DETECTORS, options

SMALL = ["--quick", "--device", "cpu", "--sizes", "64x48"]
FORMS = [(detector, name) for detector, forms in VARIANTS.items() for name in forms if name not in ("window", "refined")]


def build(detector: str, *argv: str) -> tuple[nn.Module, dict]:
    recipe = options(detector, argv)
    return DETECTORS[detector].build_model(recipe, COCO_CLASSES, False).eval(), recipe


def images(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, height, width, generator=generator), torch.zeros(1, height, width, dtype=torch.bool)


def test_the_cost_of_a_detector_is_measured(tmp_path, capsys):
    """The command ends with a row per variant, and its file holds numbers, table and chart."""
    argv = [*SMALL, "--detector", "DETR-ENACT", "--repeats", "2", "--output", str(tmp_path)]
    assert main(cost.NAME, cost.run, argv) == 0
    content = json.loads((tmp_path / "cost-DETR-ENACT-cpu.json").read_text())
    assert content["table"] in capsys.readouterr().out and content["settings"]["repeats"] == 2
    plain, region = content["results"]
    assert [r["name"] for r in (plain, region)] == ["DETR, none", "DETR, region"]
    for row in (plain, region):
        assert row["memory"] > 2**20 and row["parameters"]["all"] > row["parameters"]["trainable"] == row["parameters"]["detecting"]
        for batch_size in ("1", "4"):
            assert row["images_per_second"][batch_size] == pytest.approx(1 / row["seconds_per_image"][batch_size])
        assert row["gflops"]["all"] == pytest.approx(sum(row["gflops"][part] for part in PARTS))
    assert region["gflops"][ENCODER] < plain["gflops"][ENCODER] and region["gflops"][DECODER] == plain["gflops"][DECODER]
    lines = content["table"].splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert cv2.imread(str(tmp_path / "cost-DETR-ENACT-cpu.png")) is not None


def test_counting_alone_needs_no_timing(tmp_path, monkeypatch, capsys):
    """Without times their columns are left out, and nothing is run for them; a size is counted once, and weighs by its images."""
    counted = []

    def count(model: nn.Module, images: torch.Tensor, *_: object, **__: object) -> dict[str, int]:
        counted.append(images.shape[-2:])
        return dict.fromkeys(PARTS, images.shape[-1] * 10**9)

    monkeypatch.setattr(cost, "multiply_adds", count)
    monkeypatch.setattr(cost, "time", None)
    monkeypatch.setattr(cost, "VARIANTS", {"Sparse-DETR": {"Deformable DETR": []}})
    argv = ["--quick", "--device", "cpu", "--detector", "Sparse-DETR", "--sizes", "64x64", "96x64", "64x64", "--images", "4"]
    assert main(cost.NAME, cost.run, [*argv, "--no-timing", "--output", str(tmp_path)]) == 0
    assert counted == [(128, 128), (128, 192)] and "images/s" not in capsys.readouterr().out
    [row] = json.loads((tmp_path / "cost-Sparse-DETR-cpu.json").read_text())["results"]
    assert row["gflops"]["all"] == pytest.approx(len(PARTS) * (3 * 128 + 192) / 4)
    assert "memory" not in row and "published" not in row


def test_the_published_numbers_are_counted():
    """At 850 x 1040, the size of the authors' own first count, Deformable DETR has its published 172.9 GFLOPs; 0.3 are norms."""
    published = cost.PUBLISHED["Deformable DETR"]
    model, recipe = build("Sparse-DETR")
    counts = multiply_adds(model, *images(850, 1040), data_dependent=False)
    assert sum(counts.values()) * 1e-9 == pytest.approx(published[1] - 0.3, abs=0.1)
    assert count_parameters(model, recipe)["detecting"] * 1e-6 == pytest.approx(published[0], abs=0.051)
    argv = cost.VARIANTS["Sparse-DETR"][name := "Sparse DETR, \u03c1 = 0.1"]
    parameters = count_parameters(*build("Sparse-DETR", *argv))
    assert parameters["detecting"] * 1e-6 == pytest.approx(cost.PUBLISHED[name][0], abs=0.051)
    head = COCO_CLASSES * 257 + 2 * 256 * 257 + 4 * 257
    assert parameters["trainable"] - parameters["detecting"] == 5 * head


def test_a_sampled_number_counts_four():
    """Deformable attention's bags count as papers count grid_sample, in every way that they may be computed."""
    shapes, queries, heads, points, features = ((5, 6), (3, 3)), 7, 2, 3, 4
    value = torch.randn(2, 39, heads, features, requires_grad=True)
    locations, weights = torch.rand(2, queries, heads, 2, points, 2), torch.rand(2, queries, heads, 2, points)
    numbers = 2 * queries * heads * 2 * points * features
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            counts = count_multiply_adds(lambda: sample(value, shapes, locations, weights), nn.Identity())
        assert counts == dict.fromkeys(PARTS, 0) | {ENCODER: 4 * numbers}
    table, bags = torch.randn(9, features, requires_grad=True), torch.zeros(5, 4, dtype=torch.int)
    weights = torch.rand(5, 4)
    counts = count_multiply_adds(lambda: F.embedding_bag(bags, table, per_sample_weights=weights, mode="sum"), nn.Identity())
    assert counts[ENCODER] == 5 * 4 * features


@pytest.mark.parametrize("grad", [False, True])
def test_attention_counts_its_two_products(grad):
    """Fused kernels hide their products from a counter that does not know them; they count all the same."""
    query, key = torch.randn(2, 8, 5, 16), torch.randn(2, 8, 7, 16)
    with torch.set_grad_enabled(grad):
        counts = count_multiply_adds(lambda: F.scaled_dot_product_attention(query, key, key), nn.Identity())
    assert sum(counts.values()) == 2 * (2 * 8 * 5 * 7 * 16)


@pytest.mark.parametrize(("detector", "form"), FORMS)
def test_every_part_of_every_detector_is_counted(detector, form):
    """Counting sizes alone gives what computing gives, and each part has a share; the model is as it was, to the bit."""
    model, recipe = build(detector, *tiny(detector), *VARIANTS[detector][form])
    batch = images(64, 96)
    before = model(*batch)
    depends = depends_on_data(recipe)
    counts = multiply_adds(model, *batch, data_dependent=depends)
    assert {part for part, count in counts.items() if not count} == (set() if form in ("sampled", "clustered") else {SAMPLER})
    if not depends:
        assert multiply_adds(model, *batch, data_dependent=True) == counts
    with torch.no_grad():
        body = (model.backbone if detector == "Anchor-DETR-ENACT" else model.backbone[0]).body
        assert sum(count_multiply_adds(lambda: body(batch[0]), nn.Identity()).values()) == counts[BACKBONE]
    assert any(p.requires_grad for p in model.parameters()) and not any(m._forward_hooks for m in model.modules())
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(model(*batch)[name], before[name], rtol=0, atol=0)


def test_heads_within_the_decoder_are_no_part_of_it():
    """A module counts for its own part wherever it is called, and what is in no part for the encoder."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.input_proj = nn.Linear(2, 3)
            self.decoder = nn.Module()
            self.decoder.linear = nn.Linear(3, 5)
            self.class_embed = nn.ModuleList([nn.Linear(5, 7)])
            self.decoder.forward = lambda x: self.class_embed[0](self.decoder.linear(x))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.decoder(self.input_proj(x))

    model = Model()
    counts = count_multiply_adds(lambda: model(torch.randn(11, 2)), model)
    assert counts == {BACKBONE: 0, SAMPLER: 0, ENCODER: 11 * 2 * 3, DECODER: 11 * 3 * 5, HEADS: 11 * 5 * 7}


def test_every_detector_has_rows():
    """Those without variants are measured as they are by default."""
    assert {len(cost.variants(detector)) > 0 for detector in DETECTORS} == {True}
    assert cost.variants("another") == {"another": []} and list(cost.variants("Anchor-DETR-ENACT"))[0] == "Anchor DETR, none"
    assert main(cost.NAME, cost.run, ["--detector", "another"]) == 2

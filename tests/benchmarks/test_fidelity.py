import json
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.lib.cli import main, named_after
from benchmarks.quality import accuracy, fidelity
from benchmarks.quality.fidelity import layer_errors
from benchmarks.quality.fidelity_variants import PLAIN, REGION, VARIANTS, Variant, random_cuts, uniform_cuts
from common.cli.restore import restore
from common.data.loading import build_dataset, collate
from tests.detector_runs import run_here
from tests.tiny_checkpoints import tiny_checkpoint
from tools.detectors import CLUSTERED, DETECTORS

CPU = torch.device("cpu")


@pytest.fixture
def images(dataset):
    data = build_dataset(dataset, "val", 64, 0)
    return [collate([data[i]]).to(CPU) for i in range(3)]


def models(path, detector, *variants):
    """The plain model of a checkpoint, and the clustered ones."""
    found = {}
    for name, options in {"plain": PLAIN, **{v: VARIANTS[v].options for v in variants}}.items():
        torch.manual_seed(0)
        found[name] = restore(DETECTORS[detector], path, options).model.eval()
    return found.pop("plain"), found


def errors_of(path, detector, images, *variants):
    plain, clustered = models(path, detector, *variants)
    return layer_errors(plain, clustered, images, {v: torch.Generator().manual_seed(0) for v in variants})


def test_cuts_make_so_many_clusters():
    """Baselines with more or fewer clusters than region would win or lose by that alone."""
    generator = torch.Generator().manual_seed(0)
    for pixels, clusters in ((1, 1), (7, 7), (10, 3), (144, 29)):
        for cuts in (random_cuts, uniform_cuts):
            starts = sorted(cuts(pixels, clusters, generator).tolist())
            assert len(set(starts)) == clusters and starts[0] == 0 and starts[-1] < pixels
        lengths = np.diff([*starts, pixels])
        assert max(lengths) - min(lengths) <= 1
    drawn = torch.cat([random_cuts(5, 2, generator)[1:] for _ in range(4000)])
    assert np.allclose(np.bincount(drawn)[1:] / 4000, 1 / 4, atol=0.03)


def test_variants_have_as_many_clusters_as_region(clustered, images, tmp_path):
    """In every layer of every detector, and windows about as many. (Another scan has a sequence, and a number, of its own.)"""
    path = tiny_checkpoint(tmp_path / "x.pth", clustered, 1, "--clustering", "none")
    found = errors_of(path, clustered, images, *VARIANTS)
    for region, *others in zip(*(found[v] for v in ("region", "uniform", "random", "one", "window")), strict=True):
        uniform, random, one, window = (layer["M"] for layer in others)
        assert uniform == random == region["M"] > 5 and one == 1 and window == pytest.approx(region["M"], rel=0.3)
    assert len(found["region"]) == 2 and all(0 < layer["error"] < 10 for layers in found.values() for layer in layers)


@pytest.mark.parametrize("detector", ["DETR-ENACT", "Conditional-DETR-ENACT"])
def test_a_cluster_for_every_pixel_is_plain_attention(detector, images, tmp_path, monkeypatch):
    """The error counts what clustering does and nothing else, in the second layer too, which meets the plain model's features."""
    every = Variant("0", REGION, lambda pixels, clusters, generator: torch.arange(pixels))
    monkeypatch.setitem(VARIANTS, "every", every)
    path = tiny_checkpoint(tmp_path / "x.pth", detector, 1, "--clustering", "none")
    found = errors_of(path, detector, images, "every", "one")
    assert all(layer["error"] < 1e-5 for layer in found["every"]) and all(layer["error"] > 1e-3 for layer in found["one"])


def test_the_error_of_one_cluster_is_what_the_formula_says(images, tmp_path):
    """Against attention written out: all queries get the projected mean of the pixels, weighted by what these tell."""
    path = tiny_checkpoint(tmp_path / "x.pth", "DETR-ENACT", 1, "--clustering", "none")
    plain, clustered = models(path, "DETR-ENACT", "one")
    first = plain.transformer.encoder.layers[0].self_attn
    met = []
    first.register_forward_hook(lambda module, arguments, output: met.append((arguments, output[0])))
    errors = []
    for batch in images:
        plain(batch.images, batch.mask)
        (query, _, value), output = met.pop()
        information = clustered["one"].transformer.encoder.layers[0].self_attn.W_prob(query)
        mean = (information.smoothed.softmax(-1)[..., None] * value).sum(1)
        d = value.shape[-1]
        pooled = first.out_proj(mean @ first.in_proj_weight[2 * d :].T + first.in_proj_bias[2 * d :])[:, None]
        errors.append(((pooled - output).square().sum() / output.square().sum()).sqrt().item())
    found = layer_errors(plain, clustered, images, {"one": torch.Generator()})
    assert found["one"][0]["error"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_the_command_measures_ap_as_the_detectors_command_does(tmp_path, dataset, capsys):
    """Numbers, table and picture of two checkpoints; AP is that of ``--eval --clustering`` with the same seed."""
    paths = [str(tiny_checkpoint(tmp_path / f"{d}.pth", d, 1, "--clustering", "none")) for d in ("DETR-ENACT", "Anchor-DETR-ENACT")]
    argv = ["--quick", "--checkpoint", *paths, "--coco_path", str(dataset), "--seeds", "5", "6", "--device", "cpu"]
    assert main(fidelity.NAME, fidelity.run, [*argv, "--output", str(tmp_path)]) == 0
    assert "error, layer 1" in capsys.readouterr().out and cv2.imread(str(tmp_path / "fidelity-cpu.png")) is not None
    records = json.loads((tmp_path / "fidelity-cpu.json").read_text())["results"]
    assert [record["detector"] for record in records] == ["DETR-ENACT", "Anchor-DETR-ENACT"]
    for record, path in zip(records, paths, strict=True):
        assert [*record["variants"]] == [*VARIANTS] and record["checkpoints"] == [path]
        for name, expected in (("none", record["AP_plain"]), ("region", record["variants"]["region"]["AP_seeds"][1])):
            out = tmp_path / f"{record['detector']}-{name}"
            options = ("--clustering", name, "--seed", "6", "--device", "cpu", "--num_workers", "0", "--coco_path", dataset)
            assert run_here(record["detector"], "--eval", "--resume", path, *options, "--output_dir", out) == 0
            numbers = json.loads((out / "eval.json").read_text())["coco_eval_bbox"]
            assert 100 * numbers[0] == pytest.approx(expected, abs=1e-9)


def test_means_and_spreads():
    """The numbers of the table follow from those of the seeds; one seed has no spread. Several checkpoints of a detector count
    together, each to its own plain attention, whose AP differs more than what clustering costs.
    """

    def record(detector, plain, *seeds):
        layers = [[{"error": error, "M": M}] for _, error, M in seeds]
        variants = {"region": {"AP_seeds": [s[0] for s in seeds], "layers_seeds": layers}}
        return {
            "detector": detector,
            "coco_path": "x",
            "checkpoints": [f"{plain}"],
            "AP_plain_checkpoints": [plain],
            "variants": variants,
        }

    both = [
        record("DETR-ENACT", 20.0, (18.0, 0.2, 20.0), (19.0, 0.4, 30.0)),
        record("DETR-ENACT", 30.0, (28.0, 0.2, 20.0), (29.0, 0.4, 30.0)),
    ]
    joined, other = map(fidelity.summarise, fidelity.merge([*both, record("Anchor-DETR-ENACT", 30.0, (28.0, 0.2, 20.0))]))
    found = joined["variants"]["region"]
    assert (joined["AP_plain"], joined["checkpoints"]) == (25, ["20.0", "30.0"])
    assert (found["AP"], found["AP_to_plain"], found["AP_to_plain_seeds"]) == (23.5, -1.5, [-2, -1, -2, -1])
    assert found["AP_to_plain_spread"] == pytest.approx((1 / 3) ** 0.5)
    assert found["layers"] == [{"error": pytest.approx(0.3), "error_spread": pytest.approx(0.04**0.5 / 3**0.5), "M": 25}]
    alone = other["variants"]["region"]
    assert alone["AP_to_plain"] == -2 and alone["AP_to_plain_spread"] is None


@pytest.mark.parametrize("task", ["outline", "context"])
def test_without_a_checkpoint_the_plain_demos_of_the_accuracy_are_taken(task, monkeypatch):
    """They are trained once for both, by the same options in the same folders."""
    trained = []
    monkeypatch.setattr(fidelity, "train_all", lambda demos, jobs, device, coco_path: trained.append((demos, coco_path)))
    found = fidelity.plain_demos(["DETR-ENACT"], task, Namespace(quick=False, device="cpu", coco_path=Path("data")))
    chosen = accuracy.parse(["--task", task, "--seeds", "42"])
    runs = [run.demo(chosen.runs) for run in accuracy.plan(chosen) if (run.detector, run.clustering) == ("DETR-ENACT", "none")]
    assert trained == [(runs, Path("data"))] and found == [str(demo.checkpoint) for demo in runs]


def test_results_are_named_after_the_task_and_the_detectors(tmp_path, dataset, monkeypatch):
    """One detector's numbers do not replace another's; in which order they were chosen does not matter."""
    assert named_after([*CLUSTERED][::-1]) == []
    paths = {d: str(tiny_checkpoint(tmp_path / f"{d}.pth", d, 1, "--clustering", "none")) for d in CLUSTERED}
    monkeypatch.setattr(fidelity, "plain_demos", lambda detectors, *_: [paths[d] for d in detectors])
    monkeypatch.setattr(fidelity, "shapes", lambda *_: dataset)
    argv = "--quick --task context --detector Anchor-DETR-ENACT DETR-ENACT --variants region --device cpu".split()
    assert main(fidelity.NAME, fidelity.run, [*argv, "--output", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.glob("*.json")] == ["fidelity-context-DETR-ENACT-Anchor-DETR-ENACT-cpu.json"]


def test_a_checkpoint_without_a_known_dataset_ends_with_one_sentence(tmp_path, capsys):
    """Code 2, and what to pass."""
    path = tiny_checkpoint(tmp_path / "x.pth", "DETR-ENACT", 1, "--clustering", "none")
    assert main(fidelity.NAME, fidelity.run, ["--quick", "--checkpoint", str(path), "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "pass --coco_path" in error and error.count("\n") == 1

import json
import sys

import cv2
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.lib.cli import main
from benchmarks.speed import deformable, deformable_layers
from benchmarks.speed.deformable import MEASURES, NAME, run
from benchmarks.speed.deformable_layers import (
    METHODS,
    OURS,
    PARTS,
    SAMPLING,
    SCORING,
    THEIRS,
    VALUE,
    SparseEncoder,
    build_layer_passes,
    build_levels,
    level_shapes,
    marked,
    parts_of_pass,
)
from common.models import deformable_attention

CPU = torch.device("cpu")
SMALL = ["--device", "cpu", "--sizes", "64x48", "--image", "64x48", "--rho", "0.3", "--repeats", "2"]


def test_the_deformable_benchmark_answers_both_questions(tmp_path, capsys):
    """The command prints a table for each, and its file holds their numbers, with ratios to the yardsticks."""
    argv = [*SMALL, "--sizes", "64x48", "100x64", "--batch_size", "2", "--output", str(tmp_path)]
    assert main(NAME, run, argv) == 0
    printed = capsys.readouterr().out
    assert "encoder layer, 100 x 64, N = 142" in printed and "all tokens" in printed and "\u03c1 = 0.3" in printed
    content = json.loads((tmp_path / "deformable-cpu.json").read_text())
    layers, encoders = content["layers"], content["encoders"]
    assert [(r["N"], r["method"]) for r in layers] == [(n, name) for n in (65, 142) for name in METHODS]
    for record in layers:
        theirs = next(r for r in layers if r["N"] == record["N"] and r["method"] == THEIRS)
        assert record["ratios"] == {kind: record[kind] / theirs[kind] for kind in MEASURES} and min(record["ratios"].values()) > 0
        assert len(record["forward_rounds_s"]) == len(record["forward_backward_rounds_s"]) == 2
    assert [r["rho"] for r in encoders] == [0.0, 0.3] and encoders[0]["ratio"] == 1
    for record in encoders:
        assert sum(record["parts_s"].values()) == pytest.approx(record["seconds"]) and set(record["shares"]) == set(PARTS)
    assert cv2.imread(str(tmp_path / "deformable-cpu.png")) is not None


def test_the_layer_and_its_yardstick_do_the_same_work():
    """Outputs and all gradients agree; at the paper's size there are as many tokens as it says."""
    assert level_shapes(1333, 800) == ((100, 167), (50, 84), (25, 42), (13, 21))
    torch.manual_seed(0)
    levels = build_levels(90, 70, 2, CPU)
    assert levels.src.shape == (2, 9 * 12 + 5 * 6 + 3 * 3 + 2 * 2, 256) and not levels.mask.any()
    passes = build_layer_passes(levels, CPU)
    ours, theirs = (passes[name].output() for name in (OURS, THEIRS))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert ours.std() > 0.9 and not ours.requires_grad
    gradients = {"src": [], "pos": []}
    for name, found in gradients.items():
        getattr(levels, name).register_hook(found.append)
    for name in METHODS:
        passes[name].forward_backward()
        assert levels.src.grad is None and levels.pos.grad is None
    for ours, theirs in gradients.values():
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_tokens_look_at_places_of_their_own():
    """With the weights that training starts from all would sample one pattern, which no trained model does."""
    torch.manual_seed(0)
    levels = build_levels(64, 48, 1, CPU)
    layer = deformable_layers.build_layers(CPU)[OURS]
    with torch.no_grad():
        attended = layer.self_attn(levels.src + levels.pos, levels.references, levels.src, levels.mask, levels.shapes)[1]
    offsets = attended.locations - levels.references[:, :, None, :, None]
    assert offsets.std(1).min() > 0 and attended.weights.std(1).min() > 0


def test_the_parts_of_the_sparse_encoder_are_told_apart():
    """Every part that a pass has gets a share, and the dense encoder next to none for scores."""
    torch.manual_seed(0)
    encoder = SparseEncoder((64, 48), 1, CPU)
    encoder.run(0.25)
    dense, sparse = encoder.shares(0.0), encoder.shares(0.25)
    assert sum(dense.values()) == pytest.approx(1) and sum(sparse.values()) == pytest.approx(1)
    assert min(dense[VALUE], dense[SAMPLING], *sparse.values()) > 0.001 and dense[SCORING] < sparse[SCORING] / 2
    assert all(p.grad is None for p in encoder.transformer.parameters()) and encoder.levels.src.grad is None


def test_the_scores_and_the_encoder_get_gradients(monkeypatch):
    """What is timed is a training step: no part of the way back is missing."""
    encoder = SparseEncoder((64, 48), 1, CPU)
    monkeypatch.setattr(deformable_layers, "_clear", lambda leaves: None)
    encoder.run(0.5)
    missing = {name for name, p in encoder.transformer.named_parameters() if p.grad is None}
    assert missing and all(name.startswith(("decoder.", "pos_trans", "level_embed")) for name in missing)
    assert encoder.levels.src.grad.abs().sum() > 0


def test_all_of_sampling_belongs_to_it():
    """Its way back runs an automatic differentiation of its own, whose operators must not count for something else."""
    torch.manual_seed(0)
    value = torch.randn(1, 1000, 8, 32, requires_grad=True)
    locations = torch.rand(1, 1000, 8, 1, 4, 2, requires_grad=True)
    weights = torch.rand(1, 1000, 8, 1, 4, requires_grad=True)
    for _ in range(2):  # the first one is not like the others
        with marked(torch.nn.Identity()), profile(activities=[ProfilerActivity.CPU]) as profiler:
            out = deformable_attention.sample(value, [(25, 40)], locations, weights)
            out.backward(torch.ones_like(out))
    durations = parts_of_pass(profiler.events(), CPU)
    assert durations[SAMPLING] > 0.9 * durations.total()
    assert deformable_attention.sample.__name__ == "sample"  # marks are taken off


def test_a_yardstick_that_is_missing_or_differs_is_named(monkeypatch, tmp_path, capsys):
    """One sentence says what to install, before anything is timed."""
    argv = [*SMALL, "--output", str(tmp_path)]
    monkeypatch.setattr(deformable, "in_turn", None)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        assert main(NAME, run, argv) == 2
    assert "pip install" in capsys.readouterr().err
    monkeypatch.setattr(deformable_layers, "TOLERANCE", -1.0)
    assert main(NAME, run, argv) == 2
    assert "computes something else" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "message"), [(["--rho", "1.5"], "--rho"), (["--sizes", "0x48"], "--sizes")])
def test_mistakes_end_with_one_sentence(arguments, message, capsys):
    """A wrong option is named before anything is measured."""
    assert main(NAME, run, arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out

"""The options that make a run faster and must not change what it computes: memory format and compilation."""

import copy
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from common.backbone import Backbone
from common.speed import use_channels_last
from tests.detector_runs import TIMEOUT, run_here, tiny
from tests.test_detectors import batch_of, build, loss_of
from tools.detectors import ROOT, load


@pytest.mark.parametrize("frozen", [True, False])
def test_channels_last_computes_the_same(frozen):
    """Protects --channels_last: features are laid out that way, and they and the gradients are those without it.

    In double precision, where rounding is far below what the two may differ by.
    """
    torch.manual_seed(0)
    plain = Backbone("resnet10", frozen=frozen, layers=("layer2", "layer4")).double().train()
    last = copy.deepcopy(plain)
    use_channels_last(nn.Sequential(nn.ModuleList([last])))
    images, mask = torch.rand(2, 3, 96, 160, dtype=torch.float64), torch.zeros(2, 96, 160, dtype=torch.bool)
    (few, _), (many, _) = last(images, mask)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in (few, many))
    expected = [feature for feature, _ in plain(images, mask)]
    torch.testing.assert_close([few, many], expected, rtol=1e-5, atol=1e-9, check_stride=False)
    for features in ((few, many), expected):
        sum(feature.square().mean() for feature in features).backward()
    for ours, theirs in zip(last.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-9, check_stride=False)


@pytest.mark.parametrize("clustering", ["region", "none"])
def test_channels_last_gives_the_same_loss(detector, clustering, dataset):
    """Protects the models, which reshape and flatten what the backbone hands them: outputs, loss and its gradient are the same."""
    model, criterion = build(detector, "--clustering", clustering)
    other, batch = copy.deepcopy(model), batch_of(dataset)
    load(detector, "vendor.common.speed").use_channels_last(other)
    results = []
    for each in (model, other):
        outputs = each(batch.images, batch.mask)
        loss = loss_of(each, criterion, batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(each.parameters(), math.inf)
        results.append((outputs["pred_logits"], outputs["pred_boxes"], loss, norm))
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(results[1][2], results[0][2], rtol=1e-5, atol=0)


def test_a_run_continues_in_another_memory_format(detector, dataset, tmp_path):
    """Protects the optimiser's moments: they come from the checkpoint in its layout, and must be added up in the parameters'.

    At a learning rate of 0 nothing else changes, and nothing amplifies the rounding.
    """
    still = ("--lr", 0, "--lr_backbone", 0, "--dropout", 0, "--batch_size", 8)
    argv = ("--coco_path", dataset, *tiny(detector), *still)
    moments = {}
    for name, first, second in (("plain", (), ()), ("to", (), ("--channels_last",)), ("from", ("--channels_last",), ())):
        out = tmp_path / name
        assert run_here(detector, *argv, *first, "--epochs", 1, "--output_dir", out) == 0
        again = ("--epochs", 2, "--resume", out / "checkpoint.pth", "--output_dir", out)
        assert run_here(detector, *argv, *second, *again) == 0
        checkpoint = torch.load(out / "checkpoint.pth", weights_only=True)
        assert checkpoint["args"]["channels_last"] == bool(second), "the format is that of the call"
        moments[name] = [state["exp_avg"] for state in checkpoint["optimizer"]["state"].values()]
    least = max(moment.norm() for moment in moments["plain"]) * 1e-5
    for name in ("to", "from"):
        for ours, theirs in zip(moments[name], moments["plain"], strict=True):
            assert (ours - theirs).norm() < 0.1 * theirs.norm().clamp(min=least)


def test_a_compiled_run_is_the_plain_run(detector, dataset, tmp_path, monkeypatch):
    """Protects --compile for training, evaluation and resuming: names and numbers of a plain run, for images of several sizes.

    With the compiler's last stage left out, which needs a C++ compiler and a minute.
    """
    speed = load(detector, "vendor.common.speed")
    with_inductor, compiled = speed.compile_model, []

    def compile_model(model, device):
        with_inductor(model, device, backend="aot_eager")
        compiled.extend(name for name, module in model.named_modules() if module._compiled_call_impl)

    monkeypatch.setattr(speed, "compile_model", compile_model)
    argv = ("--coco_path", dataset, *tiny(detector), "--dec_layers", 1, "--dropout", 0, "--batch_size", 8)
    for name, options in (("plain", ()), ("compiled", ("--compile",))):
        out = tmp_path / name
        assert run_here(detector, *argv, *options, "--epochs", 1, "--output_dir", out) == 0
        assert len(compiled) == 2 * bool(options), compiled
        resume = ("--resume", out / "checkpoint.pth", "--output_dir", out)
        assert run_here(detector, *argv, *options, "--eval", *resume) == 0
    weights, evaluated = [], []
    for name in ("plain", "compiled"):
        weights.append(torch.load(tmp_path / name / "checkpoint.pth", weights_only=True)["model"])
        evaluated.append(json.loads((tmp_path / name / "eval.json").read_text()))
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(evaluated[1]["losses"], evaluated[0]["losses"], rtol=1e-2, atol=1e-2)


def test_a_missing_compiler_is_told_in_one_sentence(tmp_path):
    """Protects users from a page of traceback in the middle of the first step: it is said before anything starts."""
    script = "import torch; from common.speed import compile_model; compile_model(torch.nn.Identity(), torch.device('cpu'))"
    environment = os.environ | {"CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    about = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": TIMEOUT}
    process = subprocess.run([sys.executable, "-c", script], **about)
    message = process.stderr.strip().splitlines()[-1]
    assert message.startswith("common.errors.UserError: torch.compile does not work here (")
    assert message.endswith("): install a C++ compiler, or leave out --compile")

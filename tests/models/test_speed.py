"""The options that make a run faster and must not change what it computes: memory format and compilation."""

import copy
import math

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.models import speed
from tests.detector_runs import EXAMPLE, read_checkpoint, run_here, tiny
from tests.tiny_models import batch_of, build, loss_of
from tools.detectors import DETECTORS, options

SMALL = ("--dec_layers", "1", "--last_stage", "3", "--no-dilation")  # few modules to compile


def test_channels_last_gives_the_same_loss(variant, dataset):
    """Protects the models, which reshape and flatten what the backbone hands them: outputs, loss and its gradient are the same."""
    detector, argv = variant
    model, criterion = build(detector, *argv)
    other, batch = copy.deepcopy(model), batch_of(dataset)
    speed.speed_up(other, (), options(detector, tiny(detector)), torch.device("cpu"))
    results = []
    for each in (model, other):
        outputs = each(batch.images, batch.mask)
        loss = loss_of(each, criterion, batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(each.parameters(), math.inf)
        results.append((outputs["pred_logits"], outputs["pred_boxes"], loss, norm))
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(results[1][2], results[0][2], rtol=1e-5, atol=0)


def test_a_run_continues_in_another_memory_format(dataset, tmp_path):
    """Protects the optimiser's moments: they come from the checkpoint in its layout, and must be added up in the parameters'.

    At a learning rate of 0 nothing else changes, and nothing amplifies the rounding.
    """
    still = ("--lr", 0, "--lr_backbone", 0, "--dropout", 0, "--batch_size", 8)
    argv = ("--coco_path", dataset, *tiny(EXAMPLE), *still)
    moments, plain = {}, ("--no-channels_last",)
    for name, first, second in (("plain", plain, plain), ("to", plain, ()), ("from", (), plain)):
        out = tmp_path / name
        assert run_here(EXAMPLE, *argv, *first, "--epochs", 1, "--output_dir", out) == 0
        again = ("--epochs", 2, "--resume", out / "checkpoint.pth", "--output_dir", out)
        assert run_here(EXAMPLE, *argv, *second, *again) == 0
        checkpoint = read_checkpoint(out / "checkpoint.pth")
        assert checkpoint["args"]["channels_last"] == (not second), "the format is that of the call"
        moments[name] = [state["exp_avg"] for state in checkpoint["optimizer"]["state"].values()]
    least = max(moment.norm() for moment in moments["plain"]) * 1e-5
    for name in ("to", "from"):
        for ours, theirs in zip(moments[name], moments["plain"], strict=True):
            assert (ours - theirs).norm() < 0.1 * theirs.norm().clamp(min=least)


def test_parts_to_compile_are_found_behind_a_mask_head(monkeypatch):
    """Protects --compile --masks from compiling nothing; and a name that no module has is an error."""
    with_inductor = speed.compile_model
    monkeypatch.setattr(speed, "compile_model", lambda *args: with_inductor(*args, backend="aot_eager"))
    for detector in (name for name in DETECTORS if "masks" in options(name, [])):
        model, _ = build(detector, "--masks")
        args = options(detector, [*tiny(detector), "--masks", "--compile"])
        speed.speed_up(model, DETECTORS[detector].compiled, args, torch.device("cpu"))
        assert model.detr.backbone[0].body._compiled_call_impl
    with pytest.raises(ValueError, match="neck"):
        with_inductor(nn.Identity(), ("neck",), torch.device("cpu"), backend="eager")


def test_a_compiled_model_is_the_plain_model(detector, dataset, monkeypatch):
    """Protects --compile in training and in evaluation: names and numbers of the plain model, for images of several sizes.

    With the compiler's last stage left out, which needs a C++ compiler and a minute.
    """
    with_inductor = speed.compile_model
    monkeypatch.setattr(speed, "compile_model", lambda *args: with_inductor(*args, backend="aot_eager"))
    plain, criterion = build(detector, *SMALL)
    args = options(detector, [*tiny(detector), "--compile"])
    other = speed.speed_up(copy.deepcopy(plain), DETECTORS[detector].compiled, args, torch.device("cpu"))
    assert len([name for name, module in other.named_modules() if module._compiled_call_impl]) == len(DETECTORS[detector].compiled)
    assert other.state_dict().keys() == plain.state_dict().keys()
    batch = batch_of(dataset)
    for model in (plain, other):
        loss_of(model.train(), criterion, batch).backward()
    norms = [nn.utils.clip_grad_norm_(model.parameters(), math.inf) for model in (other, plain)]
    torch.testing.assert_close(*norms, rtol=1e-3, atol=0)
    with torch.no_grad():
        for image_size in (64, 80):
            batch = batch_of(dataset, image_size)
            ours, theirs = (model.eval()(batch.images, batch.mask) for model in (other, plain))
            for name in ("pred_logits", "pred_boxes"):
                torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-3)


def test_each_call_says_whether_it_compiles(dataset, tmp_path, monkeypatch):
    """Protects machines without a compiler from the --compile of the run that they evaluate; the parts are the detector's."""
    compiled = []
    monkeypatch.setattr(speed, "compile_model", lambda model, parts, device: compiled.append((parts, device.type)))
    argv = ("--coco_path", dataset, *tiny(EXAMPLE), "--batch_size", 24, "--epochs", 1, "--output_dir", tmp_path)
    resume = ("--resume", tmp_path / "checkpoint.pth")
    for options_of_call, expected in ((("--compile",), 1), (("--eval", *resume), 1), (("--eval", *resume, "--compile"), 2)):
        assert run_here(EXAMPLE, *argv, *options_of_call) == 0
        assert compiled == [(DETECTORS[EXAMPLE].compiled, "cpu")] * expected


@pytest.mark.parametrize("argv, allowed", [((), True), (("--no-tf32",), False), (("--eval",), False), (("--eval", "--tf32"), True)])
def test_tensor_float_is_for_training_unless_it_is_asked_for(dataset, monkeypatch, argv, allowed):
    """Protects reported numbers from the 10 bits of TF32, and training on a GPU from float32 products at half the speed."""
    calls, nothing = [], lambda *args: None
    for name in ("check", "build_accelerator", "run_training", "run_evaluation"):
        monkeypatch.setattr(f"common.cli.run.{name}", nothing)
    monkeypatch.setattr("common.cli.run.chosen_device", lambda args: torch.device("cuda"))
    monkeypatch.setattr("common.cli.run.set_tf32", calls.append)
    assert run_here(EXAMPLE, *argv, "--coco_path", dataset) == 0
    assert calls == [allowed]


def test_setting_tensor_float():
    """Protects both kinds of products from being set apart: matrix products and convolutions follow one option."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for allowed, precision in ((True, "high"), (False, "highest")):
            speed.set_tf32(allowed)
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (precision, allowed)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_a_missing_compiler_is_told_in_one_sentence():
    """Protects users from a page of traceback in the middle of the first step: it is said before anything starts."""

    def no_compiler(graph, inputs):
        raise RuntimeError("no C++ compiler found\nand a page about it")

    with pytest.raises(UserError) as raised:
        speed.compile_model(nn.Identity(), (".*",), torch.device("cpu"), backend=no_compiler)
    message = str(raised.value)
    assert message.startswith("torch.compile does not work here (")
    assert message.endswith("): install a C++ compiler, or leave out --compile") and "\n" not in message

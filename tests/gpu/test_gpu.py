"""What only a GPU can show: that runs work there, agree with the CPU, seldom wait, and never hold an N x N matrix."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from common.cli.run import build_accelerator
from common.data.loading import Batch
from common.models.speed import set_tf32
from common.training.loop import train_one_epoch
from enact import TransformerEncoder
from tests.detector_runs import run_here, tiny, waits_of_forward
from tests.tiny_models import batch_of, build, bytes_of
from tools.detectors import options

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda")
SIZE = (20, 25)  # of a map of 500 pixels


@pytest.fixture(autouse=True)
def exact_float32():
    """Comparisons with the CPU are of float32, not of TF32; what a test sets is set back."""
    set_tf32(False)
    yield
    set_tf32(False)


@pytest.mark.parametrize("amp", ["no", "bf16", "fp16"])
def test_a_run_trains_resumes_evaluates_and_predicts(detector, amp, dataset, tmp_path):
    """The whole command line on a GPU, in each precision; a resumed run goes on where the first one ended."""
    argv = (*tiny(detector), "--device", "cuda", "--coco_path", dataset, "--batch_size", 6)
    out, last = tmp_path / "out", tmp_path / "out" / "checkpoint.pth"
    assert run_here(detector, *argv, "--amp", amp, "--epochs", 2, "--output_dir", out) == 0
    assert run_here(detector, *argv, "--epochs", 3, "--resume", last, "--output_dir", out) == 0
    lines = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert all(line["train_peak_memory"] > 0 and line["train_loss"] > 0 for line in lines)
    saved = torch.load(last, weights_only=True)
    assert saved["args"]["amp"] == amp and bool(saved["scaler"]) == (amp == "fp16")
    assert all(value.isfinite().all() for value in saved["model"].values())
    assert run_here(detector, *argv, "--amp", amp, "--eval", "--resume", last, "--output_dir", tmp_path / "eval") == 0
    stats = json.loads((tmp_path / "eval" / "eval.json").read_text())["coco_eval_bbox"]
    assert stats == pytest.approx(lines[-1]["test_coco_eval_bbox"], abs=0.02)
    pictures = ("--predict", dataset / "val2017", "--resume", last, "--output_dir", tmp_path / "pictures", "--device", "cuda")
    assert run_here(detector, *pictures, "--amp", amp, "--information") == 0
    assert len(list((tmp_path / "pictures" / "predictions").iterdir())) == 5


def test_an_uninterrupted_run_and_a_resumed_one_are_equal(detector, dataset, tmp_path):
    """Optimiser, schedule and the GPU's random states come back: with dropout, the losses of a resumed epoch are the same."""
    argv = (*tiny(detector), "--device", "cuda", "--coco_path", dataset, "--batch_size", 6, "--dropout", 0.1)
    assert run_here(detector, *argv, "--epochs", 2, "--output_dir", tmp_path / "whole") == 0
    assert run_here(detector, *argv, "--epochs", 1, "--output_dir", tmp_path / "broken") == 0
    resume = ("--resume", tmp_path / "broken" / "checkpoint.pth", "--epochs", 2)
    assert run_here(detector, *argv, *resume, "--output_dir", tmp_path / "broken") == 0
    whole, broken = (json.loads((tmp_path / name / "log.txt").read_text().splitlines()[-1]) for name in ("whole", "broken"))
    assert broken["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-3)  # atomic sums have no fixed order


def test_outputs_losses_and_gradients_are_those_of_the_cpu(variant, dataset):
    """The same weights and batch give the same detections, losses and gradients on both, to rounding."""
    (detector, argv), results = variant, []
    for device in (torch.device("cpu"), CUDA):
        model, criterion = build(detector, *argv, "--dilation")
        model.to(device).train()
        batch = batch_of(dataset).to(device)
        outputs = model(batch.images, batch.mask, batch.targets)
        loss, _ = criterion(outputs, batch.targets, criterion.count(batch.targets).to(device))
        loss.backward()
        norms = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
        results.append([x.detach().cpu() for x in (outputs["pred_logits"], outputs["pred_boxes"], loss, norms)])
    for on_cpu, on_gpu, tolerance in zip(*results, (1e-3, 1e-4, 1e-3, None)):
        if tolerance is None:
            torch.testing.assert_close(on_gpu, on_cpu, rtol=2e-2, atol=1e-3)
        else:
            torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=tolerance)


class Loader(list):
    """Batches, and what else the loop asks of a loader."""

    dataset = None


def test_a_step_waits_for_the_gpu_no_more_than_it_must(variant, dataset):
    """Those of the forward pass, one for the matching and one for the log: PyTorch's own count of a warm step."""
    detector, argv = variant
    model, criterion = build(detector, *argv, "--dilation")
    args = options(detector, [*tiny(detector), "--device", "cuda"])
    accelerator = build_accelerator(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    batch = bytes_of(dataset)
    pinned = Batch(batch.images.pin_memory(), batch.mask.pin_memory(), batch.targets)
    settings = {"epoch": 0, "seed": 0, "accumulate": 1, "clip_max_norm": 0.1}
    train_one_epoch(model, criterion, Loader([pinned]), optimizer, accelerator, **settings)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            train_one_epoch(model, criterion, Loader([pinned]), optimizer, accelerator, **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in found if "synchroniz" in str(warning.message).lower()]
    assert len(waits) <= 2 + waits_of_forward(detector, argv), waits


@pytest.mark.parametrize("clustering", ["region", "window", "none"])
def test_no_attention_matrix_is_held(clustering):
    """Forward and backward of an encoder layer at N = 8192 in bf16 stay far below the bytes of one N x N matrix of all heads."""
    n, heads = 8192, 8
    encoder = TransformerEncoder(256, heads, num_layers=1, dropout=0.0, clustering=clustering).to(CUDA)
    src, pos = (torch.randn(1, n, 256, device=CUDA) for _ in range(2))
    mask = torch.zeros(1, n, dtype=torch.bool, device=CUDA) if clustering != "none" else None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        encoder(src.requires_grad_(), mask, pos).square().sum().backward()
    matrix = 2 * heads * n * n
    assert torch.cuda.max_memory_allocated() - before < matrix / 2


def test_the_demo_starts_on_a_gpu_by_default(detector, dataset, tmp_path: Path):
    """``--device`` is cuda where there is one: the peak memory of the log is that of its tensors."""
    argv = [option for option in tiny(detector) if option not in ("--device", "cpu")]
    assert run_here(detector, *argv, "--coco_path", dataset, "--batch_size", 6, "--epochs", 1, "--output_dir", tmp_path) == 0
    line = json.loads((tmp_path / "log.txt").read_text())
    assert 0 < line["train_peak_memory"] <= torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("clustering", ["region", "region+", "window"])
def test_a_fixed_capacity_is_captured_in_a_cuda_graph(clustering):
    """A captured encoder, replayed on another batch with other padding, gives what exact clusters give."""
    fixed, exact = (
        TransformerEncoder(64, 4, num_layers=2, dim_feedforward=64, clustering=clustering, capacity=c).to(CUDA).eval()
        for c in ("auto", None)
    )
    exact.load_state_dict(fixed.state_dict())
    src, pos = (torch.randn(2, 500, 64, device=CUDA) for _ in range(2))
    mask = torch.zeros(2, 500, dtype=torch.bool, device=CUDA)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            fixed(src, mask, pos, SIZE)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = fixed(src, mask, pos, SIZE)
        src.copy_(torch.randn_like(src))
        mask[1, 300:] = True
        graph.replay()
        torch.testing.assert_close(captured[~mask], exact(src, mask, pos, SIZE)[~mask], atol=1e-4, rtol=1e-4)

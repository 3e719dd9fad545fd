import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from benchmarks.lib.cli import main
from benchmarks.lib.measure import peak_memory
from benchmarks.speed.attention import NAME, build_features, feature_map, fits, parse, run
from benchmarks.speed.attention_methods import LOOP, MATH, METHODS, PLAIN, STEPS, WINDOW, build_methods

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SMALL = ["--hidden_dim", "16", "--nheads", "2", "--device", "cpu"]


@pytest.mark.parametrize(
    ("detector", "variant", "left_out"), [("DETR-ENACT", "", ()), ("Anchor-DETR-ENACT", "-rcda", (LOOP, STEPS))]
)
def test_the_attention_benchmark_runs_from_anywhere_and_writes_numbers_and_chart(detector, variant, left_out, tmp_path):
    """The command of the docs works as it stands, outside the repository too, and its file holds what the table shows."""
    output = tmp_path / "results"
    arguments = [*SMALL, "--detector", detector, "--lengths", "40", "96", "--repeats", "2", "--output", str(output)]
    command = [sys.executable, str(ROOT / "benchmarks" / "speed" / "attention.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "N = 40 (5 x 8)" in done.stdout and ("region / window loop" in done.stdout) == (LOOP not in left_out)

    content = json.loads((output / f"attention{variant}-cpu.json").read_text())
    assert content["command"].startswith("python benchmarks/speed/attention.py --hidden_dim 16")
    assert content["machine"].keys() == {"device", "threads", "python", "torch", "system"} and content["date"]
    assert content["settings"]["smoothing_sigma"] == {"": 3.0, "-rcda": 5.0}[variant]
    names = [name for name in METHODS if name not in left_out]
    assert [(r["N"], r["method"]) for r in content["results"]] == [(n, name) for n in (40, 96) for name in names]
    for r in content["results"]:
        assert r["height"] * r["width"] == r["N"] and r["memory"] > 0
        assert len(r["forward_rounds_s"]) == len(r["forward_backward_rounds_s"]) == 2
        assert min(r["forward"], r["forward_backward"], *r["ratios"].values()) > 0
        assert ("M" in r) == (r["method"] not in (PLAIN, MATH))
    height, width, _ = cv2.imread(str(output / f"attention{variant}-cpu.png")).shape
    assert width > height > 300


def test_the_attention_benchmark_compares_equals():
    """The yardsticks are fair: plain math is plain, and the window loop does window's work, also where pixels are left over."""
    torch.manual_seed(0)
    args = parse([*SMALL, "--batch_size", "3"])
    for length in (96, 115, 250):
        methods = build_methods(args, *feature_map(length), CPU)
        features = build_features(length, args, CPU)
        outputs = {name: method.attend(features) for name, method in methods.items()}
        torch.testing.assert_close(outputs[LOOP], outputs[WINDOW])
        torch.testing.assert_close(outputs[MATH], outputs[PLAIN])


def test_plain_math_is_left_out_where_it_would_not_fit():
    """A long sequence must not end the run, or the machine, in the middle of a table."""
    args = parse(SMALL)
    assert fits(100, args, CPU) and not fits(10**7, args, CPU)


def test_feature_maps_are_as_near_to_an_image_as_their_size_allows():
    """The lengths of the published table are the feature maps of 800 x 1333 images."""
    assert [feature_map(n) for n in (256, 1050, 4200, 16800)] == [(16, 16), (25, 42), (50, 84), (100, 168)]
    assert [feature_map(n) for n in (1, 13)] == [(1, 1), (1, 13)]


def test_peak_memory_counts_what_is_alive_at_once():
    """The largest sum of live tensors is reported, not all that was allocated, nor what stays; what lived before does not count."""
    before = torch.ones(1000)

    def run() -> None:
        first = before + 1
        second = first + 1
        del first
        third = torch.empty(2000)
        del second, third

    assert peak_memory(run, CPU) == pytest.approx(4 * 3000, abs=64)  # scalars are tensors too
    assert peak_memory(lambda: None, CPU) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden_dim", "36", "--nheads", "8"], "--hidden_dim 36"),
        (["--lengths", "0"], "--lengths"),
        (["--smoothing_sigma", "0.5"], "--smoothing_sigma"),
        (["--device", "cpu", "--output", __file__], "--output"),
    ],
)
def test_mistakes_end_with_one_sentence(arguments, message, capsys):
    """A wrong option is named before anything is measured."""
    assert main(NAME, run, arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out

"""Runs of the detectors' command lines, small enough for tests."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from typing import Any

import torch

from common.cli.run import main
from tools.detectors import DETECTORS

TINY = (
    *("--backbone", "resnet10", "--backbone_weights", "none", "--image_size", "64"),
    *("--hidden_dim", "32", "--nheads", "4", "--dim_feedforward", "64", "--enc_layers", "2", "--dec_layers", "2"),
    *("--device", "cpu", "--num_workers", "0"),
)
SIGMA, QUERIES = ("--smoothing_sigma", "3"), ("--num_queries", "10")
# The norm behind the projection of some has 32 groups; with one channel in each, the bias before it would have no gradient.
WIDER = ("--hidden_dim", "64")
OWN = {
    "DETR-ENACT": (*SIGMA, *QUERIES),
    "Conditional-DETR-ENACT": (*SIGMA, *QUERIES),
    "Anchor-DETR-ENACT": (*SIGMA, *WIDER, "--num_query_position", "5", "--num_query_pattern", "2"),
    "Sparse-DETR": (*WIDER, *QUERIES, "--num_feature_levels", "4"),
    "DAC-DETR": (*WIDER, *QUERIES),
    "PnP-DETR": (*SIGMA, *QUERIES, "--unsample_abstract_number", "3"),
}
CLUSTERINGS = {name: ("--clustering", name) for name in ("region", "window", "none")}
BETTER = {"region+ at steps": ("--clustering", "region+", "--cuts", "steps")}
TWO_STAGE = ("--with_box_refine", "--two_stage")
EFFICIENT = (*TWO_STAGE, "--eff_query_init", "--eff_specific_head")
# The forms of a detector whose models differ.
VARIANTS = {
    "DETR-ENACT": CLUSTERINGS | BETTER,
    "Conditional-DETR-ENACT": CLUSTERINGS,
    "Anchor-DETR-ENACT": CLUSTERINGS | BETTER,
    "Sparse-DETR": {
        "one stage": (),
        "refined": ("--with_box_refine",),
        "two stages": TWO_STAGE,
        "sparse": (*EFFICIENT, "--rho", "0.3", "--use_enc_aux_loss"),
    },
    "DAC-DETR": {"all": (), "no more than proposals": ("--no-dac", "--no-cdn", "--no-ice", "--no-look_forward_twice")},
    "PnP-DETR": {"sampled": (), "clustered": ("--clustering", "region"), "plain": ("--sampling", "none")},
}
EXAMPLE = "DETR-ENACT"  # on which is tested what the detectors share
TIMINGS = {"train_seconds", "test_seconds", "train_images_per_second", "train_share_waited", "train_peak_memory"}
TIMEOUT = 180  # seconds, for a machine that is busy with other things


def is_clustered(argv: Sequence[str]) -> bool:
    """Whether the options of a variant give its encoder ENACT."""
    return "--clustering" in argv and "none" not in argv


def waits_of_forward(detector: str, argv: Sequence[str], encoder_layers: int = 2) -> int:
    """How often the forward pass of a tiny variant waits: for the clusters of each encoder layer, and for the polled pixels."""
    return encoder_layers * is_clustered(argv) + (detector == "PnP-DETR" and "--sampling" not in argv)


def tiny(detector: str) -> tuple[str, ...]:
    """The options of a model that trains in seconds."""
    return (*TINY, *OWN[detector])


def run_here(detector: str, *argv: str | Path) -> int:
    """Runs a detector's command line in this process, on one thread as the others; returns the exit code."""
    handlers, threads = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return main(DETECTORS[detector], [str(argument) for argument in argv])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        torch.set_num_threads(threads)


def run_command(*argv: str | Path, cwd: Path | None = None) -> str:
    """Runs ``python argv``, which must succeed, and returns what it printed."""
    process = start(*argv, cwd=cwd)
    code, out, err = _finish(process)
    assert code == 0, err
    return out


def run_and_signal(number: signal.Signals, epoch: int, *argv: str | Path) -> tuple[int, str]:
    """Starts ``python argv`` and signals it in the middle of an epoch, when its progress bar shows steps done and steps to go.

    The signal goes to the process and those that it started, as Ctrl-C and service managers send it.

    Returns:
        The exit code, and what was printed to stderr.
    """
    process = start(*argv)
    printed = ""
    watchdog = Timer(TIMEOUT, process.kill)
    watchdog.start()
    while chunk := os.read(process.stderr.fileno(), 4096):
        printed += chunk.decode(errors="replace")
        done = re.findall(rf"epoch {epoch}: [^\r]*\| (\d+)/\d+ \[", printed)
        if done and int(done[-1]) >= 1:
            break
    watchdog.cancel()
    os.killpg(process.pid, number)
    code, _, err = _finish(process)
    return code, printed + err


def read_checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log without its timings, in which no two runs are equal."""
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def assert_same_state(a: Path, b: Path) -> None:
    """The last checkpoints of two folders continue alike: weights, optimiser, schedule, epoch and random states, bit for bit."""
    a, b = (read_checkpoint(folder / "checkpoint.pth") for folder in (a, b))
    for part in ("model", "optimizer", "lr_scheduler", "epoch", "random_states"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0, msg=lambda text, part=part: f"{part}: {text}")


def start(*argv: str | Path, **options: Any) -> subprocess.Popen:
    """Starts ``python argv`` on one thread, with nothing on its path that is not installed; ``options``: of ``Popen``."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "0"}  # the progress bar shows every step
    command = [sys.executable, *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes | options)


def _finish(process: subprocess.Popen) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")

"""What happens around a run: processes that die, readers that go, disks that fill up."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.detector_runs import EXAMPLE, TIMEOUT, run_here, start, tiny
from tools.detectors import ROOT

MAIN = ROOT / EXAMPLE / "main.py"


def wait_for(process: subprocess.Popen, find) -> psutil.Process:
    """The first process that is found among the descendants of another, once training has begun."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end and process.poll() is None:
        if found := find(psutil.Process(process.pid).children(recursive=True)):
            return found
        time.sleep(0.1)
    raise AssertionError(process.communicate()[1])


def endless(dataset: Path, out: Path) -> tuple:
    return (*tiny(EXAMPLE), "--coco_path", dataset, "--epochs", 1000, "--eval_every", 1000, "--batch_size", 2, "--output_dir", out)


def test_a_worker_that_dies_ends_the_run(dataset, tmp_path):
    """One sentence; the checkpoint continues the run."""
    process = start(MAIN, *endless(dataset, tmp_path), "--num_workers", 2, text=True)

    def a_worker(children):
        begun = (tmp_path / "log.txt").exists()
        return children[-1] if begun and len(children) >= 2 else None

    wait_for(process, a_worker).kill()
    err = process.communicate(timeout=60)[1]
    message = err.splitlines()[-1]
    assert process.returncode == 2 and message.startswith(f"{EXAMPLE}: a process that loads images has died"), err
    assert (tmp_path / "checkpoint.pth").exists()


def test_a_process_that_dies_ends_the_others(dataset, tmp_path):
    """Within a minute, as ``torchrun`` sees to it."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    process = start(*launcher, MAIN, *endless(dataset, tmp_path), "--device", "cpu", stderr=subprocess.DEVNULL)

    def a_rank(children):
        begun = (tmp_path / "log.txt").exists()
        ranks = [child for child in children if str(MAIN) in child.cmdline()]
        return ranks[-1] if begun and len(ranks) >= 2 else None

    a_rank_process = wait_for(process, a_rank)
    others = psutil.Process(process.pid).children(recursive=True)
    a_rank_process.kill()
    process.communicate(timeout=60)
    assert process.returncode != 0 and not any(other.is_running() and other.status() != "zombie" for other in others)


def test_the_second_run_in_a_folder_is_refused(dataset, tmp_path, capsys):
    """While the first one goes on; a kill releases the folder."""
    process = start(MAIN, *endless(dataset, tmp_path), stderr=subprocess.DEVNULL)
    last = tmp_path / "checkpoint.pth"
    wait_for(process, lambda children: psutil.Process(process.pid) if last.exists() else None)
    again = ("--resume", last, "--output_dir", tmp_path, "--epochs", 1001, "--device", "cpu", "--num_workers", 0)
    assert run_here(EXAMPLE, *again) == 2 and "another run writes to" in capsys.readouterr().err
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert run_here(EXAMPLE, *again[:4], "--epochs", 1, "--device", "cpu", "--num_workers", 0) in (0, 2)
    assert "another run" not in capsys.readouterr().err


def test_a_reader_that_goes_is_no_error(tmp_path):
    """``| head -1``."""
    process = start(MAIN, "--help", text=True)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait(TIMEOUT)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said(dataset, tmp_path, capsys):
    """In the log and in the checkpoint: one sentence, and the run can be continued."""
    argv = (*tiny(EXAMPLE), "--coco_path", dataset, "--epochs", 1, "--batch_size", 8, "--output_dir", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "curves.png").symlink_to("/dev/full")
    assert run_here(EXAMPLE, *argv) == 2
    message = capsys.readouterr().err.split("\r")[-1]
    assert message.startswith(f"{EXAMPLE}: ") and message.count("\n") == 1 and "curves.png" in message
    assert (tmp_path / "out" / "checkpoint.pth").exists()

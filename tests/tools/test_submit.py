"""Jobs of a cluster, on two processes of this machine."""

import json
import time
from pathlib import Path

import psutil
import pytest
import submitit
import torch

from tests.detector_runs import TIMEOUT, tiny
from tools import submit

DETECTOR = "DETR-ENACT"


def options(dataset: Path, folder: Path, epochs: int) -> list[str]:
    recipe = ["--coco_path", str(dataset), "--epochs", str(epochs), "--batch_size", "4"]
    return [DETECTOR, "--cluster", "local", "--ngpus", "2", "--output_dir", str(folder), *tiny(DETECTOR), *recipe]


def epochs_of(folder: Path) -> list[int]:
    path = folder / "log.txt"
    return [json.loads(line)["epoch"] for line in path.read_text().splitlines()] if path.is_file() else []


def test_two_processes_train_and_a_second_job_goes_on(dataset, tmp_path, capfd):
    """A job trains as one run of two processes, its logs are in the output folder, and the next one continues."""
    assert submit.main(options(dataset, tmp_path, epochs=1)) == 0
    assert len(torch.load(tmp_path / "checkpoint.pth", weights_only=True)["random_states"]) == 2
    assert len(list((tmp_path / "slurm").glob("*_log.out"))) == 2 and str(tmp_path / "slurm") in capfd.readouterr().out
    assert submit.main(options(dataset, tmp_path, epochs=2)) == 0
    assert epochs_of(tmp_path) == [0, 1]


def test_a_job_that_runs_out_of_time_goes_on(dataset, tmp_path):
    """What Slurm does at the end of a job's time: it comes again, and continues after the last whole epoch."""
    args, others = submit.build_parser().parse_known_args(options(dataset, tmp_path, epochs=60))
    training = submit.Training(submit.ROOT / DETECTOR / "main.py", (*others, "--output_dir", str(tmp_path)), tmp_path)
    job = submit.build_executor(args).submit(training)
    _wait(lambda: len(epochs_of(tmp_path)) >= 2)
    for process in psutil.Process(job._process.pid).children():  # as the cluster does when the time is up
        process.send_signal(submitit.JobEnvironment._usr_sig())
    _wait(lambda: _starts(tmp_path) == 2)
    done = len(epochs_of(tmp_path))
    _wait(lambda: len(epochs_of(tmp_path)) >= done + 1)
    job.cancel()
    assert epochs_of(tmp_path) == list(range(len(epochs_of(tmp_path))))


def _starts(folder: Path) -> int:
    """How often a process has said what it will do."""
    return sum(path.read_text().count("images, epochs") for path in (folder / "slurm").glob("*log.out"))


def _wait(condition) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.parametrize("start", [[], ["--finetune", "old.pth"], ["--resume=old.pth"]])
def test_a_job_that_comes_again_goes_on_where_it_was(start, tmp_path):
    """Whatever it has started from: neither anew from there, nor with two options that contradict each other."""
    training = submit.Training(tmp_path / "main.py", ("--lr", "1e-4", *start, "--output_dir", str(tmp_path)), tmp_path)
    assert training.options() == ["--lr", "1e-4", *start, "--output_dir", str(tmp_path)]
    last = tmp_path / "checkpoint.pth"
    last.touch()
    assert training.options() == ["--lr", "1e-4", "--output_dir", str(tmp_path), "--resume", str(last)]


def test_a_job_says_what_it_asks_of_the_cluster(tmp_path, monkeypatch):
    """Account, constraint and the rest reach Slurm, and half a detector's name does not."""
    monkeypatch.setattr(submit.shutil, "which", lambda name: "/usr/bin/" + name)
    argv = [
        DETECTOR,
        "--nodes",
        "4",
        "--ngpus",
        "8",
        "--partition",
        "gpu",
        "--time",
        "3000",
        "--account",
        "lab",
        "--constraint",
        "a100",
    ]
    args, others = submit.build_parser().parse_known_args([*argv, "--output_dir", str(tmp_path), "--coco_path", "coco"])
    assert others == ["--coco_path", "coco"]
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 1))
    parameters = submit.build_executor(args)._executor.parameters
    wanted = {"nodes": 4, "ntasks_per_node": 8, "partition": "gpu", "time": 3000, "account": "lab", "constraint": "a100"}
    assert {name: parameters[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["DETR"], "invalid choice"),
        ([DETECTOR], "--output_dir"),
        ([DETECTOR, "--output_dir", "x"], "pass --cluster local"),
        ([DETECTOR, "--output_dir", "x", "--cluster", "local", "--nodes", "2"], "leave out --nodes"),
        ([DETECTOR, "--output_dir", "x", "--ngpus", "0"], "of at least 1"),
    ],
)
def test_mistakes_end_with_one_sentence(argv, said, tmp_path, monkeypatch, capsys):
    """Nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert submit.main(argv) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_job_that_fails_says_where_to_look(tmp_path, capsys):
    """The command's own sentence is in the logs."""
    argv = [DETECTOR, "--cluster", "local", "--ngpus", "1", "--output_dir", str(tmp_path), "--coco_path", str(tmp_path / "none")]
    assert submit.main(argv) == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "slurm") in message and message.count("\n") == 1
    assert any("is no folder" in path.read_text() for path in (tmp_path / "slurm").glob("*log.*"))

"""What the README says can be done is done: its Python is run, and its commands are taken by the command line."""

import re
import shlex
import shutil

import pytest
import torch

from tests.detector_runs import run_here
from tests.tiny_checkpoints import tiny_checkpoint
from tools.detectors import DETECTORS, ROOT, options

README = (ROOT / "README.md").read_text()
DEMO = "Conditional-DETR-ENACT"


def blocks(language):
    pairs = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for fence, text in pairs if fence == language]


def commands():
    """The command lines of detectors, without what a shell would do with them."""
    lines = [line for block in blocks("") for line in block.splitlines()]
    variables = dict(re.findall(r'^(\w)="(.*)"$', "\n".join(lines), re.MULTILINE))
    for name, value in variables.items():
        lines = [line.replace(f"${name}", value) for line in lines]
    return [line for line in lines if re.search(r"\S+/main\.py", line)]


def test_the_python_runs(tmp_path, dataset, monkeypatch):
    """Every block, one after the other, where `make demo` has been run; untrained weights find something above no threshold."""
    (tmp_path / "data").mkdir()
    shutil.copytree(dataset, tmp_path / "data" / "shapes")
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    checkpoint = tiny_checkpoint(tmp_path / "runs" / "demo" / "checkpoint.pth", DEMO, 0)
    monkeypatch.chdir(tmp_path)
    program = ("--resume", checkpoint, "--capacity", "auto", "--export", tmp_path / "runs" / "demo" / "model.onnx")
    assert run_here(DEMO, *program, "--device", "cpu") == 0
    namespace: dict = {}
    torch.manual_seed(0)
    for block in blocks("python"):
        exec(block.replace("path/to/this/folder", str(ROOT)).replace("score_threshold=0.3", "score_threshold=0.0"), namespace)
    assert len(namespace["found"]["boxes"]) > 0 and namespace["boxes"].shape[0] == 1
    assert len(namespace["clusters"]) == 12 and len(blocks("python")) >= 5


@pytest.mark.parametrize("command", commands())
def test_the_commands_parse(command):
    """Protects from options that were renamed."""
    words = shlex.split(command, comments=True)
    start = next(i for i, word in enumerate(words) if word.endswith("/main.py"))
    name = words[start].removesuffix("/main.py")
    assert name in DETECTORS
    options(name, words[start + 1 :])

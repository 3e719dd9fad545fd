import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import common.errors
from benchmarks.lib.cli import main
from benchmarks.lib.workload import Workload
from benchmarks.speed.versions import NAME, OTHER, PASSES, THIS, build_both, import_workload, isolated, parse, run
from tools.detectors import DETECTORS

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--quick", "--device", "cpu", "--backbone", "resnet10", "--sizes", "64x48", "--repeats", "1"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another version of the repository: the same code elsewhere."""
    root = tmp_path_factory.mktemp("copy") / "repository"
    for folder in ("common", "enact", "benchmarks", "tools", *DETECTORS):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("vendor", "tests", "results", "__pycache__"))
    return root


def test_two_versions_are_measured_in_turn(copy, tmp_path):
    """The command works from anywhere; its ratios are those of the medians of its rounds."""
    command = [sys.executable, str(ROOT / "benchmarks" / "speed" / "versions.py"), "--against", str(copy), *SMALL]
    command += ["--detector", "DETR-ENACT", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "training step" in done.stdout and "DETR-ENACT" in done.stdout
    content = json.loads((tmp_path / "out" / "versions-cpu.json").read_text())
    assert content["command"].startswith("python benchmarks/speed/versions.py --against") and content["commits"][OTHER] is None
    [record] = content["results"]
    assert (record["detector"], record["clustering"]) == ("DETR-ENACT", "region")
    for name in PASSES:
        assert {version: len(times) for version, times in record[name]["rounds_s"].items()} == {THIS: 1, OTHER: 1}
        assert record[name]["ratio"] == record[name][THIS] / record[name][OTHER] > 0


def test_both_versions_compute_the_same_of_the_same(clustered, copy):
    """Each runs its own code, on equal weights and equal pictures: what differs between them is the time alone."""
    versions = build_both(parse(["--against", str(copy), *SMALL]), clustered)
    models = [versions[version].model.eval() for version in (THIS, OTHER)]
    assert type(models[0]) is not type(models[1]) and type(models[0]).__name__ == type(models[1]).__name__
    batches = [versions[version].passes["infer"].args[0].to(torch.device("cpu")) for version in (THIS, OTHER)]
    torch.testing.assert_close(batches[0].images, batches[1].images, rtol=0, atol=0)
    with torch.no_grad():
        outputs = [model(batch.images, batch.mask) for model, batch in zip(models, batches)]
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(outputs[0][name], outputs[1][name], rtol=0, atol=0)
    for version in (THIS, OTHER):
        versions[version].passes["train"]()


def test_another_version_leaves_no_trace(copy):
    """Behind the isolation every module and the path are this version's again, also after an error."""
    modules, path = dict(sys.modules), [*sys.path]
    with pytest.raises(ZeroDivisionError), isolated(copy):
        other = import_workload(copy)
        files = [sys.modules[name].__file__ for name in ("common", "enact", "detr", "common.cli.run", "tools.detectors")]
        assert all(Path(file).is_relative_to(copy) for file in files)
        raise ZeroDivisionError
    assert other.Workload is not Workload and Path(other.__file__).is_relative_to(copy)
    assert sys.path == path and sys.modules["common.errors"] is common.errors
    own = {name for name, module in modules.items() if str(getattr(module, "__file__", None) or "").startswith(f"{ROOT}/common")}
    assert len(own) > 10 and all(sys.modules[name] is modules[name] for name in own)


def test_old_versions_have_their_workload_elsewhere(tmp_path):
    """A version whose common/ was flat is measured by its own modules, which this one lacks."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").touch()
    (tmp_path / "common" / "arguments.py").write_text("AGE = 'old'")
    (tmp_path / "benchmarks" / "workload.py").write_text("from common.arguments import AGE")
    with isolated(tmp_path):
        assert import_workload(tmp_path).AGE == "old"
    assert "common.arguments" not in sys.modules


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: root / "missing", "is not a folder"),
        (lambda root: root, "is not a version of this repository"),
        (lambda root: _write(root / "benchmarks" / "workload.py", "raise ValueError('too old')"), "cannot be measured (too old)"),
    ],
)
def test_mistakes_end_with_one_sentence(change, message, tmp_path, capsys):
    """Code 2, and one line that names the option; nothing is written."""
    against = change(tmp_path)
    assert main(NAME, run, ["--against", str(against), *SMALL, "--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "--against" in printed.err and printed.err.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir()
    path.write_text(text)
    return path.parent.parent

import json
import shutil

import pytest

from benchmarks.lib.cli import main
from benchmarks.quality import fidelity, warmstart
from tests.tiny_checkpoints import tiny_checkpoint


def test_a_plain_checkpoint_is_evaluated_and_fine_tuned(tmp_path, dataset, capsys, monkeypatch):
    """Real runs: the checkpoint as it is, with and without clusters, and what an epoch makes of it; finished runs stay, and are not
    taken for those of another checkpoint.
    """
    variants = {name: warmstart.VARIANTS[name] for name in ("none", "region+, steps")}
    monkeypatch.setattr(warmstart, "VARIANTS", variants)
    source = tiny_checkpoint(tmp_path / "plain.pth", "DETR-ENACT", 6, "--clustering", "none")
    argv = ["--checkpoint", str(source), "--coco_path", str(dataset), "--device", "cpu", "--quick", "--seeds", "1"]
    argv += ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path)]
    assert main(warmstart.NAME, warmstart.run, argv) == 0
    assert "region+, steps" in capsys.readouterr().out
    records = json.loads((tmp_path / "warmstart-cpu.json").read_text())["results"]
    assert [(r["detector"], r["variant"], r["seeds"]) for r in records] == [("DETR-ENACT", name, [1]) for name in variants]
    for record, name in zip(records, ("none", "region+-steps"), strict=True):
        folder = tmp_path / "runs" / "DETR-ENACT" / f"{name}-seed1"
        [line] = (folder / "log.txt").read_text().splitlines()
        assert record["AP_after"] == pytest.approx(100 * json.loads(line)["test_coco_eval_bbox"][0])
        before = json.loads((folder.with_name(f"{folder.name}-before") / "eval.json").read_text())
        assert before["clustering"] == variants[record["variant"]][1] and record["AP_before"] == 100 * before["coco_eval_bbox"][0]
    monkeypatch.setattr("benchmarks.lib.demos.Demo.train", lambda *_: pytest.fail("trained again"))
    assert main(warmstart.NAME, warmstart.run, argv) == 0
    argv[1] = str(shutil.copy(source, tmp_path / "other.pth"))
    assert main(warmstart.NAME, warmstart.run, argv) == 2
    assert f"holds a run from {source}" in capsys.readouterr().err


def test_what_cannot_be_told_apart_is_refused(tmp_path, capsys):
    """Before anything is trained: two checkpoints whose runs would share folders, and data that the plain demos do not know."""
    sources = [str(tiny_checkpoint(tmp_path / f"{seed}.pth", "DETR-ENACT", seed, "--clustering", "none")) for seed in (1, 2)]
    options = ["--device", "cpu", "--quick", "--output", str(tmp_path), "--coco_path", str(tmp_path)]
    for argv, said in ((["--checkpoint", *sources], "are both of DETR-ENACT"), ([], "needs --checkpoint")):
        assert main(warmstart.NAME, warmstart.run, [*argv, *options]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_the_plain_demos_have_the_jobs_that_share_the_threads(tmp_path, monkeypatch):
    """With ``--jobs 2`` each has half of them: one at a time would leave the other half idle."""
    met = []
    monkeypatch.setattr(fidelity, "train_all", lambda demos, jobs, *_: met.append(jobs))
    monkeypatch.setattr(warmstart, "shapes", lambda **_: tmp_path)
    monkeypatch.setattr(warmstart, "share_threads", met.append)
    monkeypatch.setattr(warmstart, "detectors_of", lambda sources: {})
    monkeypatch.setattr(warmstart, "save", lambda *_: None)
    warmstart.run(["--jobs", "2", "--device", "cpu", "--output", str(tmp_path)])
    assert met == [2, 2]


def test_a_clustered_checkpoint_is_refused(tmp_path, dataset, capsys):
    """It is no warm start; code 2 and one sentence."""
    source = tiny_checkpoint(tmp_path / "x.pth", "DETR-ENACT", 1)
    argv = ["--checkpoint", str(source), "--coco_path", str(dataset), "--device", "cpu", "--output", str(tmp_path)]
    assert main(warmstart.NAME, warmstart.run, argv) == 2
    error = capsys.readouterr().err
    assert "plain detector" in error and error.count("\n") == 1

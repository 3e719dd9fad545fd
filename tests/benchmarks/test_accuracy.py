import json
from pathlib import Path

import cv2
import pytest

from benchmarks.lib import demos
from benchmarks.lib.cli import main
from benchmarks.quality import accuracy
from benchmarks.quality.accuracy import Run, parse, plan, summarise
from tools.detectors import options


def write_log(run: Run, root: Path, precisions: list[float]) -> None:
    folder = run.demo(root).folder
    folder.mkdir(parents=True)
    lines = [{"epoch": epoch, "test_coco_eval_bbox": [ap, 2 * ap, *[0] * 10]} for epoch, ap in enumerate(precisions)]
    (folder / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_variant_is_planned_once(tmp_path):
    """Table 2's clusterings for every detector and figure 3's sigmas for one, each combination once per seed."""
    args = parse(["--seeds", "1", "2", "--runs", str(tmp_path)])
    runs = plan(args)
    assert len(runs) == len(set(runs)) == 2 * (3 * 4 + 2)  # sigma 3 is the demo's, so it is in both
    variants = {run.variant for run in runs if run.detector == "DETR-ENACT"}
    final = {"none", "window-sigma3", "region-sigma3", "region+-sigma3"}
    assert variants == {*final, "region-sigma5", "region-sigma7"}
    assert {run.variant for run in runs if run.detector == "Anchor-DETR-ENACT"} == final
    finer = plan(parse(["--seeds", "1", "--sigmas", "--smoothing_sigma", "2", "--clustering", "none", "region+"]))
    assert {run.variant for run in finer} == {"none", "region+-sigma2"}


def test_the_context_has_runs_of_its_own():
    """They do not mix with the demos': other folders, and a schedule that fits their epochs."""
    argv = ["--seeds", "1", "--detector", "Conditional-DETR-ENACT", "--clustering", "none"]
    [default], [context] = (plan(parse([*argv, "--task", task])) for task in ("outline", "context"))
    default, context = (run.demo(parse([*argv, "--task", run.task]).runs) for run in (default, context))
    assert default.folder != context.folder and default.options == ("--clustering", "none", "--seed", "1")
    args = options("Conditional-DETR-ENACT", ["--demo", *context.options])
    assert (args.epochs, args.seed) == (context.epochs, 1) and default.epochs < args.epochs > args.lr_drop


def test_means_spreads_and_differences(tmp_path):
    """The numbers of the table are those of the logs; the last epoch counts, and one seed has no spread."""
    runs = [Run("DETR-ENACT", c, None if c == "none" else 3.0, seed, 2) for c in ("none", "region") for seed in (1, 2)]
    for run, precision in zip(runs, (0.1, 0.3, 0.2, 0.3)):
        write_log(run, tmp_path, [0.9, precision])
    plain, region = summarise({run: run.result(tmp_path) for run in runs})
    assert plain["AP"] == pytest.approx(20) and plain["AP50"] == pytest.approx(40) and plain["AP_to_none"] == 0
    assert plain["AP_spread"] == pytest.approx(200**0.5) and region["AP_spread"] == pytest.approx(50**0.5)
    assert region["AP_to_none"] == pytest.approx(5) and region["AP_per_epoch"][0] == {0: 90, 1: 20}
    assert summarise({runs[0]: runs[0].result(tmp_path)})[0]["AP_spread"] is None
    results = {run: run.result(tmp_path) for run in runs}
    unequal = {run: result for run, result in results.items() if (run.clustering, run.seed) != ("region", 1)}
    assert summarise(unequal)[1]["AP_to_none"] == pytest.approx(0)  # of seed 2, which both have
    assert "AP_to_none" not in summarise({run: unequal[run] for run in runs[::3]})[1]
    assert accuracy.table([plain, region]).count("\u00b1") == 4 and "+5.0" in accuracy.table([plain, region])


def test_a_sigma_that_is_not_the_demos_has_no_bar(tmp_path):
    """The chart compares clusterings at the demo's; it is drawn without any, too."""
    runs = [Run("DETR-ENACT", "region", sigma, 1, 2) for sigma in (2.0, 3.0)]
    for run, chosen in zip(runs, (0, 1)):
        write_log(run, tmp_path, [0.1, 0.2])
        figure = accuracy.draw(summarise({run: run.result(tmp_path)}), ["DETR-ENACT", "Anchor-DETR-ENACT"], "")
        assert sum(bar.get_height() > 0 for bar in figure.axes[-1].patches) == chosen


def test_finished_runs_are_not_repeated_and_unfinished_ones_go_on(tmp_path, monkeypatch):
    """Adding a seed to a day of training costs that seed alone; what was interrupted resumes from its checkpoint."""
    done, half, new = (Run("DETR-ENACT", "none", None, seed, 2) for seed in (1, 2, 3))
    write_log(done, tmp_path, [0.1, 0.2])
    write_log(half, tmp_path, [0.1])
    half.demo(tmp_path).checkpoint.touch()
    commands = []

    def train(command, **_):
        commands.append(command)
        raise StopIteration

    monkeypatch.setattr(demos.subprocess, "run", train)
    for run in (half, new):
        with pytest.raises(StopIteration):
            run.demo(tmp_path).train("cpu", Path("data"))
    assert ["--resume" in command for command in commands] == [True, False]
    demos.train_all([done.demo(tmp_path)], 1, "cpu", Path("data"))
    assert len(commands) == 2


def test_seeds_from_another_machine_are_added(tmp_path, capsys):
    """``--add`` makes one table of two results, trains nothing that they have, and takes no runs that cannot be compared."""
    data = tmp_path / "data"
    argv = ["--device", "cpu", "--detector", "DETR-ENACT", "--clustering", "none", "--sigmas", "--epochs", "2"]
    argv += ["--coco_path", str(data)]

    def accuracy_of(out: str, *more: str) -> int:
        return main(accuracy.NAME, accuracy.run, [*argv, "--output", str(tmp_path / out), "--runs", str(tmp_path / out), *more])

    for out, seed, precision in (("a", 2, 0.1), ("b", 1, 0.3)):
        write_log(Run("DETR-ENACT", "none", None, seed, 2), tmp_path / out, [0, precision])
    first = str(tmp_path / "a" / "accuracy-cpu.json")
    assert accuracy_of("a", "--seeds", "2") == 0
    assert accuracy_of("b", "--seeds", "1", "2", "--add", first) == 0
    content = json.loads((tmp_path / "b" / "accuracy-cpu.json").read_text())
    [record] = content["results"]
    assert record["seeds"] == [1, 2] and record["AP_seeds"] == pytest.approx([30, 10])
    assert record["AP50_seeds"] == pytest.approx([60, 20]) and record["AP_per_epoch"][1] == pytest.approx({"0": 0, "1": 10})
    assert [added["command"] for added in content["added"]] == [json.loads(Path(first).read_text())["command"]]

    capsys.readouterr()
    broken = tmp_path / "broken.json"
    broken.write_text('{"results": 1}')
    for more, problem in (
        (("--add", first, "--epochs", "3"), "for 2 epochs, not for 3"),
        (("--add", first, "--coco_path", str(tmp_path)), "name one dataset"),
        (("--add", str(broken)), "is not a result of benchmarks/quality/accuracy.py"),
        (("--add", str(tmp_path / "none.json")), "is not a result of benchmarks/quality/accuracy.py"),
    ):
        assert accuracy_of("b", "--seeds", "1", *more) == 2
        assert problem in capsys.readouterr().err


def test_accuracy_trains_and_draws(tmp_path, dataset, capsys):
    """The command trains real runs, prints their table and writes numbers and picture; a second time it finds them done, but not
    for other data.
    """
    argv = ["--quick", "--detector", "DETR-ENACT", "--clustering", "region", "--sigmas", "5", "--device", "cpu", "--jobs", "2"]
    argv += ["--coco_path", str(dataset), "--runs", str(tmp_path / "runs"), "--output", str(tmp_path)]
    for _ in range(2):
        assert main(accuracy.NAME, accuracy.run, argv) == 0
        assert "DETR-ENACT" in capsys.readouterr().out
    records = json.loads((tmp_path / "accuracy-cpu.json").read_text())["results"]
    assert [(r["sigma"], r["seeds"]) for r in records] == [(3.0, [42]), (5.0, [42])]
    assert all(0 <= r["AP"] <= r["AP50"] <= 100 for r in records)
    assert cv2.imread(str(tmp_path / "accuracy-cpu.png")) is not None
    assert main(accuracy.NAME, accuracy.run, [*argv[:-2], "--output", str(tmp_path / "accuracy-cpu.json")]) == 2
    capsys.readouterr()
    assert main(accuracy.NAME, accuracy.run, [*argv, "--coco_path", str(tmp_path / "other")]) == 2
    assert f"holds a run on {dataset}" in capsys.readouterr().err


def test_a_failed_run_ends_with_its_sentence(tmp_path, capsys):
    """What the detector's command said is said again, instead of a table with a hole."""
    argv = ["--quick", "--detector", "DETR-ENACT", "--clustering", "none", "--device", "cpu", "--coco_path", str(tmp_path / "no")]
    assert main(accuracy.NAME, accuracy.run, [*argv, "--runs", str(tmp_path / "runs"), "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "train2017" in error or "val2017" in error

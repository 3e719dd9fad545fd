import json
from argparse import Namespace
from itertools import combinations
from pathlib import Path

import cv2
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from benchmarks.lib.cli import main
from benchmarks.lib.flops import ENCODER
from benchmarks.lib.methods import METHODS, models
from benchmarks.quality import compare
from benchmarks.quality.compare import parse, summarise
from benchmarks.quality.compare_chart import draw_time, marks
from benchmarks.quality.compare_runs import (
    EPOCHS,
    KINDS,
    MINUTES,
    Key,
    Result,
    Results,
    Run,
    drop_epoch,
    epochs_within,
    plan,
    plan_within,
    training_options,
)
from tests.tiny_checkpoints import tiny_checkpoint
from tools.detectors import DETECTORS, options

GROUPS = models(METHODS)
BY_FOLDER = {method.detector: method for method in METHODS}
DETR = [group for group in GROUPS if group[0].detector == "DETR-ENACT"]


def write_run(run: Run, root: Path, precisions: list[float], train_seconds: float) -> None:
    """The log of a run as training leaves it, and a small checkpoint; PnP-DETR's shares reach 1, 2 and 3 times the precision."""
    folder = run.demo(root).folder
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"ratio_{float(method.share[1]):g}_" if method.share else "" for method in run.methods]
    lines = []
    for epoch, precision in enumerate(precisions):
        rows = {f"test_{name}coco_eval_bbox": [(i + 1) * precision] * 12 for i, name in enumerate(names)}
        lines.append({"epoch": epoch, "train_seconds": train_seconds, "test_coco_eval_bbox": [0] * 12} | rows)
    (folder / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tiny_checkpoint(folder / "checkpoint.pth", run.methods[0].detector, 0, *run.methods[0].options)


@pytest.mark.parametrize("method", [group[0] for group in GROUPS], ids=lambda method: method.slug)
def test_a_method_is_the_same_at_every_size(method):
    """Its options say all that makes it, so that the demo's defaults and the recipe's make one method of it."""
    recipe, demo = options(method.detector, method.options), options(method.detector, ["--demo", *training_options(method, 1, 8)])
    own = {option.removeprefix("--").removeprefix("no-") for option in method.options if option.startswith("--")}
    assert all(getattr(recipe, name) == getattr(demo, name) for name in own)
    if method.detector == "Sparse-DETR":
        assert own == {"with_box_refine", "two_stage", "eff_query_init", "eff_specific_head", "use_enc_aux_loss", "rho"}
        assert (recipe.rho > 0) == ("Sparse" in method.name) == recipe.use_enc_aux_loss


@pytest.mark.parametrize("method", BY_FOLDER.values(), ids=lambda method: method.detector)
def test_runs_have_equal_budgets(method):
    """Model, batch, queries and rates are one for all, whatever the demos and the folders' own rules make of them."""
    args = options(method.detector, ["--demo", *training_options(method, 7, 8), "--epochs", "8"])
    size = (args.backbone, args.hidden_dim, args.dim_feedforward, args.enc_layers, args.dec_layers)
    assert size == ("resnet10", 128, 256, 3, 3) and (args.image_size, args.batch_size) == (96, 4)
    assert (args.epochs, args.lr_drop, args.seed) == (8, 6, 7)
    queries = args.num_query_position * args.num_query_pattern if method.family == "Anchor DETR" else args.num_queries
    rates = {name: rate for name, rate in DETECTORS[method.detector].parameter_groups(args, args.batch_size)}
    assert queries == 40 and rates[""] == pytest.approx(2e-4, rel=1e-4)
    assert next(rate for name, rate in rates.items() if "backbone" in name) == pytest.approx(3e-4, rel=1e-4)


def test_every_model_is_trained_once_per_seed(tmp_path):
    """PnP-DETR's shares are one run; runs have folders of their own, and those of another length, too."""
    args = parse(["--seeds", "1", "2", "--runs", str(tmp_path)])
    runs = plan(GROUPS, args, {}, "here")
    assert [run.seed for run in runs] == [1] * len(GROUPS) + [2] * len(GROUPS) and len(GROUPS) == len(METHODS) - 4
    longer = [Run(run.methods, run.seed, 9, MINUTES) for run in runs]
    assert len({run.demo(tmp_path).folder for run in (*runs, *longer)}) == 4 * len(GROUPS)
    done = {Key(method.name, 1, EPOCHS, "here"): Result((1,), (1,), (1,)) for method in METHODS}
    assert [run.seed for run in plan(GROUPS, args, done, "here")] == [2] * len(GROUPS)
    assert len(plan(GROUPS, args, done, "there")) == 2 * len(GROUPS)


def test_the_time_decides_how_many_epochs_fit():
    """As many as end within the minutes by the first seed's median epoch; the rates drop once in a run of any length."""
    result = Result((0.0,) * 3, (0.0,) * 3, (11.0, 10.0, 60.0))
    assert [epochs_within(result, minutes) for minutes in (1, 11 / 60, 0.18)] == [5, 1, 0]
    assert result.minutes == pytest.approx([11 / 60, 21 / 60, 81 / 60])
    assert all(1 <= drop_epoch(epochs) and 2 * drop_epoch(epochs) >= epochs for epochs in range(1, 60)) and drop_epoch(8) == 6
    args = Namespace(seeds=[1, 2], minutes=1.0)
    seconds = {DETR[0][0].name: (20.0, 10.0), DETR[1][0].name: (61.0, 10.0)}  # of the first seed and the second
    known = {Key(name, s + 1, EPOCHS, "here"): Result((0,), (0,), (t[s],)) for name, t in seconds.items() for s in (0, 1)}
    runs = plan_within(DETR, args, known, "here")
    assert [(run.methods, run.seed, run.epochs, run.kind) for run in runs] == [(DETR[0], seed, 3, MINUTES) for seed in (1, 2)]
    known[Key(DETR[0][0].name, 2, MINUTES, "here")] = Result((0,), (0,), (1,))
    assert [run.seed for run in plan_within(DETR, args, known, "here")] == [1]


def test_means_over_runs_and_machines():
    """Precision after equal epochs is pooled; time, and what is reached in it, stays each machine's own."""
    name = DETR[0][0].name
    results: Results = {
        Key(name, 1, EPOCHS, "a"): Result((5, 10), (0, 20), (60, 60)),
        Key(name, 2, EPOCHS, "a"): Result((5, 20), (0, 40), (60, 120)),
        Key(name, 1, EPOCHS, "b"): Result((5, 30), (0, 60), (6, 6)),
        Key(name, 1, MINUTES, "b"): Result((1, 2, 40), (0, 0, 0), (6, 6, 6)),
    }
    [record] = summarise(results, DETR[0], {name: {ENCODER: 0.5}})
    assert (record["AP"], record["AP_spread"], record["AP50"]) == (20, 10, 40)
    a, b = record["machines"]["a"], record["machines"]["b"]
    assert a.keys() == {EPOCHS} and (a[EPOCHS]["AP"], a[EPOCHS]["minutes"]) == (15, 2.5)
    assert (b[MINUTES]["AP"], b[MINUTES]["epochs"], b[MINUTES]["AP_spread"]) == (40, 3, None)
    [head, _, row, _, *machines] = compare.table([record], DETR[0], Namespace(epochs=2, minutes=0.3), {}).splitlines()
    cells = dict(zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in (head, row))))
    assert cells["AP, 2 epochs"] == "20.0 \u00b1 10.0" and cells["encoder MFLOPs"] == "500" and cells["minutes [1]"] == "2.5"
    assert (cells["AP, 0.3 minutes [1]"], cells["AP, 0.3 minutes [2]"]) == ("", "40.0") and machines == ["[1] a", "[2] b"]
    assert cells["published: AP on COCO"] == "40.6 (R50, 300 epochs)"


def test_finished_runs_make_the_table_and_other_machines_join(tmp_path, dataset, capsys, monkeypatch):
    """What is done is not trained again, ``--add`` merges a machine's columns, and what cannot be compared is refused."""
    argv = ["--device", "cpu", "--seeds", "1", "--epochs", "2", "--minutes", "1", "--detector", "DETR-ENACT", "PnP-DETR"]
    argv += ["--coco_path", str(dataset)]
    groups = [group for group in GROUPS if group[0].detector in ("DETR-ENACT", "PnP-DETR")]
    for out, precision in (("a", 0.1), ("b", 0.2)):
        for group in groups:
            write_run(Run(group, 1, 2, EPOCHS), tmp_path / out, [0, precision], 21)
    described = {"a": "machine a, 1", "b": "machine b, 1"}

    def compare_of(out: str, *more: str) -> int:
        monkeypatch.setattr(compare, "describe", lambda _: described[out])
        return main(compare.NAME, compare.run, [*argv, "--output", str(tmp_path / out), "--runs", str(tmp_path / out), *more])

    def content_of(out: str) -> dict:
        return json.loads((tmp_path / out / "compare-DETR-ENACT-PnP-DETR-cpu.json").read_text())

    assert compare_of("a") == 0
    a = content_of("a")
    assert [row["AP"] for row in a["results"]] == pytest.approx([10, 10, 10, 20, 30, 10, 20, 30])
    assert {run["kind"] for run in a["runs"]} == {*KINDS} and len(a["runs"]) == 2 * 8
    encoders = {row["name"]: row["gflops"][ENCODER] for row in a["results"]}
    assert encoders["PnP-DETR, 1/3"] < encoders["PnP-DETR, 0.65"] and encoders["DETR + ENACT"] < encoders["DETR"]
    first = str(tmp_path / "a" / "compare-DETR-ENACT-PnP-DETR-cpu.json")
    assert compare_of("b", "--add", first) == 0
    b = content_of("b")
    assert [row["AP"] for row in b["results"]] == pytest.approx([15, 15, 15, 30, 45, 15, 30, 45])
    assert [*b["results"][0]["machines"]] == [*described.values()] and [s["command"] for s in b["added"]] == [a["command"]]
    assert "AP, 1 minutes [2]" in b["table"] and b["table"] in capsys.readouterr().out
    for name in ("time", "flops"):
        assert cv2.imread(str(tmp_path / "b" / f"compare-DETR-ENACT-PnP-DETR-cpu-{name}.png")) is not None

    (tmp_path / "broken.json").write_text('{"runs": [{"method": "YOLO"}]}')
    (tmp_path / "half.json").write_text(json.dumps(a | {"runs": [run for run in a["runs"] if run["kind"] == MINUTES]}))
    for more, problem in (
        (("--add", first, "--epochs", "3"), "has --epochs 2, not 3: pass --epochs 2"),
        (("--add", first, "--minutes", "2"), "has --minutes 1, not 2: pass --minutes 1"),
        (("--add", first, "--coco_path", str(tmp_path)), "name one dataset"),
        (("--add", str(tmp_path / "broken.json")), "is not a result of benchmarks/quality/compare.py"),
        (("--add", str(tmp_path / "half.json")), "is not a result of benchmarks/quality/compare.py"),
        (("--cost", first), "is not a result of benchmarks/speed/compare.py"),
    ):
        assert compare_of("b", *more) == 2
        assert problem in capsys.readouterr().err


def test_the_columns_of_costs_are_added(tmp_path):
    """The table has what ``speed/compare.py`` measured, where it measured the method."""
    method = DETR[0][0]
    row = {"name": method.name, "parameters": 41_500_000, "gflops": {"backbone": 70, "encoder": 9, "decoder": 2, "all": 81}}
    row |= {"train": 2.5, "inference": 0.7, "memory": 2**30}
    path = tmp_path / "cost.json"
    path.write_text(json.dumps({"measured_on": "a GPU", "results": [row]}))
    costs = compare.read_costs([path])
    results = {Key(group[0].name, 1, EPOCHS, "here"): Result((1,), (1,), (1,)) for group in DETR}
    methods = [group[0] for group in DETR]
    records = summarise(results, methods, {m.name: {ENCODER: 0.1} for m in methods})
    text = compare.table(records, methods, Namespace(epochs=1, minutes=1.0), costs)
    head, _, measured, other, *_ = ([cell.strip() for cell in line.split("|")] for line in text.splitlines())
    places = [head.index(f"{title} [2]") for title in ("params (M)", "GFLOPs, encoder", "training step (GiB)")]
    assert [measured[i] for i in places] == ["41.5", "9", "1"] and [other[i] for i in places] == [""] * 3
    assert "[2] a GPU" in text


def test_methods_look_different_and_labels_keep_apart():
    """Seventeen methods in one picture: every model has a look of its own, and curves with one end have labels below each other."""
    looks = marks(METHODS)
    seen = {(str(look["color"]), look["marker"], str(look["markerfacecolor"])) for look in looks.values()}
    assert len(seen) == len(GROUPS) and looks.keys() == {method.name for method in METHODS}
    results = {Key(method.name, 1, MINUTES, "here"): Result((1.0, 10.0), (2.0, 20.0), (30.0, 30.0)) for method in METHODS}
    figure = draw_time(results, METHODS, "here", 1.0, "caption")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = figure.axes[0].texts
    boxes = [Text.get_window_extent(label, canvas.get_renderer()) for label in labels]  # of an annotation, but its line
    assert {label.get_text() for label in labels} == {group[-1].name for group in GROUPS}
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2)) and len({round(box.x0) for box in boxes}) == 1

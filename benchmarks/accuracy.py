"""What clustering costs in precision: AP per epoch over sigma (figure 3), and final AP over seeds (the question of table 2).

    python benchmarks/accuracy.py --jobs 2                     # 33 demos, on two cores the better part of a day
    python benchmarks/accuracy.py --seeds 42 --detector Anchor-DETR-ENACT
    python benchmarks/accuracy.py --quick

The data are the built-in shapes, which everybody has. A run is ``python <folder>/main.py --demo --clustering ... --seed ...``, so
the models and schedules are the demos'. Every detector is trained with ``none``, ``window`` and ``region`` at its demo's sigma, and
``--curves`` also with ``region`` at every one of ``--sigmas``, all with the same seeds. Runs are kept in ``--runs``: finished ones
are not repeated, interrupted ones go on, so that seeds can be added later.

The spread is the standard deviation over the seeds, which fewer than two do not have.
"""

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common_charts import BLUE, GREEN, GREY, PURPLE, VERMILION
from benchmarks.common_cli import ROOT, build_parser, describe, main, save, settle
from benchmarks.common_measure import machine
from common.arguments import number
from common.errors import UserError
from common.evaluation import METRICS
from common.shapes import ensure_shapes_dataset
from tools.detectors import DETECTORS, options

NAME = "accuracy"
CLUSTERINGS = {"none": GREY, "window": VERMILION, "region": BLUE}
SIGMA_COLOURS = (BLUE, GREEN, PURPLE, VERMILION)


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        detector: its folder.
        clustering, sigma, seed: the options that are compared; sigma is None without clustering.
        epochs: how long it takes.
    """

    detector: str
    clustering: str
    sigma: float | None
    seed: int
    epochs: int

    @property
    def variant(self) -> str:
        return self.clustering if self.sigma is None else f"{self.clustering}-sigma{self.sigma:g}"

    def folder(self, root: Path) -> Path:
        return root / self.detector / f"{self.variant}-seed{self.seed}"

    def log(self, root: Path) -> dict[int, list[float]]:
        """Epoch -> COCO's 12 numbers, of the epochs that are done."""
        path = self.folder(root) / "log.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        records = map(json.loads, lines)
        return {r["epoch"]: r["test_coco_eval_bbox"] for r in records if r["epoch"] < self.epochs}

    def done(self, root: Path) -> bool:
        return self.epochs - 1 in self.log(root)


def plan(args: Namespace) -> list[Run]:
    """All runs, those of one seed after those of another."""
    runs = []
    for seed in args.seeds:
        for detector in args.detector:
            demo = options(detector, ["--demo"])
            variants = [(c, None if c == "none" else demo.smoothing_sigma) for c in args.clustering]
            if detector == args.curves:
                variants += [("region", sigma) for sigma in args.sigmas]
            runs += [Run(detector, c, sigma, seed, args.epochs or demo.epochs) for c, sigma in dict.fromkeys(variants)]
    return runs


def train(run: Run, args: Namespace) -> None:
    """Trains a run to its end, from where it stands."""
    folder = run.folder(args.runs)
    command = [sys.executable, str(ROOT / run.detector / "main.py"), "--demo", "--clustering", run.clustering]
    command += ["--seed", str(run.seed), "--epochs", str(run.epochs), "--device", args.device, "--output_dir", str(folder)]
    command += ["--coco_path", str(args.coco_path)]
    if run.sigma is not None:
        command += ["--smoothing_sigma", str(run.sigma)]
    if (folder / "checkpoint.pth").is_file():
        command += ["--resume", str(folder / "checkpoint.pth")]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.jobs))}
    done = subprocess.run(command, capture_output=True, text=True, env=threads | os.environ)
    if done.returncode or not run.done(args.runs):
        last = (done.stderr.strip().splitlines() or ["its log lacks the last epoch: remove the folder"])[-1]
        raise UserError(f"the run {folder} failed: {last}")


def train_all(runs: Sequence[Run], args: Namespace) -> None:
    """Trains what is not done, ``args.jobs`` at a time, and stops at the first failure."""
    missing = [run for run in runs if not run.done(args.runs)]
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(train, run, args) for run in missing]
        try:
            for future in tqdm(as_completed(futures), total=len(missing), desc="runs", leave=False):
                future.result()
        except (UserError, KeyboardInterrupt):
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def summarise(runs: Sequence[Run], root: Path) -> list[dict]:
    """One record per detector and variant: AP and AP50 (in %) of every seed, mean, spread, difference to none, and AP per epoch."""
    records = []
    for detector, variant in dict.fromkeys((run.detector, run.variant) for run in runs):
        same = [run for run in runs if (run.detector, run.variant) == (detector, variant)]
        record = {"detector": detector, "clustering": same[0].clustering, "sigma": same[0].sigma, "seeds": [r.seed for r in same]}
        logs = [run.log(root) for run in same]
        for i, metric in enumerate(METRICS[:2]):
            values = [100 * log[run.epochs - 1][i] for run, log in zip(same, logs)]
            record |= {
                metric: mean(values),
                f"{metric}_seeds": values,
                f"{metric}_spread": stdev(values) if len(values) > 1 else None,
            }
        record["AP_per_epoch"] = [{epoch: 100 * numbers[0] for epoch, numbers in log.items()} for log in logs]
        records.append(record)
    for record in records:
        for plain in records:
            if plain["detector"] == record["detector"] and plain["clustering"] == "none":
                record["AP_to_none"] = record["AP"] - plain["AP"]
    return records


def table(records: Sequence[dict]) -> str:
    lines = [f"{'detector':26}{'clusters':10}{'sigma':>6}{'seeds':>7}{'AP':>18}{'AP50':>18}{'AP - none':>12}"]
    for r in records:
        sigma = "" if r["sigma"] is None else f"{r['sigma']:g}"
        cells = []
        for metric in METRICS[:2]:
            spread = r[f"{metric}_spread"]
            cells.append(f"{r[metric]:.1f}" + ("" if spread is None else f" \u00b1 {spread:.1f}"))
        difference = f"{r['AP_to_none']:+.1f}" if "AP_to_none" in r else ""
        lines.append(
            f"{r['detector']:26}{r['clustering']:10}{sigma:>6}{len(r['seeds']):>7}{cells[0]:>18}{cells[1]:>18}{difference:>12}"
        )
    return "\n".join(lines)


def draw(records: Sequence[dict], curves: str, caption: str) -> Figure:
    """Left: AP per epoch over sigma (figure 3). Right: final AP of every detector and clustering, a dot for each seed."""
    figure = Figure(figsize=(8.4, 3), dpi=200, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_curves(left, [r for r in records if r["detector"] == curves and r["clustering"] in ("none", "region")])
    left.set_title(f"{curves}: AP (%) per epoch", fontsize=9)
    detectors = list(dict.fromkeys(r["detector"] for r in records))
    demo = {d: options(d, ["--demo"]).smoothing_sigma for d in detectors}
    shown = [r for r in records if r["sigma"] in (None, demo[r["detector"]])]
    _draw_finals(right, shown, detectors)
    right.set_title("AP (%) after the last epoch", fontsize=9)
    for axes in (left, right):
        axes.tick_params(labelsize=7.5)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def _draw_curves(axes: Axes, records: Sequence[dict]) -> None:
    colours = iter(SIGMA_COLOURS)
    for r in sorted(records, key=lambda r: r["sigma"] or 0):
        plain = r["clustering"] == "none"
        label, colour = ("plain", GREY) if plain else (f"region, \u03c3 = {r['sigma']:g}", next(colours))
        epochs = sorted(set.intersection(*(set(log) for log in r["AP_per_epoch"])))
        values = [[log[epoch] for log in r["AP_per_epoch"]] for epoch in epochs]
        shown = [epoch + 1 for epoch in epochs]
        axes.plot(
            shown, [mean(v) for v in values], "o--" if plain else "o-", color=colour, label=label, linewidth=1.3, markersize=3
        )
        if len(r["seeds"]) > 1:
            axes.fill_between(shown, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if records:
        axes.legend(frameon=False, fontsize=7.5)


def _draw_finals(axes: Axes, records: Sequence[dict], detectors: Sequence[str]) -> None:
    for r in records:
        x = detectors.index(r["detector"]) + 0.26 * (list(CLUSTERINGS).index(r["clustering"]) - 1)
        axes.bar(x, r["AP"], 0.24, color=CLUSTERINGS[r["clustering"]], alpha=0.75)
        if len(r["seeds"]) > 1:
            axes.plot([x] * len(r["seeds"]), r["AP_seeds"], "o", color="black", markersize=2.5)
        axes.text(x, max(r["AP_seeds"]) + 0.4, f"{r['AP']:.1f}", ha="center", fontsize=7)
    for name, colour in CLUSTERINGS.items():
        if any(r["clustering"] == name for r in records):
            axes.bar(0, 0, color=colour, alpha=0.75, label=name)
    axes.set_xticks(range(len(detectors)), [d.removesuffix("-ENACT") for d in detectors])
    axes.legend(frameon=False, fontsize=7.5, loc="upper left", ncols=len(CLUSTERINGS))
    axes.set_ylim(top=1.25 * max(1.0, *(max(r["AP_seeds"]) for r in records)))


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__)
    positive = number(int, 1)
    seeds = {"type": number(int, 0), "nargs": "+"}
    parser.add_argument("--clustering", choices=CLUSTERINGS, nargs="+", help="default: all; quick: none and region")
    parser.add_argument("--seeds", **seeds, metavar="SEED", help="default: 42 43 44; quick: 42")
    parser.add_argument("--sigmas", type=number(float, 1), nargs="*", help="of figure 3 (default: 3 5 7; quick: the demo's)")
    parser.add_argument("--curves", choices=DETECTORS, default="DETR-ENACT", help="detector of figure 3 (default: %(default)s)")
    parser.add_argument("--coco_path", type=Path, help="train on this dataset in COCO's format (default: the built-in shapes)")
    parser.add_argument("--epochs", type=positive, help="of every run (default: the demos'; quick: 1)")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at once, which share the cores (default: %(default)s)")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/accuracy; quick: runs/accuracy_quick)")
    args = parser.parse_args(argv)
    args.clustering = args.clustering or (["none", "region"] if args.quick else list(CLUSTERINGS))
    args.seeds = args.seeds or ([42] if args.quick else [42, 43, 44])
    if args.sigmas is None:
        args.sigmas = [] if args.quick else [3.0, 5.0, 7.0]
    args.epochs = args.epochs or (1 if args.quick else None)
    args.runs = args.runs or ROOT / ("runs/accuracy_quick" if args.quick else "runs/accuracy")
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = settle(args)
    small = {"train": 80, "val": 40} if args.quick else {}
    shapes = ROOT / "data" / ("shapes_quick" if args.quick else "shapes")
    args.coco_path = args.coco_path or ensure_shapes_dataset(shapes, **small)
    runs = plan(args)
    train_all(runs, args)
    records = summarise(runs, args.runs)
    print("\n" + table(records))
    seeds = "seed" + "s" * (len(args.seeds) > 1) + " " + ", ".join(map(str, args.seeds))
    caption = f"{args.coco_path.name}, {seeds}; dots and bands: single seeds; {describe(machine(device))}"
    save(NAME, args, argv, {"units": {"AP": "%", "AP50": "%"}, "results": records}, draw(records, args.curves, caption))


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

"""What clustering costs in precision: AP per epoch over sigma (figure 3), and final AP over seeds (the question of table 2).

    python benchmarks/quality/accuracy.py --jobs 2                     # 42 demos, on two cores some four hours
    python benchmarks/quality/accuracy.py --seeds 42 --detector Anchor-DETR-ENACT
    python benchmarks/quality/accuracy.py --task context               # classes told far away from the objects
    python benchmarks/quality/accuracy.py --quick

The data are the built-in shapes, which everybody has: those of the demos, or of ``--task context``, whose classes are told far
away from the objects (``common/data/shapes_context.py``). A run is ``python <folder>/main.py --demo --clustering ... --seed ...``,
so the models and schedules are the demos'; on the context they have 12 epochs and more weight on the classes. Every detector is
trained with ``none``, ``window``, ``region`` and ``region+`` at its demo's sigma, or at ``--smoothing_sigma``, and ``--curves``
also with ``region`` at every one of ``--sigmas``, all with the same seeds. Runs are kept in ``--runs``: finished ones are not
repeated, interrupted ones go on, so that seeds can be added later. Those of other results, for example of other seeds from another
machine, or at another sigma, are added to the table with ``--add``.

The spread is the standard deviation over the seeds, which fewer than two do not have.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.cli import ROOT, build_parser, complete, describe, main, save
from benchmarks.lib.demos import TASK_OPTIONS, Demo, share_threads, train_all
from benchmarks.lib.measure import machine
from benchmarks.lib.models import shapes
from benchmarks.lib.seeds import default_seeds, named_seeds, over_seeds, with_spread
from benchmarks.quality.accuracy_chart import COLOURS, draw
from common.cli.arguments import number
from common.data.shapes import OUTLINE, TASKS
from common.errors import UserError
from common.evaluation.coco import METRICS
from tools.detectors import CLUSTERED, options

NAME = "quality/accuracy"
CLUSTERINGS = tuple(COLOURS)


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        detector: its folder.
        clustering, sigma, seed: the options that are compared; sigma is None without clustering.
        epochs: how long it takes.
        task: of the built-in shapes, whose options it has.
    """

    detector: str
    clustering: str
    sigma: float | None
    seed: int
    epochs: int
    task: str = OUTLINE

    @property
    def variant(self) -> str:
        return self.clustering if self.sigma is None else f"{self.clustering}-sigma{self.sigma:g}"

    def demo(self, root: Path) -> Demo:
        """The run itself, kept below ``root``."""
        chosen = [*TASK_OPTIONS[self.task], "--clustering", self.clustering, "--seed", str(self.seed)]
        if self.sigma is not None:
            chosen += ["--smoothing_sigma", str(self.sigma)]
        return Demo(self.detector, tuple(chosen), self.epochs, root / self.detector / f"{self.variant}-seed{self.seed}")

    def result(self, root: Path) -> "Result":
        """Of a run that is done."""
        log = self.demo(root).log()
        AP_per_epoch = {epoch: 100 * numbers[METRICS.index("AP")] for epoch, numbers in log.items()}
        return Result(100 * log[self.epochs - 1][METRICS.index("AP50")], AP_per_epoch)


@dataclass(frozen=True)
class Result:
    """What counts of a run, in %: AP50 after the last epoch, and AP after each."""

    AP50: float
    AP_per_epoch: dict[int, float]

    @property
    def AP(self) -> float:
        return self.AP_per_epoch[max(self.AP_per_epoch)]


def plan(args: Namespace) -> list[Run]:
    """All runs, those of one seed after those of another."""
    runs = []
    for seed in args.seeds:
        for detector in args.detector:
            demo = options(detector, ["--demo"])
            own = args.smoothing_sigma or demo.smoothing_sigma
            variants = [(c, None if c == "none" else own) for c in args.clustering]
            if detector in args.curves:
                variants += [("region", sigma) for sigma in args.sigmas]
            runs += [Run(detector, c, sigma, seed, _epochs(detector, args), args.task) for c, sigma in dict.fromkeys(variants)]
    return runs


def _epochs(detector: str, args: Namespace) -> int:
    return args.epochs or options(detector, ["--demo", *TASK_OPTIONS[args.task]]).epochs


def read_added(args: Namespace) -> tuple[dict[Run, Result], list[dict]]:
    """The runs of ``args.add``, and of what command, date and machine they are.

    Raises:
        UserError: a file is not this script's, of another dataset, or of runs of another length.
    """
    results, sources = {}, []
    for path in args.add:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = {}
            for r in content["results"]:
                for seed, AP50, log in zip(r["seeds"], r["AP50_seeds"], r["AP_per_epoch"], strict=True):
                    AP_per_epoch = {int(epoch): AP for epoch, AP in log.items()}
                    run = Run(r["detector"], r["clustering"], r["sigma"], seed, 1 + max(AP_per_epoch), args.task)
                    found[run] = Result(AP50, AP_per_epoch)
            trained_on = ROOT / content["settings"]["coco_path"]
            sources += [*content.get("added", []), {key: content[key] for key in ("command", "date", "machine")}]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"--add {path} is not a result of benchmarks/{NAME}.py: pass a file that it has written") from error
        if trained_on.resolve() != args.coco_path.resolve():
            raise UserError(f"--add {path} was trained on {trained_on}, not on {args.coco_path}: name one dataset")
        for run in found:
            if run.detector not in CLUSTERED:
                raise UserError(f"--add {path} has runs of {run.detector}, which this repository lacks: pass another file")
            if run.epochs != (epochs := _epochs(run.detector, args)):
                raise UserError(f"--add {path} trained {run.detector} for {run.epochs} epochs, not for {epochs}: pass --epochs")
        results |= found
    return results, sources


def summarise(results: Mapping[Run, Result]) -> list[dict]:
    """One record per detector and variant: AP and AP50 (in %) of every seed, mean, spread, and AP per epoch.

    Also the mean difference to ``none`` over the seeds that both have, where there are any.
    """
    detectors = [*CLUSTERED]
    runs = sorted(results, key=lambda r: (detectors.index(r.detector), CLUSTERINGS.index(r.clustering), r.sigma or 0, r.seed))
    records = []
    for (detector, clustering, sigma), group in groupby(runs, key=lambda r: (r.detector, r.clustering, r.sigma)):
        seeds = {run.seed: results[run] for run in group}
        record = {"detector": detector, "clustering": clustering, "sigma": sigma, "seeds": list(seeds)}
        for metric in METRICS[:2]:
            record |= over_seeds(metric, [getattr(result, metric) for result in seeds.values()])
        record["AP_per_epoch"] = [result.AP_per_epoch for result in seeds.values()]
        records.append(record)
    plain = {(run.detector, run.seed): result.AP for run, result in results.items() if run.clustering == "none"}
    for record in records:
        pairs = ((AP, plain.get((record["detector"], seed))) for seed, AP in zip(record["seeds"], record["AP_seeds"]))
        if differences := [AP - none for AP, none in pairs if none is not None]:
            record["AP_to_none"] = mean(differences)
    return records


def table(records: Sequence[dict]) -> str:
    lines = [f"{'detector':26}{'clusters':10}{'sigma':>6}{'seeds':>7}{'AP':>18}{'AP50':>18}{'AP - none':>12}"]
    for r in records:
        sigma = "" if r["sigma"] is None else f"{r['sigma']:g}"
        cells = [with_spread(r[metric], r[f"{metric}_spread"]) for metric in METRICS[:2]]
        difference = f"{r['AP_to_none']:+.1f}" if "AP_to_none" in r else ""
        lines.append(
            f"{r['detector']:26}{r['clustering']:10}{sigma:>6}{len(r['seeds']):>7}{cells[0]:>18}{cells[1]:>18}{difference:>12}"
        )
    return "\n".join(lines)


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__)
    positive = number(int, 1)
    seeds = {"type": number(int, 0), "nargs": "+"}
    parser.add_argument("--clustering", choices=CLUSTERINGS, nargs="+", help="default: all; quick: none and region")
    parser.add_argument("--seeds", **seeds, metavar="SEED", help="default: 42 43 44; quick: 42")
    parser.add_argument("--smoothing_sigma", type=number(float, 1), help="of --clustering, in pixels (default: the demos')")
    parser.add_argument("--sigmas", type=number(float, 1), nargs="*", help="of figure 3 (default: 3 5 7; quick: the demo's)")
    curves = "detectors of figure 3 (default: DETR-ENACT)"
    parser.add_argument("--curves", choices=CLUSTERED, nargs="+", default=["DETR-ENACT"], help=curves)
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--task", choices=TASKS, default=OUTLINE, help="of the built-in shapes to train on (default: %(default)s)")
    data.add_argument("--coco_path", type=Path, help="train on this dataset in COCO's format instead")
    parser.add_argument("--epochs", type=positive, help="of every run (default: the demos'; quick: 1)")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at once, which share the cores (default: %(default)s)")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/accuracy[_context]; quick: ..._quick)")
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="JSON", help="results whose runs count as well")
    args = parser.parse_args(argv)
    args.clustering = args.clustering or (["none", "region"] if args.quick else list(CLUSTERINGS))
    args.seeds = args.seeds or default_seeds(args.quick)
    if args.sigmas is None:
        args.sigmas = [] if args.quick else [3.0, 5.0, 7.0]
    args.epochs = args.epochs or (1 if args.quick else None)
    folder = "accuracy" if args.task == OUTLINE else f"accuracy_{args.task}"
    args.runs = args.runs or ROOT / "runs" / (folder + "_quick" * args.quick)
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    share_threads(args.jobs)  # those of each run, which the results state
    device = complete(args)
    args.coco_path = args.coco_path or shapes(args.task, args.quick)
    added, sources = read_added(args)
    runs = [run for run in plan(args) if run not in added]
    train_all([run.demo(args.runs) for run in runs], args.jobs, args.device, args.coco_path)
    records = summarise(added | {run: run.result(args.runs) for run in runs})
    print("\n" + table(records))
    seeds = sorted({seed for record in records for seed in record["seeds"]})
    caption = f"{args.coco_path.name}, {named_seeds(seeds)}; dots and bands: single seeds; {describe(machine(device))}"
    content = {"units": {"AP": "%", "AP50": "%"}, "added": sources, "results": records}
    variant = [args.task] * (args.task != OUTLINE)
    save(NAME, args, argv, content, figure=draw(records, args.curves, caption), variant=variant)


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

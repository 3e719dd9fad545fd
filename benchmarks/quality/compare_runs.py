"""The runs of ``compare.py``: what is trained and for how long, what came out of it, and results of other machines."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.lib.cli import ROOT, describe
from benchmarks.lib.demos import Demo
from benchmarks.lib.methods import METHODS, SHARES, Method
from common.errors import UserError
from common.evaluation.coco import METRICS

NAME = "quality/compare"
EPOCHS, MINUTES = KINDS = ("epochs", "minutes")  # what runs have as many of
DROP = 0.7  # part of the epochs after which the learning rates are divided by 10
# In what the demos differ: the recipe, layers, and queries; and rates, which Sparse DETR multiplies with the root of the batch's
# part of 16 images, here by 1/2.
RECIPE = ("--batch_size", "4", "--lr", "2e-4", "--lr_backbone", "3e-4", "--eval_every", "1")
LAYERS = ("--enc_layers", "3", "--dec_layers", "3")
QUERIES = ("--num_queries", "40")
OWN = {
    "Anchor-DETR-ENACT": ("--num_query_position", "40", "--num_query_pattern", "1"),
    "Sparse-DETR": (*QUERIES, "--lr", "4e-4", "--lr_backbone", "6e-4"),
    "PnP-DETR": (*QUERIES, "--eval_ratios", *SHARES.values()),
}


def drop_epoch(epochs: int) -> int:
    """The epochs before the drop of the learning rates."""
    return max(1, round(DROP * epochs))


def training_options(method: Method, seed: int, epochs: int) -> tuple[str, ...]:
    """Those of a run, beside ``--demo`` and the number of epochs."""
    schedule = ("--lr_drop", str(drop_epoch(epochs)), "--seed", str(seed))
    return (*method.options, *RECIPE, *LAYERS, *OWN.get(method.detector, QUERIES), *schedule)


class Key(NamedTuple):
    """Which run a result is of: the method's name, whether its epochs or its minutes are those of all, and the machine."""

    method: str
    seed: int
    kind: str
    machine: str


@dataclass(frozen=True)
class Result:
    """What counts of a run: AP and AP50 in % after every epoch, and the seconds that each was trained."""

    AP: tuple[float, ...]
    AP50: tuple[float, ...]
    train_seconds: tuple[float, ...]

    @property
    def epochs(self) -> int:
        return len(self.AP)

    @property
    def minutes(self) -> list[float]:
        """Of training until the end of every epoch."""
        return [seconds / 60 for seconds in accumulate(self.train_seconds)]


Results = dict[Key, Result]


@dataclass(frozen=True)
class Run:
    """A training run of the methods of one model."""

    methods: tuple[Method, ...]
    seed: int
    epochs: int
    kind: str

    def demo(self, root: Path) -> Demo:
        """The run itself, kept below ``root``."""
        method = self.methods[0]
        folder = root / method.slug / f"epochs{self.epochs}-seed{self.seed}"
        return Demo(method.detector, training_options(method, self.seed, self.epochs), self.epochs, folder)

    def results(self, root: Path, machine: str) -> Results:
        """Of every method, when it is done."""
        records = self.demo(root).records()
        log, results = [records[epoch] for epoch in range(self.epochs)], {}
        times = tuple(record["train_seconds"] for record in log)
        for method in self.methods:
            name = f"ratio_{float(method.share[1]):g}_" if method.share else ""
            numbers = [record[f"test_{name}coco_eval_bbox"] for record in log]
            AP, AP50 = (tuple(100 * row[METRICS.index(metric)] for row in numbers) for metric in ("AP", "AP50"))
            results[Key(method.name, self.seed, self.kind, machine)] = Result(AP, AP50, times)
        return results


def plan(groups: Sequence[tuple[Method, ...]], args: Namespace, known: Results, machine: str) -> list[Run]:
    """The runs of equal epochs that nothing is known of on this machine, those of one seed after those of another."""
    return [
        Run(group, seed, args.epochs, EPOCHS)
        for seed in args.seeds
        for group in groups
        if any(Key(method.name, seed, EPOCHS, machine) not in known for method in group)
    ]


def plan_within(groups: Sequence[tuple[Method, ...]], args: Namespace, known: Results, machine: str) -> list[Run]:
    """The runs of equal minutes that nothing is known of on this machine, as long as the runs of equal epochs tell.

    The first seed's tell for all, so that seeds that are added later do not change the others' number of epochs. A model of which
    no epoch fits has none.
    """
    runs = []
    for seed in args.seeds:
        for group in groups:
            epochs = epochs_within(known[Key(group[0].name, args.seeds[0], EPOCHS, machine)], args.minutes)
            if epochs and any(Key(method.name, seed, MINUTES, machine) not in known for method in group):
                runs.append(Run(group, seed, epochs, MINUTES))
    return runs


def epochs_within(result: Result, minutes: float) -> int:
    """How many epochs as long as this run's, of which the median counts, take at most so many minutes."""
    return int(60 * minutes / median(result.train_seconds))


def as_records(results: Mapping[Key, Result]) -> list[dict[str, Any]]:
    """For the JSON file."""
    return [key._asdict() | vars(result) for key, result in results.items()]


def read_added(args: Namespace) -> tuple[Results, dict[str, dict[str, float]], list[dict[str, str]]]:
    """Of the files of ``args.add``: their runs, the multiply-adds of their methods' models, and of what command, date and machine
    they are.

    Raises:
        UserError: a file is not this script's, of another dataset, or of runs of another length.
    """
    results, gflops, sources = {}, {}, []
    for path in args.add:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = {_key(run): _result(run) for run in content["runs"]}
            counts = {row["name"]: {part: float(n) for part, n in row["gflops"].items()} for row in content["results"]}
            gflops |= {key.method: counts[key.method] for key in found if found[key._replace(kind=EPOCHS)]}
            settings = {name: float(content["settings"][name]) for name in ("epochs", "minutes")}
            trained_on = ROOT / content["settings"]["coco_path"]
            source = {key: content[key] for key in ("command", "date")} | {"machine": describe(content["machine"])}
            sources += [*content.get("added", []), source]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"--add {path} is not a result of benchmarks/{NAME}.py: pass a file that it has written") from error
        if trained_on.resolve() != args.coco_path.resolve():
            raise UserError(f"--add {path} was trained on {trained_on}, not on {args.coco_path}: name one dataset")
        for name, value in settings.items():
            if value != getattr(args, name):
                raise UserError(f"--add {path} has --{name} {value:g}, not {getattr(args, name):g}: pass --{name} {value:g}")
        results |= found
    return results, gflops, sources


def _key(run: Mapping[str, Any]) -> Key:
    """Of a record; ValueError where there is no such method or kind."""
    if run["method"] not in {method.name for method in METHODS} or run["kind"] not in KINDS:
        raise ValueError(f"{run['method']}, {run['kind']}")
    return Key(run["method"], int(run["seed"]), run["kind"], str(run["machine"]))


def _result(run: Mapping[str, Any]) -> Result:
    """Of a record; ValueError where its epochs differ or are none."""
    AP, AP50, times = (tuple(map(float, run[name])) for name in ("AP", "AP50", "train_seconds"))
    if not len(AP) == len(AP50) == len(times) > 0:
        raise ValueError(f"{run['method']}, {len(AP)} epochs")
    return Result(AP, AP50, times)

"""All methods on the built-in shapes: AP after equal epochs and in equal time of training, beside what they cost and publish.

    python benchmarks/quality/compare.py --jobs 2                      # 78 demos, on two cores some six hours
    python benchmarks/quality/compare.py --seeds 42 --detector DETR-ENACT Sparse-DETR
    python benchmarks/quality/compare.py --quick

The methods are those of ``lib/methods.py``. A run is ``python <folder>/main.py --demo ...``: the same images of 96 pixels, batches
of 4, ResNet-10 with random weights, 3 encoder and 3 decoder layers of 128 features, 40 queries, and AdamW with the same rates for
all. What makes a method is its own: losses, queries, pre-norm of DETR and PnP-DETR, and of Deformable DETR, Sparse DETR and
DAC-DETR the lower rate of sampling offsets and the features of strides 8 to 32, where the others see stride 8. PnP-DETR is trained
once for its three shares of polled pixels.

**Equal epochs**: ``--epochs`` for all, the rates divided by 10 after 0.7 of them. **Equal time**: what a run has reached somewhere
on its way does not tell what it can in that time, since AP jumps after the drop. So every method is trained a second time, for as
many epochs as fit into ``--minutes`` by the seconds of its first kind of run (the median epoch of the first seed), with a drop
of its own after 0.7 of these; where not one epoch fits, its cell is empty. Time is that of the training steps; evaluation is not in
it. It holds for a machine that has nothing else to do than these runs, with the same ``--jobs`` for all.

Runs are kept in ``--runs``: finished ones are not repeated, interrupted ones go on, so that seeds can be added later. ``--add``
merges the results of another machine: AP after equal epochs is the mean over all runs, while times, and AP in equal time, are each
machine's own, in columns of their own. ``--cost`` adds the columns of ``speed/compare.py``, of one machine or several. The spread
is the standard deviation over the runs, which fewer than two do not have.

**Encoder MFLOPs** are counted as there, of the first seed's models on 8 validation images. Published AP is that on COCO of the
authors' training, in a column of its own: it tells what the method is known for, and cannot be compared with the shapes'.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.cli import ROOT, build_parser, complete, describe, main, named_after, save
from benchmarks.lib.demos import share_threads, train_all
from benchmarks.lib.flops import BACKBONE, DECODER, ENCODER, depends_on_data, multiply_adds, three_parts
from benchmarks.lib.measure import machine
from benchmarks.lib.methods import METHODS, Method, chosen, models
from benchmarks.lib.models import shapes
from benchmarks.lib.seeds import default_seeds, named_seeds, spread, with_spread
from benchmarks.lib.tables import markdown
from benchmarks.quality.compare_chart import draw_flops, draw_time
from benchmarks.quality.compare_runs import (
    EPOCHS,
    MINUTES,
    NAME,
    Results,
    Run,
    as_records,
    plan,
    plan_within,
    read_added,
)
from benchmarks.speed.compare import COLUMNS as COST_COLUMNS
from benchmarks.speed.compare import NAME as COST_NAME
from common.cli.arguments import number
from common.cli.restore import restore
from common.data.loading import build_dataset, collate
from common.errors import UserError
from tools.detectors import DETECTORS

IMAGES = 8  # that multiply-adds are the mean of


def train(runs: Sequence[Run], args: Namespace, here: str) -> Results:
    """What comes out of them."""
    train_all([run.demo(args.runs) for run in runs], args.jobs, args.device, args.coco_path)
    return {key: result for run in runs for key, result in run.results(args.runs, here).items()}


def count(group: Sequence[Method], args: Namespace) -> dict[str, dict[str, float]]:
    """Name -> multiply-adds of the parts in 1e9, mean over images, of a model that was trained here."""
    found = restore(DETECTORS[group[0].detector], Run(tuple(group), args.seeds[0], args.epochs, EPOCHS).demo(args.runs).checkpoint)
    dataset = build_dataset(args.coco_path, "val", found.args.image_size, 0)
    batches = [collate([dataset[i]]).to(torch.device("cpu")) for i in range(min(1 if args.quick else IMAGES, len(dataset)))]
    depends, gflops = depends_on_data(found.args), {}
    for method in group:
        if method.share:
            found.model.sample_topk_ratio = float(method.share[1])
        sizes: dict[Any, dict[str, float]] = {}
        keys = [i if depends else batch.images.shape for i, batch in enumerate(batches)]
        for key, batch in zip(keys, batches):
            if key not in sizes:
                sizes[key] = three_parts(multiply_adds(found.model, batch.images, batch.mask, data_dependent=depends))
        gflops[method.name] = {part: 1e-9 * mean(sizes[key][part] for key in keys) for part in (BACKBONE, ENCODER, DECODER)}
    return gflops


def summarise(results: Results, methods: Sequence[Method], gflops: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """A record per method: AP and AP50 (in %) after equal epochs, and ``machines``, what each took and reached in equal time."""
    records = []
    for method in methods:
        own = {key: result for key, result in results.items() if key.method == method.name}
        equal = [result for key, result in own.items() if key.kind == EPOCHS]
        record = {"name": method.name, "detector": method.detector, "options": method.options, "gflops": gflops[method.name]}
        record |= _precision(equal) | {"AP50": mean(result.AP50[-1] for result in equal), "machines": {}}
        record["published"] = vars(method.published) if method.published else None
        for where in dict.fromkeys(key.machine for key in own):
            runs = {kind: [r for key, r in own.items() if (key.kind, key.machine) == (kind, where)] for kind in (EPOCHS, MINUTES)}
            record["machines"][where] = {
                kind: _precision(found) | {"epochs": mean(r.epochs for r in found), "minutes": mean(r.minutes[-1] for r in found)}
                for kind, found in runs.items()
                if found
            }
        records.append(record)
    return records


def _precision(results: Sequence) -> dict[str, Any]:
    """Of the last epochs: the mean, the spread, and the single values."""
    values = [result.AP[-1] for result in results]
    return {"AP": mean(values), "AP_spread": spread(values), "AP_runs": values}


def table(records: Sequence[Mapping[str, Any]], methods: Sequence[Method], args: Namespace, costs: Mapping[str, Mapping]) -> str:
    """In markdown; below it the machines, which its columns name by numbers.

    Args:
        costs: machine -> name of a method -> its row of ``speed/compare.py``.
    """
    trained = list(dict.fromkeys(where for record in records for where in record["machines"]))
    numbers = {where: i for i, where in enumerate(dict.fromkeys((*trained, *costs)), start=1)}
    lines = [["method", f"AP, {args.epochs} epoch{'s' * (args.epochs > 1)}", "AP50", "encoder MFLOPs"]]
    for where in trained:
        lines[0] += [f"minutes [{numbers[where]}]", f"AP, {args.minutes:g} minutes [{numbers[where]}]", "epochs"]
    lines[0] += [f"{title} [{numbers[where]}]" for where in costs for title in COST_COLUMNS]
    lines[0].append("published: AP on COCO")
    for record, method in zip(records, methods, strict=True):
        cells = [record["name"], _AP(record), f"{record['AP50']:.1f}", f"{1e3 * record['gflops'][ENCODER]:.3g}"]
        for where in trained:
            found = record["machines"].get(where, {})
            cells.append(f"{found[EPOCHS]['minutes']:.2g}" if EPOCHS in found else "")
            cells += [_AP(found[MINUTES]), f"{found[MINUTES]['epochs']:.3g}"] if MINUTES in found else ["", ""]
        for rows in costs.values():
            cells += [cell(rows[method.name]) if method.name in rows else "" for cell in COST_COLUMNS.values()]
        lines.append([*cells, str(method.published or "")])
    return "\n".join((markdown(lines), "", *(f"[{number}] {where}" for where, number in numbers.items())))


def _AP(numbers: Mapping[str, Any]) -> str:
    return with_spread(numbers["AP"], numbers["AP_spread"])


def read_costs(paths: Sequence[Path]) -> dict[str, dict[str, dict]]:
    """Machine -> name of a method -> its row; UserError where a file is not one of ``speed/compare.py``."""
    costs: dict[str, dict[str, dict]] = {}
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows = {row["name"]: row for row in content["results"]}
            for row in rows.values():
                for cell in COST_COLUMNS.values():
                    cell(row)
            where = content["measured_on"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"--cost {path} is not a result of benchmarks/{COST_NAME}.py: pass one that it has written") from error
        costs[where] = costs.get(where, {}) | rows
    return costs


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__, detectors=DETECTORS)
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", metavar="SEED", help="default: 42 43 44; quick: 42")
    parser.add_argument("--epochs", type=number(int, 1), help="of the runs of equal epochs (default: 8; quick: 1)")
    minutes = "of training of the runs of equal time (default: 8; quick: 0.04)"
    parser.add_argument("--minutes", type=number(float, 0, exclusive=True), help=minutes)
    parser.add_argument("--coco_path", type=Path, help="train on this dataset in COCO's format (default: the built-in shapes)")
    parser.add_argument("--jobs", type=number(int, 1), help="runs at once, which share the cores (default: 1; quick: 2)")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/compare; quick: runs/compare_quick)")
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="JSON", help="results whose runs count as well")
    parser.add_argument("--cost", type=Path, nargs="+", default=[], metavar="JSON", help=f"results of {COST_NAME}.py for the table")
    args = parser.parse_args(argv)
    args.seeds = args.seeds or default_seeds(args.quick)
    args.epochs = args.epochs or (1 if args.quick else 8)
    args.minutes = args.minutes or (0.04 if args.quick else 8.0)
    args.jobs = args.jobs or (2 if args.quick else 1)
    args.runs = args.runs or ROOT / ("runs/compare_quick" if args.quick else "runs/compare")
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    share_threads(args.jobs)  # those of each run, which the results state
    here = describe(machine(complete(args)))
    args.coco_path = args.coco_path or shapes(quick=args.quick)
    costs = read_costs(args.cost)
    results, gflops, sources = read_added(args)
    groups = models(chosen(args))
    results |= train(plan(groups, args, results, here), args, here)
    results |= train(plan_within(groups, args, results, here), args, here)
    for group in tqdm(groups, desc="multiply-adds", leave=False):
        if any(method.name not in gflops for method in group):
            gflops |= count(group, args)
    methods = [method for method in METHODS if any(key.method == method.name for key in results)]
    records = summarise(results, methods, gflops)
    text = table(records, methods, args, costs)
    print("\n" + text)
    seeds = sorted({key.seed for key in results})
    caption = f"{args.coco_path.name}, {named_seeds(seeds)}; {here}"
    units = {"AP": "%", "AP50": "%", "train_seconds": "s", "gflops": "1e9 multiply-adds/image"}
    content = {"units": units, "added": sources, "runs": as_records(results), "results": records, "table": text}
    time = draw_time(results, methods, here, args.minutes, caption)
    flops = draw_flops(records, methods, args.epochs, caption)
    save(NAME, args, argv, content, further={"time": time, "flops": flops}, variant=named_after(args.detector, DETECTORS))


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

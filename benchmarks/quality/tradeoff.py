"""PnP-DETR's trade-off: precision, multiply-adds and time of one model over the share of pixels that it polls.

    python benchmarks/quality/tradeoff.py --jobs 2     # six demos, on two cores about 40 minutes
    python benchmarks/quality/tradeoff.py --quick

The data are the built-in shapes, which everybody has. For every seed the demo is trained twice, as PnP-DETR (``--sampling pnp``:
each step polls another share) and as the plain DETR behind it (``--sampling none``); PnP-DETR's one checkpoint is then evaluated
at every one of ``--ratios``. Runs are kept in ``--runs``: finished ones are not repeated, interrupted ones go on, so that seeds can
be added later. The spread is the standard deviation over the seeds, which fewer than two do not have.

MFLOPs, one multiply-add being one, and the time of the model alone are those of an inference of the first validation image, without
gradients, by the first seed's models; times are medians of ``--repeats`` passes in turn. They are the demo's: a small network on
144 pixels, where the pooled vectors weigh more than at the paper's size, for which ``benchmarks/speed/sampling.py`` has the cost.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.charts import BLUE, GREY, VERMILION
from benchmarks.lib.cli import ROOT, build_parser, complete, describe, main, save
from benchmarks.lib.demos import Demo, run_quietly, share_threads, train_all
from benchmarks.lib.flops import ENCODER, SAMPLER, multiply_adds
from benchmarks.lib.measure import machine, seconds
from benchmarks.lib.models import shapes
from benchmarks.lib.seeds import default_seeds, named_seeds, over_seeds, with_spread
from common.cli.arguments import number
from common.cli.restore import restore
from common.data.loading import build_dataset, collate
from common.evaluation.coco import METRICS
from pnp_detr.options import ratio
from tools.detectors import DETECTORS, options

NAME = "quality/tradeoff"
DETECTOR = "PnP-DETR"
PNP, NONE = SAMPLINGS = ("pnp", "none")
ALL = 1.0  # the share of the plain model
WARM_UP = 3  # passes that do not count
METRIC_NAMES = METRICS[:2]


def plan(args: Namespace) -> dict[tuple[str, int], Demo]:
    """The runs: (sampling, seed) -> demo."""
    epochs = args.epochs or options(DETECTOR, ["--demo"]).epochs
    return {
        (sampling, seed): Demo(
            DETECTOR, ("--sampling", sampling, "--seed", str(seed)), epochs, args.runs / f"{sampling}-seed{seed}"
        )
        for seed in args.seeds
        for sampling in SAMPLINGS
    }


def evaluate(demo: Demo, args: Namespace) -> dict[float, list[float]]:
    """Share -> COCO's 12 numbers, by ``main.py --eval --eval_ratios``."""
    folder = demo.folder / "ratios"
    command = [
        sys.executable,
        str(ROOT / DETECTOR / "main.py"),
        "--eval",
        "--resume",
        str(demo.checkpoint),
        "--device",
        args.device,
    ]
    command += ["--coco_path", str(args.coco_path), "--output_dir", str(folder), "--eval_ratios", *map(str, args.ratios)]
    run_quietly(command, f"the evaluation of {demo.folder}")
    rows = json.loads((folder / "eval.json").read_text(encoding="utf-8"))["evaluations"]
    return {share: row["coco_eval_bbox"] for share, row in zip(args.ratios, rows.values(), strict=True)}


def measure(demos: dict[tuple[str, int], Demo], args: Namespace, device: torch.device) -> dict[float, dict]:
    """Share -> what an inference costs."""
    restored = {sampling: restore(DETECTORS[DETECTOR], demos[sampling, args.seeds[0]].checkpoint) for sampling in SAMPLINGS}
    models = {sampling: found.model for sampling, found in restored.items()}
    batch = collate([build_dataset(args.coco_path, "val", restored[NONE].args.image_size, 0)[0]])
    on_host, on_device = batch.to(torch.device("cpu")), batch.to(device)
    costs, times = {}, {share: [] for share in (*args.ratios, ALL)}
    for share in times:
        model = _with_share(models, share)
        products = multiply_adds(model, on_host.images, on_host.mask, data_dependent=share < ALL)
        encoder = products[SAMPLER] + products[ENCODER]
        costs[share] = {"encoder_mflops": encoder * 1e-6, "mflops": sum(products.values()) * 1e-6}
    for i in tqdm(range(WARM_UP + args.repeats), desc="rounds", leave=False):
        for share, durations in times.items():
            model = _with_share(models, share).to(device).eval()
            with torch.inference_mode():
                duration = seconds(lambda model=model: model(on_device.images, on_device.mask), 1, device)
            durations += [duration] if i >= WARM_UP else []
    return {share: cost | {"seconds": median(times[share])} for share, cost in costs.items()}


def _with_share(models: dict[str, nn.Module], share: float) -> nn.Module:
    if share == ALL:
        return models[NONE]
    models[PNP].sample_topk_ratio = share
    return models[PNP]


def summarise(precisions: dict[float, list[list[float]]], costs: dict[float, dict]) -> list[dict]:
    """A record per share, the plain model's last: AP and AP50 (in %) of every seed, mean and spread; cost, and ratios to plain."""
    records, plain = [], costs[ALL]
    for share, numbers in precisions.items():
        record = {"share": share, "sampling": NONE if share == ALL else PNP}
        for i, metric in enumerate(METRIC_NAMES):
            record |= over_seeds(metric, [100 * n[i] for n in numbers])
        record |= costs[share] | {"ratios": {name: value / plain[name] for name, value in costs[share].items()}}
        records.append(record)
    for record in records:
        record["AP_ratio"] = record["AP"] / records[-1]["AP"] if records[-1]["AP"] else None
    return records


def table(records: list[dict]) -> str:
    lines = [f"{'polled':12}{'AP':>16}{'of plain':>10}{'AP50':>16}{'MFLOPs, encoder':>22}{'MFLOPs':>18}{'ms / image':>18}"]
    for r in records:
        polled = "all (plain)" if r["share"] == ALL else f"{r['share']:.3g}"
        cells = [with_spread(r[metric], r[f"{metric}_spread"]) for metric in METRIC_NAMES]
        part = "" if r["AP_ratio"] is None else f"{r['AP_ratio']:.0%}"
        costs = [f"{r[name] * scale:.4g} {r['ratios'][name]:5.2f}x" for name, scale in COSTS.items()]
        lines.append(f"{polled:12}{cells[0]:>16}{part:>10}{cells[1]:>16}{costs[0]:>22}{costs[1]:>18}{costs[2]:>18}")
    return "\n".join(lines)


COSTS = {"encoder_mflops": 1, "mflops": 1, "seconds": 1e3}


def draw(records: list[dict], caption: str) -> Figure:
    """AP, multiply-adds and time over the share of polled pixels, with the plain model's as lines."""
    figure = Figure(figsize=(8.8, 2.9), dpi=200, layout="constrained")
    precision, products, time = figure.subplots(1, 3)
    *polled, plain = records
    shares = [r["share"] for r in polled]
    for name, colour in (("AP50", VERMILION), ("AP", BLUE)):
        precision.plot(
            shares, [r[name] for r in polled], "o-", color=colour, linewidth=1.3, markersize=4, label=f"PnP-DETR, {name}"
        )
        precision.axhline(plain[name], color=colour, linewidth=0.9, linestyle="--", label=f"plain, {name}")
        for r in polled:
            precision.plot([r["share"]] * len(r[f"{name}_seeds"]), r[f"{name}_seeds"], ".", color=colour, alpha=0.4, markersize=4)
    precision.set_ylim(0)
    precision.set_title("AP, AP50 (%)", fontsize=9)
    for name, colour, label in (("mflops", GREY, "all"), ("encoder_mflops", BLUE, "sampler and encoder")):
        products.plot(shares, [r["ratios"][name] for r in polled], "o-", color=colour, linewidth=1.3, markersize=4, label=label)
    products.set_title("multiply-adds, ratio to plain", fontsize=9)
    time.plot(shares, [r["ratios"]["seconds"] for r in polled], "o-", color=GREY, linewidth=1.3, markersize=4, label="model")
    time.set_title("time, ratio to plain", fontsize=9)
    for axes in (products, time):
        axes.axhline(1.0, color="0.6", linewidth=0.9, linestyle="--", label="plain")
        axes.set_ylim(0, 1.3)
    for axes in figure.axes:
        axes.set_xlim(0, 1)
        axes.legend(fontsize=7, frameon=False, loc="center right" if axes is precision else "lower right")
        axes.tick_params(labelsize=7.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"share of polled pixels\n{caption}", fontsize=7.5)
    return figure


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__, detectors=[DETECTOR], several=False)
    positive = number(int, 1)
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", metavar="SEED", help="default: 42 43 44; quick: 42")
    parser.add_argument("--ratios", type=ratio, nargs="+", help="default: 0.1 0.2 1/3 0.5 0.65 0.8 0.9; quick: 1/3 0.8")
    parser.add_argument("--coco_path", type=Path, help="train on this dataset in COCO's format (default: the built-in shapes)")
    parser.add_argument("--epochs", type=positive, help="of every run (default: the demo's; quick: 1)")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at once, which share the cores (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, help="passes that are timed (default: 50; quick: 3)")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/tradeoff; quick: runs/tradeoff_quick)")
    args = parser.parse_args(argv)
    args.seeds = args.seeds or default_seeds(args.quick)
    args.ratios = sorted({*(args.ratios or ([1 / 3, 0.8] if args.quick else [0.1, 0.2, 1 / 3, 0.5, 0.65, 0.8, 0.9]))})
    args.epochs = args.epochs or (1 if args.quick else None)
    args.repeats = args.repeats or (3 if args.quick else 50)
    args.runs = args.runs or ROOT / ("runs/tradeoff_quick" if args.quick else "runs/tradeoff")
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    cores = torch.get_num_threads()
    share_threads(args.jobs)
    device = complete(args)
    args.coco_path = args.coco_path or shapes(quick=args.quick)
    demos = plan(args)
    train_all(list(demos.values()), args.jobs, args.device, args.coco_path)
    torch.set_num_threads(cores)
    found = [evaluate(demos[PNP, seed], args) for seed in tqdm(args.seeds, desc="evaluations", leave=False)]
    precisions = {share: [numbers[share] for numbers in found] for share in args.ratios}
    precisions[ALL] = [demos[NONE, seed].log()[demos[NONE, seed].epochs - 1] for seed in args.seeds]
    records = summarise(precisions, measure(demos, args, device))
    print("\n" + table(records))
    caption = f"{args.coco_path.name}, {named_seeds(args.seeds)}; dots: single seeds; {describe(machine(device))}"
    units = {"AP": "%", "AP50": "%", "mflops": "1e6 multiply-adds/image", "seconds": "s/image"}
    save(NAME, args, argv, {"units": units, "results": records}, figure=draw(records, caption))


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

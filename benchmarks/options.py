"""What the speed options of the command line gain: mixed precision, memory format, compilation, buckets, images in memory.

    python benchmarks/options.py --device cpu --batch_size 1      # minutes on two cores
    python benchmarks/options.py --device cpu --quick

``--amp bf16``, ``--channels_last`` and ``--compile`` change how a step is computed: the detectors of the paper, with random
weights, train and infer with each of them and without, on the same images and each in a process of its own, as in ``table1.py``;
a first step, which compiles, does not count. ``--bucket`` changes which images share a batch: its result is the share of padding
in the batches of an epoch, with the training's own augmentation on images of COCO's sizes. ``--cache_mode`` changes where the
files come from: its result is the number of images per second that one process reads and augments, of the built-in shapes, whose
files are in the system's cache both times. So its gain is the least to be had; a slow or remote disk has more.
"""

import sys
import time
from argparse import Namespace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import RandomSampler, Sampler
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common_charts import BLUE, VERMILION
from benchmarks.common_cli import build_parser, describe, main, save, settle
from benchmarks.common_measure import machine
from benchmarks.common_models import shapes
from benchmarks.table1 import measure
from benchmarks.workload import add_workload_options, image_sizes, settle_workload
from common.data import build_dataset
from common.errors import UserError
from common.sampling import BucketSampler
from common.transforms import boxes_of, training_transforms

NAME = "options"
VARIANTS = {"plain": [], "bf16": ["--amp", "bf16"], "channels_last": ["--channels_last"], "compile": ["--compile"]}
PASSES = ("train", "inference")
REDUCED = 80  # shortest side at which padding is measured: it is a share, and small images are made quickly


def measure_steps(args: Namespace) -> list[dict]:
    """A row of table 1 with each variant, and its ratios to the plain one."""
    rows = []
    for detector, variant in tqdm([(d, v) for d in args.detector for v in ("plain", *args.variants)], desc="rows", leave=False):
        row = {"option": variant} | measure(args, detector, VARIANTS[variant], "fused")
        if variant == "plain":
            plain = row
        if "failed" not in row | plain:
            rows.append(row | {"ratios": {kind: row[kind] / plain[kind] for kind in PASSES}})
    if not rows:
        raise UserError("no row fits into the memory: pass a smaller --batch_size")
    return rows


def padding_share(sizes: list[tuple[int, int]], sampler: Sampler[int], batch_size: int) -> float:
    """Share of padding in the batches of an epoch.

    Args:
        sizes: width and height of the images.
        sampler: their order.
        batch_size: images per batch; an incomplete last one is left out.
    """
    transforms = training_transforms(REDUCED)
    torch.manual_seed(0)
    shapes = []
    for i in sampler:
        width, height = sizes[i]
        target = {"boxes": boxes_of(torch.zeros(0, 4), height, width), "labels": torch.zeros(0, dtype=torch.long)}
        shapes.append(transforms(Image.new("RGB", sizes[i]), target)[0].shape[1:])
    pixels = padded = 0
    for start in range(0, len(shapes) - batch_size + 1, batch_size):
        batch = shapes[start : start + batch_size]
        pixels += sum(h * w for h, w in batch)
        padded += batch_size * max(h for h, _ in batch) * max(w for _, w in batch)
    return 1 - pixels / padded


def measure_padding(args: Namespace) -> dict[str, float]:
    """The share of padding without and with ``--bucket``."""
    batch_size = args.batch_size if (args.batch_size or 1) > 1 else 8
    sizes = image_sizes(batch_size * (50 if args.quick else 400), args.coco_path, None)
    torch.manual_seed(0)
    bucket = BucketSampler([w / h for w, h in sizes], batch_size, 0, 0, 1)
    shares = {"plain": padding_share(sizes, RandomSampler(sizes), batch_size), "--bucket": padding_share(sizes, bucket, batch_size)}
    return {"batch_size": batch_size, "images": len(sizes)} | shares


def measure_loading(args: Namespace) -> dict[str, float]:
    """Images per second without and with ``--cache_mode``."""
    count = 100 if args.quick else 1000
    speed = {}
    for name in ("warm-up", "plain", "--cache_mode"):
        dataset = build_dataset(shapes(), "train", 96, 0)
        if name == "--cache_mode":
            dataset.keep_files(progress=False)
        start = time.perf_counter()
        for i in tqdm(range(count), desc=f"loading, {name}", leave=False):
            dataset[i]
        speed[name] = count / (time.perf_counter() - start)
    return {"plain": speed["plain"], "--cache_mode": speed["--cache_mode"]}


def table(rows: list[dict], padding: dict[str, float], loading: dict[str, float]) -> str:
    lines = [f"{'detector':26}{'option':18}{'training (s/image)':>22}{'inference (s/image)':>22}"]
    for row in rows:
        cells = "".join(f"{row[kind]:15.4g}{row['ratios'][kind]:6.2f}x" for kind in PASSES)
        lines.append(f"{row['detector']:26}{row['option']:18}{cells}")
    lines.append(f"\nshare of padding, batches of {padding['batch_size']}: {100 * padding['plain']:.1f} %, ")
    lines[-1] += f"with --bucket {100 * padding['--bucket']:.1f} %"
    ratio = loading["--cache_mode"] / loading["plain"]
    lines.append(
        f"images loaded per second: {loading['plain']:.0f}, with --cache_mode {loading['--cache_mode']:.0f} ({ratio:.2f}x)"
    )
    return "\n".join(lines)


def draw(rows: list[dict], caption: str) -> Figure:
    """A pair of bars per option and detector, relative to the plain step."""
    detectors = list(dict.fromkeys(row["detector"] for row in rows))
    figure = Figure(figsize=(2.8 * len(detectors) + 0.8, 2.6), dpi=200, layout="constrained")
    for axes, detector in zip(figure.subplots(1, len(detectors), sharey=True, squeeze=False)[0], detectors):
        shown = [row for row in rows if row["detector"] == detector]
        for kind, colour, shift in zip(PASSES, (BLUE, VERMILION), (-0.2, 0.2)):
            places = [i + shift for i in range(len(shown))]
            values = [row["ratios"][kind] for row in shown]
            axes.bar(places, values, 0.38, color=colour, label=kind, alpha=0.85)
            for x, value in zip(places, values):
                axes.text(x, value + 0.02, f"{value:.2f}", ha="center", fontsize=6.5)
        axes.axhline(1, color="0.5", linewidth=0.7, zorder=0)
        axes.set_xticks(range(len(shown)), [row["option"] for row in shown], fontsize=7.5)
        axes.set_title(detector.removesuffix("-ENACT"), fontsize=9, loc="left")
        axes.tick_params(axis="y", labelsize=7.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("time, ratio to plain", fontsize=8)
    figure.axes[0].set_ylim(0, 1.15 * max(1.1, *(row["ratios"][kind] for row in rows for kind in PASSES)))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=7)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__)
    variants = [*VARIANTS][1:]
    parser.add_argument("--variants", choices=variants, nargs="*", help="default: all; quick: all but compile")
    add_workload_options(parser)
    args = parser.parse_args(argv)
    if args.variants is None:
        args.variants = variants[:-1] if args.quick else variants
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = settle(args)
    settle_workload(args)
    rows = measure_steps(args)
    padding, loading = measure_padding(args), measure_loading(args)
    print("\n" + table(rows, padding, loading))
    content = {"units": dict.fromkeys(PASSES, "s") | {"padding": "share", "loading": "images/s"}, "results": rows}
    save(NAME, args, argv, content | {"padding": padding, "loading": loading}, draw(rows, describe(machine(device))))


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

"""What the options of the command line gain in speed, against its defaults; and how fast a worker prepares images.

    python benchmarks/speed/options.py --device cpu --batch_size 1      # minutes on two cores
    python benchmarks/speed/options.py --device cpu --quick

``--amp bf16``, ``--no-channels_last`` and ``--compile`` change how a step is computed: the detectors of the paper, with random
weights, train and infer with each of them and without, on the same images and each in a process of its own, as in ``table1.py``;
a first step, which compiles, does not count. ``--bucket`` changes which images share a batch: its result is the share of padding
in the batches of an epoch, with the training's own augmentation on images of COCO's sizes.

The input pipeline is that of one worker of the data loader: one process, one thread, which reads JPEG files of 640 x 480 pixels
from the system's cache and transforms them for training, with the recipe's augmentation, and for evaluation. A GPU waits for its
data where it takes more images per second than ``--num_workers`` times that.
"""

import json
import sys
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import Sampler
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.charts import BLUE, VERMILION
from benchmarks.lib.cli import build_parser, complete, describe, main, save
from benchmarks.lib.measure import machine, seconds
from benchmarks.lib.workload import add_workload_options, complete_workload, draw_picture, image_sizes
from benchmarks.speed.table1 import measure
from common.cli.arguments import number
from common.data.coco import CocoDetection
from common.data.loading import build_dataset
from common.data.sampling import BucketSampler, ShuffledSampler
from common.data.shapes_drawing import CLASSES
from common.data.transforms import boxes_of, training_transforms
from common.errors import UserError

NAME = "speed/options"
DEFAULT = "default"
VARIANTS = {"bf16": ["--amp", "bf16"], "no-channels_last": ["--no-channels_last"], "compile": ["--compile"]}
PASSES = ("train", "inference")
REDUCED = 80  # shortest side at which padding is measured: it is a share, and small images are made quickly
WIDTH, HEIGHT = 640, 480  # of the images that a worker prepares: COCO's most frequent size
QUALITY = 90  # of their JPEG files
SPLITS = {"train": "training", "val": "evaluation"}


def measure_steps(args: Namespace) -> list[dict]:
    """A row of table 1 with each variant, and its ratios to the default."""
    rows = []
    for detector, variant in tqdm([(d, v) for d in args.detector for v in (DEFAULT, *args.variants)], desc="rows", leave=False):
        row = {"option": variant} | measure(args, detector, VARIANTS.get(variant, []), "fused")
        if variant == DEFAULT:
            default = row
        if "failed" not in row | default:
            rows.append(row | {"ratios": {kind: row[kind] / default[kind] for kind in PASSES}})
    if not rows:
        raise UserError("no row fits into the memory: pass a smaller --batch_size")
    return rows


def padding_share(sizes: list[tuple[int, int]], sampler: Sampler[tuple[int, int]], batch_size: int) -> float:
    """Share of padding in the batches of an epoch.

    Args:
        sizes: width and height of the images.
        sampler: their order, as (epoch, index).
        batch_size: images per batch; an incomplete last one is left out.
    """
    transforms = training_transforms(REDUCED)
    torch.manual_seed(0)
    shapes = []
    for _, i in sampler:
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
    samplers = {
        DEFAULT: ShuffledSampler(len(sizes), seed=0, rank=0, world_size=1),
        "--bucket": BucketSampler([w / h for w, h in sizes], batch_size, seed=0, rank=0, world_size=1),
    }
    shares = {name: padding_share(sizes, sampler, batch_size) for name, sampler in samplers.items()}
    return {"batch_size": batch_size, "images": len(sizes)} | shares


def write_pictures(folder: Path, count: int) -> None:
    """A dataset in COCO's layout whose two splits have the same pictures of shapes."""
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for i in range(count):
        picture, objects = draw_picture(i, WIDTH, HEIGHT)
        name = f"{i}.jpg"
        images.append({"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT})
        annotations += [known | {"id": len(annotations) + k, "image_id": i} for k, known in enumerate(objects)]
        for split in SPLITS:
            (folder / f"{split}2017").mkdir(exist_ok=True)
            picture.save(folder / f"{split}2017" / name, quality=QUALITY)
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    content = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    for split in SPLITS:
        (folder / "annotations" / f"instances_{split}2017.json").write_text(content)


def measure_loading(args: Namespace) -> dict[str, Any]:
    """Images per second, and seconds per image, that one worker reads and transforms: medians over the epochs."""
    count, epochs = (8, 2) if args.quick else (100, 5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker of the data loader
    speeds = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_pictures(Path(folder), count)
            for split, name in SPLITS.items():
                dataset = build_dataset(Path(folder), split, args.image_size, seed=0)
                dataset[0]  # what the first image alone needs
                times = []
                for epoch in tqdm(range(epochs), desc=f"loading for {name}", leave=False):
                    times.append(seconds(partial(_read_all, dataset, epoch), 1, torch.device("cpu")) / count)
                speeds[name] = {"images_per_second": 1 / median(times), "seconds_per_image": median(times), "rounds_s": times}
    finally:
        torch.set_num_threads(threads)
    return {"images": count, "image_size": args.image_size} | speeds


def _read_all(dataset: CocoDetection, epoch: int) -> None:
    for i in range(len(dataset)):
        dataset[epoch, i]


def table(rows: list[dict], padding: dict[str, float], loading: dict[str, Any]) -> str:
    lines = [f"{'detector':26}{'option':18}{'training (s/image)':>22}{'inference (s/image)':>22}"]
    for row in rows:
        cells = "".join(f"{row[kind]:15.4g}{row['ratios'][kind]:6.2f}x" for kind in PASSES)
        lines.append(f"{row['detector']:26}{row['option']:18}{cells}")
    shares = f"{padding[DEFAULT]:.1%}, with --bucket {padding['--bucket']:.1%}"
    lines.append(f"\nshare of padding in batches of {padding['batch_size']}: {shares}")
    lines.append(f"images per second and worker, JPEG files of {WIDTH} x {HEIGHT} pixels to --image_size {loading['image_size']}:")
    for name in SPLITS.values():
        speed = loading[name]
        lines.append(f"  {name:12}{speed['images_per_second']:8.1f} images/s{1e3 * speed['seconds_per_image']:8.2f} ms/image")
    return "\n".join(lines)


def draw(rows: list[dict], caption: str) -> Figure:
    """A pair of bars per option and detector, relative to the default."""
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
    figure.axes[0].set_ylabel("time, ratio to the default", fontsize=8)
    figure.axes[0].set_ylim(0, 1.15 * max(1.1, *(row["ratios"][kind] for row in rows for kind in PASSES)))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=7)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__)
    variants = [*VARIANTS]
    parser.add_argument("--variants", choices=variants, nargs="*", help="default: all; quick: all but compile")
    add_workload_options(parser)
    image_size = {"type": number(int, 32), "default": 800}
    parser.add_argument("--image_size", **image_size, help="shortest side that a worker prepares (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.variants is None:
        args.variants = variants[:-1] if args.quick else variants
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = complete(args)
    complete_workload(args)
    rows = measure_steps(args)
    padding, loading = measure_padding(args), measure_loading(args)
    print("\n" + table(rows, padding, loading))
    units = dict.fromkeys(PASSES, "s/image") | {"padding": "share of the pixels"}
    content = {"units": units, "results": rows, "padding": padding, "loading": loading}
    save(NAME, args, argv, content, figure=draw(rows, describe(machine(device))))


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

"""What an inference of each detector costs: parameters, multiply-adds, images per second and peak memory.

    python benchmarks/speed/cost.py --device cpu                # about an hour on two cores
    python benchmarks/speed/cost.py --device cpu --no-timing    # parameters and multiply-adds alone, some minutes
    python benchmarks/speed/cost.py --quick

The detectors have their papers' options and random weights, as with pretrained ones: batch norm is a constant, stem and first stage
are not trained. The images are pictures of shapes of COCO's sizes, resized as in evaluation, one at a time.

**Parameters** in millions: all; those that are trained; and of these those that detect, without the heads behind encoder layers,
which only training uses: the published numbers of Sparse DETR leave them out.

**GFLOPs** as papers count them, one multiply-add being one: products of matrices, convolutions, and the samples of deformable
attention, four per number; norms, which some count, would be 0.2 % more. They are the mean over ``--images`` images, counted once
per size. "sampler" is PnP-DETR's; "encoder" is what else is between backbone and decoder: input projection, clustering, scoring,
proposals. "heads" holds those of proposals, too. With ENACT they depend on the number of clusters, hence on the weights, which are
random here: those of a trained model differ. The published numbers of Deformable DETR and Sparse DETR are those of other images,
and hold 2.4 G for boxes of all tokens in the rows with proposals: here an inference computes those of the queries alone.

**Times** are those of the model alone, without loading and post-processing: medians of ``--repeats`` passes over the first image,
and over a batch of four times the same. **Memory** is the peak of a pass over the image, beyond image and weights, see
``lib/measure.py``.
"""

import sys
from argparse import BooleanOptionalAction, Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.charts import BLUE, GREEN, GREY, PURPLE, VERMILION
from benchmarks.lib.cli import build_parser, complete, describe, main, named_after, save
from benchmarks.lib.flops import PARTS, count_parameters, depends_on_data, multiply_adds
from benchmarks.lib.measure import machine, peak_memory, seconds
from benchmarks.lib.methods import METHODS
from benchmarks.lib.tables import markdown
from benchmarks.lib.workload import COCO_CLASSES, QUICK, build_batches, calibrate, image_sizes, size
from common.cli.arguments import number
from common.models.model import DetectionModel
from common.models.speed import set_tf32, speed_up
from tools.detectors import CLUSTERED, DETECTORS, options

NAME = "speed/cost"
VARIANTS = {  # detector -> name -> options
    "Sparse-DETR": {method.name: [*method.options] for method in METHODS if method.detector == "Sparse-DETR"},
    "PnP-DETR": {
        f"PnP-DETR, {share}{name}": ["--sample_topk_ratio", value, *argv]
        for name, argv in {"": [], ", region": ["--clustering", "region"]}.items()
        for share, value in {"1/3": str(1 / 3), "0.5": "0.5", "0.8": "0.8"}.items()
    },
}
PUBLISHED = {  # millions of trainable parameters without the encoder's heads, and GFLOPs (README of Sparse DETR)
    "Deformable DETR": (39.8, 172.9),
    "Deformable DETR, top-k & BBR": (40.8, 177.3),
    "Sparse DETR, \u03c1 = 0.1": (40.9, 105.4),
}
BATCH_SIZES = (1, 4)
REPEATS = {"cuda": (300, 5), "cpu": (20, 2)}  # passes, and those before them that do not count
COLOURS = dict(zip(PARTS, (GREY, PURPLE, BLUE, GREEN, VERMILION)))


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__, detectors=DETECTORS)
    positive = number(int, 1)
    parser.add_argument("--images", type=positive, help="that GFLOPs are the mean of (default: 100; quick: 2)")
    parser.add_argument("--coco_path", type=Path, help="take the images' sizes from this dataset's training set")
    parser.add_argument("--sizes", type=size, nargs="+", metavar="WxH", help="these images in turn, before they are resized")
    parser.add_argument("--repeats", type=positive, help="passes that are timed (default: 300 on a GPU, 20 on a CPU; quick: 1)")
    parser.add_argument("--timing", action=BooleanOptionalAction, default=True, help="measure times and memory, too (default: on)")
    args = parser.parse_args(argv)
    args.images = args.images or (2 if args.quick else 100)
    return args


def variants(detector: str) -> dict[str, list[str]]:
    """The rows of a detector: their names and options."""
    if detector in CLUSTERED:
        name = detector.removesuffix("-ENACT").replace("-", " ")
        return {f"{name}, {clustering}": ["--clustering", clustering] for clustering in ("none", "region")}
    return VARIANTS.get(detector, {detector: []})


def build_model(detector: str, recipe: Namespace, device: torch.device) -> DetectionModel:
    """With random weights, in evaluation, as the command line would compute it."""
    torch.manual_seed(recipe.seed)
    model = DETECTORS[detector].build_model(recipe, COCO_CLASSES, False).to(device)
    calibrate(model, device)
    return speed_up(model, DETECTORS[detector].compiled, recipe, device).eval()


def measure(args: Namespace, detector: str, name: str, argv: list[str], device: torch.device) -> dict:
    """One row."""
    recipe = options(detector, ["--device", args.device, *(QUICK if args.quick else []), *argv])
    model = build_model(detector, recipe, device)
    sizes = image_sizes(args.images, args.coco_path, args.sizes)
    row = {"name": name, "detector": detector, "options": argv, "parameters": count_parameters(model, recipe)}
    if args.timing:
        row |= time(model, sizes[0], recipe, args, device)
    row["gflops"] = mean_gflops(model, sizes, recipe)
    if name in PUBLISHED and not args.quick:  # whose models are smaller
        row["published"] = dict(zip(("parameters", "gflops"), PUBLISHED[name]))
    return row


def time(model: DetectionModel, image: tuple[int, int], recipe: Namespace, args: Namespace, device: torch.device) -> dict:
    """Seconds and images per second of each batch size, and bytes."""
    set_tf32(bool(recipe.tf32))  # as the command line has it: when evaluating
    images, mask, _ = build_batches([image], 1, recipe.image_size)[0].to(device)
    row: dict = {"seconds_per_image": {}, "images_per_second": {}}
    for batch_size in BATCH_SIZES:
        run = inference(model, images.repeat(batch_size, 1, 1, 1), mask.repeat(batch_size, 1, 1))
        seconds(run, args.warm_up, device)
        duration = median(seconds(run, 1, device) for _ in range(args.repeats)) / batch_size
        row["seconds_per_image"][str(batch_size)] = duration
        row["images_per_second"][str(batch_size)] = 1 / duration
    return row | {"memory": peak_memory(inference(model, images, mask), device)}


def inference(model: DetectionModel, images: Tensor, mask: Tensor) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        model(images, mask)

    return run


def mean_gflops(model: DetectionModel, sizes: list[tuple[int, int]], recipe: Namespace) -> dict[str, float]:
    """Of each part and ``all``, the mean over images of these widths and heights."""
    means = dict.fromkeys(PARTS, 0.0)
    counts = Counter(sizes)
    for image, count in tqdm(counts.items(), desc="sizes", leave=False):
        images, mask, _ = build_batches([image], 1, recipe.image_size)[0].to(torch.device("cpu"))
        for part, products in multiply_adds(model, images, mask, data_dependent=depends_on_data(recipe)).items():
            means[part] += products * 1e-9 * count / len(sizes)
    return means | {"all": sum(means.values())}


def table(rows: list[dict]) -> str:
    """In markdown; what was not measured is left out."""
    timing = any("memory" in row for row in rows)
    lines = [["model", "params (M)", "trained", "detecting", *PARTS, "GFLOPs", "published: params", "GFLOPs"]]
    if timing:
        lines[0] += ["s/image", *(f"images/s, B = {n}" for n in BATCH_SIZES), "memory (MiB)"]
    for row in rows:
        cells = [row["name"], *(f"{n * 1e-6:.2f}" for n in row["parameters"].values())]
        cells += [f"{row['gflops'][part]:.4g}" for part in (*PARTS, "all")]
        cells += [f"{row['published'][key]:g}" if "published" in row else "" for key in ("parameters", "gflops")]
        if timing:
            cells += [f"{row['seconds_per_image']['1']:.3g}", *(f"{row['images_per_second'][str(n)]:.3g}" for n in BATCH_SIZES)]
            cells.append(f"{row['memory'] * 2**-20:.0f}")
        lines.append(cells)
    return markdown(lines)


def draw(rows: list[dict], caption: str) -> Figure:
    """GFLOPs of the parts as one bar, and images per second beside it."""
    timing = any("memory" in row for row in rows)
    figure = Figure(figsize=(9.6 if timing else 7.2, 1.5 + 0.26 * len(rows)), dpi=200, layout="constrained")
    charts = figure.subplots(1, 1 + timing, sharey=True, squeeze=False, width_ratios=(2, 1)[: 1 + timing])[0]
    _draw_gflops(charts[0], rows)
    if timing:
        _draw_speeds(charts[1], rows)
    for axes in charts:
        axes.tick_params(labelsize=7.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(PARTS), frameon=False, fontsize=7)
    charts[0].invert_yaxis()
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def _draw_gflops(axes: Axes, rows: list[dict]) -> None:
    starts = [0.0] * len(rows)
    longest = max(row["gflops"]["all"] for row in rows)
    for part, colour in COLOURS.items():
        widths = [row["gflops"][part] for row in rows]
        axes.barh(range(len(rows)), widths, left=starts, color=colour, label=part, height=0.75)
        for y, width in enumerate(widths):
            if width > 0.06 * longest:
                axes.text(starts[y] + width / 2, y, f"{width:.3g}", ha="center", va="center", fontsize=6.5, color="white")
            starts[y] += width
    for y, row in enumerate(rows):
        published = f" (published: {row['published']['gflops']:g})" if "published" in row else ""
        axes.text(starts[y] + 0.015 * longest, y, f"{starts[y]:.4g}{published}", va="center", fontsize=6.5)
    axes.set_xlim(0, longest * (1.35 if any("published" in row for row in rows) else 1.1))
    axes.set_xlabel("GFLOPs per image (one multiply-add = 1)", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row['name']}: {row['parameters']['all'] * 1e-6:.1f} M" for row in rows])


def _draw_speeds(axes: Axes, rows: list[dict]) -> None:
    for i, (batch_size, colour, dark) in enumerate(zip(BATCH_SIZES, (BLUE, "#86bfe0"), (True, False))):
        speeds = [row["images_per_second"][str(batch_size)] for row in rows]
        places = [y - 0.19 + 0.38 * i for y in range(len(rows))]
        axes.barh(places, speeds, color=colour, height=0.36, label=f"batch of {batch_size}")
        for y, speed in zip(places, speeds):
            axes.text(0, y, f" {speed:.3g}", va="center_baseline", fontsize=5.5, color="white" if dark else "black")
    axes.set_xlabel("images per second", fontsize=8)


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = complete(args)
    passes, warm_up = REPEATS[args.device]
    args.repeats = args.repeats or (1 if args.quick else passes)
    args.warm_up = 1 if args.quick else warm_up
    rows = []
    for detector in args.detector:
        for name, chosen in variants(detector).items():
            rows.append(measure(args, detector, name, chosen, device))
    text = table(rows)
    print("\n" + text)
    units = {"parameters": "1", "gflops": "1e9 multiply-adds/image", "seconds_per_image": "s", "memory": "bytes"}
    content = {"units": units, "results": rows, "table": text}
    figure = draw(rows, describe(machine(device)))
    save(NAME, args, argv, content, figure=figure, variant=named_after(args.detector, DETECTORS))


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

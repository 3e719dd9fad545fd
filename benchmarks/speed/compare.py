"""What the methods cost at the size of their papers: parameters, multiply-adds, time of training and inference, memory of training.

    python benchmarks/speed/compare.py             # on two cores a quarter of an hour
    python benchmarks/speed/compare.py --quick

The methods are those of ``lib/methods.py``, with random weights on one image of 800 x 1066 pixels (``--image_size``). All have one
backbone, a plain ResNet-50 (``--backbone``), so that what differs is theirs: with its paper's backbone, Conditional DETR would
bring a ResNet-101 and Anchor DETR a dilated ResNet, and each of these costs more than its encoder; ``speed/cost.py`` measures each
detector as its paper has it. Deformable DETR, Sparse DETR and DAC-DETR see four levels of it, the others the last stage; that is
the method. All else is each one's recipe.

**GFLOPs** are those of an inference, one multiply-add being one, counted as papers do (``lib/flops.py``). "encoder" is all between
backbone and decoder: projections, PnP-DETR's sampler, clustering, scoring, proposals; "decoder" has the heads with it. With ENACT
they depend on the number of clusters, hence on the weights, which are random here.

**Times** are seconds per image of a training step (forward, matching, losses, backward, clipping, optimiser) and of an inference
(from images to detections): medians of ``--rounds`` rounds through all models in turn in one process. The first round of training
does not count, nor does an inference before each one that is timed. PnP-DETR draws another share of pixels in every step; here it
is the mean one, and its training is one number for all shares of inference. **Memory** is the peak of the tensors that a training
step makes, beside weights and optimiser, see ``lib/measure.py``. The process itself takes half a GB for each of up to 13 models.
"""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm, trange

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.charts import BLUE, GREY, VERMILION
from benchmarks.lib.cli import build_parser, complete, describe, main, named_after, save
from benchmarks.lib.flops import BACKBONE, DECODER, ENCODER, count_parameters, depends_on_data, multiply_adds, three_parts
from benchmarks.lib.measure import machine, peak_memory, seconds
from benchmarks.lib.methods import Method, chosen, models
from benchmarks.lib.tables import markdown
from benchmarks.lib.workload import QUICK, Workload, build_batches
from common.cli.arguments import number
from common.data.loading import Batch
from common.errors import UserError
from common.models.sizes import BACKBONES
from tools.detectors import DETECTORS

NAME = "speed/compare"
IMAGE = (640, 480)  # width and height before it is resized
TRAIN, INFER = PASSES = ("train", "inference")
PART_COLOURS = {BACKBONE: GREY, ENCODER: BLUE, DECODER: VERMILION}
MEASURES = {  # column -> title, and the factor to its unit
    TRAIN: ("training (s/image)", 1.0),
    INFER: ("inference (s/image)", 1.0),
    "memory": ("training step (GiB)", 2**-30),
}
COLUMNS = {
    "params (M)": lambda row: f"{row['parameters'] * 1e-6:.1f}",
    **{f"GFLOPs, {part}": partial(lambda part, row: f"{row['gflops'][part]:.4g}", part) for part in (*PART_COLOURS, "all")},
    **{title: partial(lambda key, factor, row: f"{row[key] * factor:.3g}", key, f) for key, (title, f) in MEASURES.items()},
}


class Model:
    """What is trained for some methods, which differ by their share alone."""

    def __init__(self, methods: Sequence[Method], batch: Batch, args: Namespace):
        argv = ["--device", args.device, "--backbone", args.backbone, "--no-dilation", *(QUICK if args.quick else [])]
        self.methods, self.batch = methods, batch
        self.work = Workload(methods[0].detector, [*argv, *methods[0].options])
        self.model = self.work.accelerator.unwrap_model(self.work.model)
        if methods[0].share:
            self.model.sample_ratio_bounds = (mean(self.model.sample_ratio_bounds),) * 2
        self.times: dict[str, dict[str, list[float]]] = {method.name: {name: [] for name in PASSES} for method in methods}

    def step(self) -> None:
        self.work.train(self.batch)

    def infer(self, method: Method) -> None:
        self._choose(method)
        self.work.infer(self.batch)

    def count(self, method: Method) -> dict[str, Any]:
        """Parameters, and multiply-adds of an inference of one image in 1e9."""
        self._choose(method)
        one = Batch(*(x[:1] for x in self.batch)).to(torch.device("cpu"))
        products = multiply_adds(self.model, one.images, one.mask, data_dependent=depends_on_data(self.work.args))
        gflops = {part: 1e-9 * n for part, n in three_parts(products).items()}
        parameters = count_parameters(self.model, self.work.args)["all"]
        return {"parameters": parameters, "gflops": gflops | {"all": sum(gflops.values())}}

    def time_step(self, device: torch.device) -> None:
        duration = seconds(self.step, 1, device) / len(self.batch.targets)
        for times in self.times.values():
            times[TRAIN].append(duration)

    def time_inferences(self, device: torch.device) -> None:
        for method in self.methods:
            self.infer(method)  # what ran before leaves other things in the caches and the allocator's hands
            duration = seconds(partial(self.infer, method), 1, device) / len(self.batch.targets)
            self.times[method.name][INFER].append(duration)

    def _choose(self, method: Method) -> None:
        if method.share:
            self.model.sample_topk_ratio = float(method.share[1])


def measure(args: Namespace, batch: Batch, device: torch.device) -> list[dict[str, Any]]:
    """A row per method."""
    built = [Model(group, batch, args) for group in tqdm(models(chosen(args)), desc="models", leave=False)]
    rows = {}
    for model in tqdm(built, desc="multiply-adds", leave=False):
        for method in model.methods:
            rows[method.name] = {"name": method.name, "detector": method.detector, "options": method.options}
            rows[method.name] |= model.count(method)
    for _ in trange(1 + args.rounds, desc="rounds of training", leave=False):
        for model in tqdm(built, desc="models", leave=False):
            model.time_step(device)
    for _ in trange(args.rounds, desc="rounds of inference", leave=False):
        for model in tqdm(built, desc="models", leave=False):
            model.time_inferences(device)
    for model in tqdm(built, desc="memory", leave=False):
        memory = peak_memory(model.step, device)
        for name, times in model.times.items():
            rounds = {TRAIN: times[TRAIN][1:], INFER: times[INFER]}
            rows[name] |= {key: median(values) for key, values in rounds.items()} | {"memory": memory, "rounds": rounds}
    return [*rows.values()]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """In markdown."""
    return markdown([["method", *COLUMNS], *([row["name"], *(cell(row) for cell in COLUMNS.values())] for row in rows)])


def draw(rows: Sequence[Mapping[str, Any]], caption: str) -> Figure:
    """GFLOPs of the three parts as one bar; times and memory beside it."""
    figure = Figure(figsize=(10.4, 1.3 + 0.24 * len(rows)), dpi=200, layout="constrained")
    flops, *others = figure.subplots(1, 1 + len(MEASURES), sharey=True, width_ratios=(1.7, *[1] * len(MEASURES)))
    _draw_gflops(flops, rows)
    for axes, (key, (title, factor)) in zip(others, MEASURES.items()):
        values = [row[key] * factor for row in rows]
        axes.barh(range(len(rows)), values, color=GREY, height=0.75)
        for y, value in enumerate(values):
            axes.text(value, y, f" {value:.3g}", va="center", fontsize=6.5)
        axes.set_xlim(0, 1.25 * max(values))
        axes.set_title(title, fontsize=8.5)
    for axes in (flops, *others):
        axes.tick_params(labelsize=7.5)
        axes.spines[["top", "right"]].set_visible(False)
    flops.invert_yaxis()
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def _draw_gflops(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    starts, longest = [0.0] * len(rows), max(row["gflops"]["all"] for row in rows)
    for part, colour in PART_COLOURS.items():
        widths = [row["gflops"][part] for row in rows]
        axes.barh(range(len(rows)), widths, left=starts, color=colour, height=0.75, label=part)
        starts = [start + width for start, width in zip(starts, widths)]
    for y, (row, end) in enumerate(zip(rows, starts)):
        axes.text(end, y, f" {row['gflops'][ENCODER]:.3g} of {end:.3g}", va="center", fontsize=6.5)
    axes.set_xlim(0, 1.35 * longest)
    axes.set_yticks(range(len(rows)), [f"{row['name']}: {row['parameters'] * 1e-6:.1f} M" for row in rows])
    axes.set_title("GFLOPs: encoder, of all", fontsize=8.5)
    axes.legend(frameon=False, fontsize=7, loc="upper right")


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__, detectors=DETECTORS)
    positive = number(int, 1)
    parser.add_argument("--backbone", choices=BACKBONES, help="of all methods (default: resnet50; quick: resnet18)")
    parser.add_argument("--image_size", type=positive, help="shortest side of the image in pixels (default: 800; quick: 128)")
    parser.add_argument("--batch_size", type=positive, default=1, help="images of a step and an inference (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, help="that the times are medians of (default: 3 on a CPU, else 10; quick: 1)")
    args = parser.parse_args(argv)
    args.backbone = args.backbone or ("resnet18" if args.quick else "resnet50")
    args.image_size = args.image_size or (128 if args.quick else 800)
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = complete(args)
    args.rounds = args.rounds or (1 if args.quick else 3 if args.device == "cpu" else 10)
    [batch] = build_batches([IMAGE] * args.batch_size, args.batch_size, args.image_size)
    try:
        rows = measure(args, batch, device)
    except torch.OutOfMemoryError as error:
        raise UserError("the models do not fit into the GPU's memory: pass fewer to --detector or --batch_size") from error
    text = table(rows)
    print("\n" + text)
    units = {"gflops": "1e9 multiply-adds/image", TRAIN: "s/image", INFER: "s/image", "memory": "bytes"}
    height, width = batch.images.shape[-2:]
    measured_on = f"{args.backbone}, batch {args.batch_size} of {height} \u00d7 {width} pixels; {describe(machine(device))}"
    content = {"units": units, "measured_on": measured_on, "results": rows, "table": text}
    save(NAME, args, argv, content, figure=draw(rows, measured_on), variant=["cost", *named_after(args.detector, DETECTORS)])


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

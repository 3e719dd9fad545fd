"""The time of a training step with and without ENACT, and where it goes: backbone, encoder attention, clustering and the rest.

    python benchmarks/speed/shares.py
    python benchmarks/speed/shares.py --device cpu --batch_size 1 --sizes 640x480    # 800 x 1066 pixels
    python benchmarks/speed/shares.py --device cpu --quick

The detectors are the paper's with random weights, as in ``table1.py``. The profiler times every operator of a step. One of the
forward pass belongs to the innermost part of the model that runs it; one of the backward pass to the part of the forward operator
whose gradient it computes, which PyTorch's sequence numbers tell. "clustering" is everything from the scores of the pixels to the
weights in the clusters, "pooling" the weighted sums of keys and values, "encoder attention" the projections and the attention
itself. The times are taken without the profiler: medians of rounds in which every method makes one step, all in one process. That
makes their ratios, to the plain detector with ``math``, steadier than those of ``table1.py``, whose rows run one after the other.
"""

import re
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean, median
from unittest.mock import patch

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.charts import BLUE, GREEN, PURPLE, VERMILION
from benchmarks.lib.cli import build_parser, complete, describe, main, save
from benchmarks.lib.measure import machine, seconds
from benchmarks.lib.workload import QUICK, Workload, attention_kernel, build_batches, image_sizes, size
from common.cli.arguments import number
from common.data.loading import Batch
from enact import Clusters

NAME = "speed/shares"
METHODS = (("none", "math"), ("none", "fused"), ("window", "fused"), ("region", "fused"), ("region+", "fused"))
MODULES = {  # part -> the names of its modules, inner parts before those that contain them
    "clustering": r"W_prob$",
    "encoder attention": r"encoder.*\.self_attn$",
    "encoder, rest": r"encoder(\.layers|_layers|_layers_level)\.\d+$",
    "decoder": r"decoder(\.layers|_layers)\.\d+$",
    "backbone": r"backbone(\.0)?\.body$",
}
PARTS = ("backbone", "clustering", "pooling", "encoder attention", "encoder, rest", "decoder", "losses", "optimiser", "other")
COLOURS = ("0.45", VERMILION, "#f0a070", BLUE, "#86bfe0", GREEN, PURPLE, "0.75", "0.88")
DARK = ("backbone", "clustering", "encoder attention", "decoder")
WARM_UP = 2
MARK = "part: "
BACKWARD = "autograd::engine::evaluate_function"


@contextmanager
def marked(work: Workload) -> Iterator[None]:
    """Names the parts of a model for the profiler."""
    handles = []

    def mark(module: nn.Module, part: str) -> None:
        ranges = []

        def enter(*_: object) -> None:
            ranges.append(record_function(MARK + part))
            ranges[-1].__enter__()

        def leave(*_: object) -> None:
            ranges.pop().__exit__(None, None, None)

        handles.extend((module.register_forward_pre_hook(enter), module.register_forward_hook(leave)))

    for name, module in work.accelerator.unwrap_model(work.model).named_modules():
        part = next((part for part, pattern in MODULES.items() if re.search(pattern, name)), None)
        if part:
            mark(module, part)
    mark(work.criterion, "losses")
    pool: Callable = Clusters.pool

    def marked_pool(self: object, x: torch.Tensor) -> torch.Tensor:
        with record_function(MARK + "pooling"):
            return pool(self, x)

    with patch.object(Clusters, "pool", marked_pool):
        yield
    for handle in handles:
        handle.remove()


def part_of(event: FunctionEvent | None, parts: dict[int, str]) -> str:
    """The part that an operator belongs to; ``parts``: sequence number -> part of the forward operator."""
    while event is not None:
        if event.name.startswith(MARK):
            return event.name.removeprefix(MARK)
        if event.name.startswith("Optimizer.step"):
            return "optimiser"
        if event.name.startswith(BACKWARD):
            return parts.get(event.sequence_nr, "other")
        event = event.cpu_parent
    return "other"


def seconds_per_part(events: list[FunctionEvent], device: torch.device) -> Counter[str]:
    """Adds up the operators' own time."""
    events = sorted(events, key=lambda event: event.time_range.start)
    parts: dict[int, str] = {}
    for event in events:
        # An operator without gradient carries the number of the next one that has one, so the last of a number counts.
        if event.sequence_nr >= 0 and not _in_backward(event):
            parts[event.sequence_nr] = part_of(event, {})
    durations: Counter[str] = Counter()
    for event in events:
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        durations[part_of(event, parts)] += own * 1e-6
    return durations


def _in_backward(event: FunctionEvent | None) -> bool:
    while event is not None:
        if event.name.startswith(BACKWARD):
            return True
        event = event.cpu_parent
    return False


def measure(args: Namespace, detector: str, device: torch.device) -> list[dict]:
    """A row per method: seconds of a training step, all methods in turn, their ratio to the first's, and the parts' shares."""
    common = ["--device", args.device, "--amp", args.amp, *(QUICK if args.quick else [])]
    works = {method: Workload(detector, [*common, "--clustering", method[0]]) for method in METHODS}
    recipe = works[METHODS[0]].args
    batch_size = args.batch_size or recipe.batch_size
    [batch] = build_batches(image_sizes(batch_size, None, args.sizes), batch_size, recipe.image_size)
    rounds: dict[tuple[str, str], list[float]] = {method: [] for method in METHODS}
    for i in trange(WARM_UP + args.repeats, desc=f"{detector}: rounds", leave=False):
        for method, work in works.items():
            with attention_kernel(method[1]):
                duration = seconds(partial(work.train, batch), 1, device)
            if i >= WARM_UP:
                rounds[method].append(duration)
    rows = []
    for method, work in works.items():
        durations = profiled(work, batch, method[1], device)
        times = rounds[method]
        row = {"detector": detector, "clustering": method[0], "attention": method[1], "batch_size": batch_size}
        row |= {"step": median(times), "ratio": median(times) / median(rounds[METHODS[0]]), "rounds_s": times}
        rows.append(row | {"shares": {part: durations[part] / durations.total() for part in PARTS}})
    return rows


def profiled(work: Workload, batch: Batch, attention: str, device: torch.device) -> Counter[str]:
    """Seconds of the parts of a training step."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with attention_kernel(attention), marked(work), profile(activities=activities) as profiler:
        work.train(batch)
    return seconds_per_part(profiler.events(), device)


def table(rows: list[dict]) -> str:
    head = "".join(f"{part:>19}" for part in PARTS)
    lines = [f"{'training step':36}{'s':>8}{'ratio':>8}   shares (%)", " " * 52 + head]
    for row in rows:
        name = f"{row['detector'].removesuffix('-ENACT'):18}{row['clustering']:8}{row['attention']:10}"
        name += f"{row['step']:8.3g}{row['ratio']:7.2f}x"
        lines.append(name + "".join(f"{100 * row['shares'][part]:19.1f}" for part in PARTS))
    return "\n".join(lines)


def draw(rows: list[dict], caption: str) -> Figure:
    """A bar of shares for every row."""
    figure = Figure(figsize=(8.4, 1.3 + 0.24 * len(rows)), dpi=200, layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(rows)
    for part, colour in zip(PARTS, COLOURS):
        widths = [100 * row["shares"][part] for row in rows]
        if mean(widths) < 0.05:
            continue
        axes.barh(range(len(rows)), widths, left=left, color=colour, label=part, height=0.75)
        for y, width in enumerate(widths):
            if width >= 4:
                text = {"color": "white" if part in DARK else "black", "fontsize": 6.5}
                axes.text(left[y] + width / 2, y, f"{width:.0f}", ha="center", va="center", **text)
            left[y] += width
    names = []
    for row in rows:
        name = f"{row['detector'].removesuffix('-ENACT')}, {row['clustering']}, {row['attention']}"
        names.append(f"{name}: {row['step']:.3g} s, {row['ratio']:.2f}\u00d7")
    axes.set_yticks(range(len(rows)), names, fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of a training step (%)", fontsize=8)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(PARTS) // 2 + 1, frameon=False, fontsize=7)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__)
    positive = number(int, 1)
    parser.add_argument("--batch_size", type=positive, help="default: the paper's, 8, and 4 for Anchor DETR; quick: 1")
    parser.add_argument("--repeats", type=positive, help="rounds of the times (default: 7; quick: 1)")
    parser.add_argument("--sizes", type=size, nargs="+", metavar="WxH", help="these images in turn, before they are resized")
    parser.add_argument("--amp", choices=("no", "bf16", "fp16"), default="no", help="mixed precision (default: %(default)s)")
    args = parser.parse_args(argv)
    args.batch_size = args.batch_size or (1 if args.quick else None)
    args.repeats = args.repeats or (1 if args.quick else 7)
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = complete(args)
    rows = [row for detector in args.detector for row in measure(args, detector, device)]
    print("\n" + table(rows))
    save(NAME, args, argv, {"units": {"step": "s"}, "results": rows}, figure=draw(rows, describe(machine(device))))


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

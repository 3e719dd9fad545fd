"""A deformable encoder layer against Hugging Face's, and Sparse DETR's encoder over the share of tokens that it updates.

    python benchmarks/speed/deformable.py            # minutes on two CPU cores
    python benchmarks/speed/deformable.py --quick    # a shorter look

Two questions, on random weights and white noise as features, without padding:

- One encoder layer of Deformable DETR's size (256 features, 8 heads, 4 levels, 4 points) against that of Hugging Face's
  transformers, in PyTorch alone, on the same weights and tokens; that their outputs are equal is checked first. "forward" is
  inference, without gradients; "forward + backward" computes the gradients of features, positions and parameters, as in training.
  Memory is the peak beyond features, positions and parameters, gradients included, see ``lib/measure.py``.
- Scoring, selection and the six encoder layers of Sparse DETR, forward and backward, for shares rho of the tokens that are updated;
  0 is the dense encoder of Deformable DETR, without scores. The profiler says where the time of a pass goes, of the way back each
  operator's to the part of the forward operator whose gradient it computes. Every layer projects the values of all tokens, whatever
  rho is; all else in the layers is for the selected ones.

The weights of sampling offsets and attention are not zero as at the start of training, so that every token looks at places of its
own. Within each question everything runs in one process, in turn; times are medians of ``--repeats`` rounds.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.charts import BLUE, VERMILION
from benchmarks.lib.cli import build_parser, complete, describe, main, save
from benchmarks.lib.measure import machine, peak_memory, seconds
from benchmarks.lib.workload import size
from benchmarks.speed.deformable_layers import METHODS, OURS, PARTS, THEIRS, SparseEncoder, build_layer_passes, build_levels
from common.cli.arguments import number
from sparse_detr.options import share

NAME = "speed/deformable"
DETECTOR = "Sparse-DETR"
PASSES = {"forward": "forward", "forward_backward": "forward + backward"}
MEASURES = {  # title, unit, the factor from seconds or bytes to it, and the ratio to Hugging Face's that is aimed at
    "forward": ("forward", "s", 1, 0.7),
    "forward_backward": ("forward + backward", "s", 1, 0.7),
    "forward_memory": ("memory, forward", "MiB", 2**-20, 0.5),
    "forward_backward_memory": ("memory, forward + backward", "MiB", 2**-20, 0.5),
}
DENSE = 0.0
COLOURS = dict(zip(PARTS, (VERMILION, BLUE, "#86bfe0", "0.45")))
Key = TypeVar("Key", bound=Hashable)


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__, detectors=[DETECTOR])
    positive = number(int, 1)
    sizes = "images of the layer (default: 1333x800; quick: 320x256)"
    parser.add_argument("--sizes", type=size, nargs="+", metavar="WxH", help=sizes)
    image = "image of the sparse encoder (default: 1066x800; quick: 320x256)"
    parser.add_argument("--image", type=size, metavar="WxH", help=image)
    parser.add_argument("--rho", type=share, nargs="+", help="shares beside 0 (default: 0.1 0.2 0.3 0.5; quick: 0.1 0.3)")
    parser.add_argument("--batch_size", type=positive, default=1, help="B (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, help="rounds (default: 7; quick: 3)")
    args = parser.parse_args(argv)
    args.sizes = args.sizes or [(320, 256) if args.quick else (1333, 800)]
    args.image = args.image or ((320, 256) if args.quick else (1066, 800))
    args.rho = args.rho or ([0.1, 0.3] if args.quick else [0.1, 0.2, 0.3, 0.5])
    args.repeats = args.repeats or (3 if args.quick else 7)
    args.rho = sorted({DENSE, *args.rho})
    return args


def in_turn(runs: Mapping[Key, Callable[[], object]], repeats: int, device: torch.device) -> dict[Key, list[float]]:
    """Seconds of each run in every round, after one that does not count."""
    rounds: dict[Key, list[float]] = {key: [] for key in runs}
    for i in trange(1 + repeats, desc="rounds", leave=False):
        for key, run in runs.items():
            duration = seconds(run, 1, device)
            if i:
                rounds[key].append(duration)
    return rounds


def measure_layers(image: tuple[int, int], args: Namespace, device: torch.device) -> list[dict]:
    """A record per method: seconds of every round and their medians, bytes, and ratios to Hugging Face's."""
    torch.manual_seed(0)
    levels = build_levels(*image, args.batch_size, device)
    methods = build_layer_passes(levels, device)
    runs = {(name, kind): getattr(methods[name], kind) for kind in PASSES for name in METHODS}
    rounds = in_turn(runs, args.repeats, device)
    memory = {key: peak_memory(run, device) for key, run in runs.items()}
    records = []
    for name in METHODS:
        record = {"method": name, "width": image[0], "height": image[1], "N": levels.src.shape[1]}
        for kind in PASSES:
            times = rounds[name, kind]
            record |= {kind: median(times), f"{kind}_memory": memory[name, kind], f"{kind}_rounds_s": times}
        records.append(record)
    theirs = next(r for r in records if r["method"] == THEIRS)
    return [r | {"ratios": {kind: r[kind] / theirs[kind] for kind in MEASURES}} for r in records]


def measure_encoders(args: Namespace, device: torch.device) -> list[dict]:
    """A record per rho: seconds of every round and their median, its ratio to the dense encoder's, and the parts' seconds."""
    torch.manual_seed(0)
    encoder = SparseEncoder(args.image, args.batch_size, device)
    rounds = in_turn({rho: lambda rho=rho: encoder.run(rho) for rho in args.rho}, args.repeats, device)
    records = []
    for rho, times in rounds.items():
        time, shares = median(times), encoder.shares(rho)
        record = {"rho": rho, "width": args.image[0], "height": args.image[1], "N": encoder.levels.src.shape[1]}
        record |= {"seconds": time, "ratio": time / median(rounds[DENSE]), "rounds_s": times}
        records.append(record | {"shares": shares, "parts_s": {part: share * time for part, share in shares.items()}})
    return records


def layer_table(records: list[dict]) -> str:
    """The two records of one size."""
    first = records[0]
    title = f"encoder layer, {first['width']} x {first['height']}, N = {first['N']}"
    lines = [f"{title:42}" + "".join(f"{f'{name} ({unit})':>33}" for name, unit, _, _ in MEASURES.values())]
    for r in records:
        cells = "".join(f"{r[kind] * MEASURES[kind][2]:25.4g}{r['ratios'][kind]:7.2f}x" for kind in MEASURES)
        lines.append(f"  {r['method']:40}{cells}")
    return "\n".join([*lines, f"  {'aimed at':40}" + "".join(f"{aim:32.2f}x" for *_, aim in MEASURES.values())])


def encoder_table(records: list[dict]) -> str:
    first = records[0]
    title = f"sparse encoder, {first['width']} x {first['height']}, N = {first['N']}"
    lines = [f"{title:42}{'s':>8}{'ratio':>8}" + "".join(f"{part:>32}" for part in PARTS)]
    for r in records:
        cells = "".join(f"{r['parts_s'][part]:23.3g} s {100 * r['shares'][part]:5.1f}%" for part in PARTS)
        lines.append(f"  {_share(r['rho']):40}{r['seconds']:8.3g}{r['ratio']:7.2f}x{cells}")
    return "\n".join(lines)


def _share(rho: float) -> str:
    return f"\u03c1 = {rho:g}" if rho else "all tokens"


def draw(layers: list[dict], encoders: list[dict], caption: str) -> Figure:
    """The layer's ratios to Hugging Face's with what is aimed at as diamonds, and the seconds of the sparse encoder's parts."""
    sizes = len(layers) // len(METHODS)
    height = max(len(MEASURES) * sizes, len(encoders))
    figure = Figure(figsize=(10, 1.5 + 0.28 * height), dpi=200, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    _draw_layers(left, layers)
    _draw_encoders(right, encoders)
    for axes in (left, right):
        axes.invert_yaxis()
        axes.tick_params(labelsize=7.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"diamonds: what is aimed at\n{caption}", fontsize=7.5, color="0.4")
    return figure


def _draw_layers(axes: Axes, records: list[dict]) -> None:
    ours = [r for r in records if r["method"] == OURS]
    theirs = [r for r in records if r["method"] == THEIRS]
    names = []
    for own, other in zip(ours, theirs):
        for kind, (title, unit, factor, aim) in MEASURES.items():
            y, ratio = len(names), own["ratios"][kind]
            axes.barh(y, ratio, color=VERMILION if "memory" in kind else BLUE, height=0.72)
            axes.text(0.02, y, f"{ratio:.2f}\u00d7", va="center", fontsize=7, color="white")
            axes.plot(aim, y, "D", color="white", markeredgecolor="black", markersize=4)
            image = f", {own['width']} \u00d7 {own['height']}" if len(ours) > 1 else ""
            values = [f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in (factor * own[kind], factor * other[kind])]
            names.append(f"{title}{image}: {' of '.join(values)} {unit}")
    axes.axvline(1, color="0.5", linewidth=0.7, zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 1.1 * max(1, *(r["ratios"][kind] for r in ours for kind in MEASURES)))
    axes.set_title(f"one encoder layer, N = {', '.join(str(r['N']) for r in ours)}", fontsize=9, pad=18)
    axes.set_xlabel("ratio to Hugging Face's layer", fontsize=8)


def _draw_encoders(axes: Axes, records: list[dict]) -> None:
    names = [f"{_share(r['rho'])}: {r['ratio']:.2f}\u00d7" for r in records]
    starts = [0.0] * len(records)
    longest = max(r["seconds"] for r in records)
    for part in PARTS:
        widths = [r["parts_s"][part] for r in records]
        axes.barh(range(len(records)), widths, left=starts, color=COLOURS[part], label=part, height=0.72)
        for y, width in enumerate(widths):
            if width > 0.07 * longest:
                colour = "black" if part == "sampling" else "white"
                axes.text(starts[y] + width / 2, y, f"{width:.2g}", ha="center", va="center", fontsize=6.5, color=colour)
            starts[y] += width
    axes.set_yticks(range(len(records)), names)
    axes.set_title(f"Sparse DETR's encoder, forward + backward, N = {records[0]['N']}", fontsize=9, pad=18)
    axes.set_xlabel("s", fontsize=8)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(PARTS), frameon=False, fontsize=6.5, columnspacing=1)


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = complete(args)
    print(f"B = {args.batch_size}; medians of {args.repeats} rounds", flush=True)
    layers = []
    for image in args.sizes:
        new = measure_layers(image, args, device)
        print("\n" + layer_table(new), flush=True)
        layers += new
    encoders = measure_encoders(args, device)
    print("\n" + encoder_table(encoders))
    units = {"forward": "s", "forward_backward": "s", "forward_memory": "bytes", "forward_backward_memory": "bytes", "seconds": "s"}
    figure = draw(layers, encoders, f"B = {args.batch_size}; {describe(machine(device))}")
    save(NAME, args, argv, {"units": units, "layers": layers, "encoders": encoders}, figure=figure)


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

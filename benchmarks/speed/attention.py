"""Time and peak memory of one encoder self-attention layer: plain attention against ENACT, over the size of the feature map.

    python benchmarks/speed/attention.py            # minutes on two CPU cores
    python benchmarks/speed/attention.py --quick    # a shorter look

The methods share one set of weights and run in one process, in turn, so that a change of the machine's load meets all of them:

- plain: the detector's own attention, by ``scaled_dot_product_attention`` as PyTorch chooses its kernel;
- plain math: the same with the kernel that materialises the N x N matrix, as the paper's baselines did; left out where the matrix
  does not fit into the memory;
- region, region+, window: the detector's clustered attention;
- region+, steps: the same with ``cuts="steps"``, of multi-head attention;
- window loop: the simplest implementation of window, a Python loop over the images (``window_loop.py``), of multi-head attention.

``--detector`` chooses the layer: DETR and Conditional DETR have the same one, Anchor DETR has row-column decoupled attention, which
forms no N x N matrix, so that its plain math differs little from its plain.

**Input.** As in a detector, query = key = features + sine positions and value = features. The features are white noise at half the
resolution, enlarged bilinearly, because the receptive fields of neighbouring pixels overlap. How smooth they are hardly matters:
independent pixels have regions of 5.95 pixels on average at sigma = 3 (see ``regions.py``), and these features make a tenth fewer
clusters. M is printed with the times.

**Time.** "forward" is inference, without gradients; "forward + backward" computes the gradients of the features and of every
parameter, as in training. Each number is the median of ``--repeats`` rounds; a round calls every method once (short ones several
times in a row). **Memory** is the peak of forward + backward beyond the features and parameters, gradients included, see
``lib/measure.py``.

Shapes: B images, N pixels, d features; M clusters, the mean over the images.
"""

import sys
from argparse import Namespace
from collections.abc import Callable
from math import ceil
from pathlib import Path
from statistics import median

import psutil
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.charts import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, label_curves, scaling_axes
from benchmarks.lib.cli import build_parser, complete, describe, main, save
from benchmarks.lib.measure import machine, peak_memory, seconds
from benchmarks.speed.attention_methods import DECOUPLED, LOOP, MATH, METHODS, PLAIN, REGION, WINDOW, Method, build_methods
from common.cli.arguments import number
from common.errors import UserError
from enact import record
from tools.detectors import options

NAME = "speed/attention"
COLOURS = (GREY, PURPLE, BLUE, GREEN, ORANGE, VERMILION, "0.6")
STYLES = dict(zip(METHODS, zip(COLOURS, ("o-", "D--", "s-", "P-", "X-", "^-", "v--"))))
MEASURES = {  # title, unit, and the factor from seconds or bytes to it
    "forward": ("forward", "ms", 1e3),
    "forward_backward": ("forward + backward", "ms", 1e3),
    "memory": ("peak memory", "MiB", 2**-20),
}
TIMES = ("forward", "forward_backward")
ASPECT = 1333 / 800  # width over height of the feature map of the largest images that DETR trains with
SHORTEST_ROUND = 0.05  # seconds that a method is called for in a round, at least
MATRICES = 4  # N x N matrices alive at once in the backward pass of plain math: logits, weights, and the gradients of both


def feature_map(length: int) -> tuple[int, int]:
    """Height and width of a map of ``length`` pixels, its aspect as near to `ASPECT` as the divisors allow."""
    heights = [h for h in range(1, length + 1) if length % h == 0]
    height = min(heights, key=lambda h: max(length / h / h / ASPECT, ASPECT * h * h / length))
    return height, length // height


def build_features(length: int, args: Namespace, device: torch.device) -> Tensor:
    """(B, N, d)."""
    height, width = feature_map(length)
    noise = torch.randn(args.batch_size, args.hidden_dim, ceil(height / 2), ceil(width / 2), device=device)
    features = F.interpolate(noise, (height, width), mode="bilinear")
    return (features / features.std()).flatten(2).transpose(1, 2).contiguous()


def passes(method: Method, features: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """What is measured: one inference, and one forward and backward pass."""
    features = features.clone().requires_grad_()
    gradient = torch.randn_like(features)
    leaves = [features, *method.module.parameters()]

    def forward() -> None:
        with torch.no_grad():
            method.attend(features)

    def forward_backward() -> None:
        method.attend(features).backward(gradient)
        for leaf in leaves:
            leaf.grad = None

    return forward, forward_backward


def fits(length: int, args: Namespace, device: torch.device) -> bool:
    """Whether the memory holds what plain math materialises."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return MATRICES * args.batch_size * args.nheads * length**2 * torch.finfo(torch.float32).bits / 8 < free


def measure(length: int, args: Namespace, device: torch.device) -> list[dict]:
    """One record per method at N = ``length``: seconds of every round and their medians, bytes, clusters, and ratios to plain."""
    torch.manual_seed(0)
    height, width = feature_map(length)
    methods = build_methods(args, height, width, device)
    if MATH in methods and not fits(length, args, device):
        del methods[MATH]
    features = build_features(length, args, device)
    records = {name: {"method": name, "N": length, "height": height, "width": width} for name in methods}
    runs = {name: dict(zip(TIMES, passes(method, features))) for name, method in methods.items()}

    for name, method in methods.items():
        with record(method.module) as clusters:
            runs[name]["forward"]()
        for found in clusters.values():
            records[name]["M"] = found.count.double().mean().item()
    if LOOP in methods:
        records[LOOP]["M"] = records[WINDOW]["M"]

    for kind in TIMES:
        calls = {name: ceil(SHORTEST_ROUND / _warm_up(runs[name][kind], device)) for name in methods}
        rounds = [{name: seconds(runs[name][kind], calls[name], device) for name in methods} for _ in range(args.repeats)]
        for name in methods:
            records[name][f"{kind}_rounds_s"] = times = [times[name] for times in rounds]
            records[name][kind] = median(times)
    for name in methods:
        records[name]["memory"] = peak_memory(runs[name]["forward_backward"], device)
    for name in methods:
        records[name]["ratios"] = {kind: records[name][kind] / records[PLAIN][kind] for kind in MEASURES}
    return list(records.values())


def _warm_up(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of a call; the first one builds and loads what later ones reuse."""
    seconds(run, 1, device)
    return seconds(run, 1, device)


def table(records: list[dict]) -> str:
    """The records of one N."""
    first = records[0]
    size = f"N = {first['N']} ({first['height']} x {first['width']})"
    lines = [f"{size:22}{'M':>4}{'N/M':>8}" + "".join(f"{title:>24}" for title, _, _ in MEASURES.values())]
    for r in records:
        clusters = f"{r['M']:10.1f}{r['N'] / r['M']:8.2f}" if "M" in r else " " * 18
        times = "".join(f"{1e3 * r[kind]:14.2f} ms {r['ratios'][kind]:5.2f}x" for kind in TIMES)
        lines.append(f"  {r['method']:14}{clusters}{times}{r['memory'] / 2**20:13.1f} MiB {r['ratios']['memory']:5.2f}x")
    methods = {r["method"]: r for r in records}
    if LOOP in methods:
        against = [f"{methods[REGION][kind] / methods[LOOP][kind]:.2f}x" for kind in TIMES]
        lines.append(f"  region / window loop: {against[0]} forward, {against[1]} forward + backward")
    if MATH not in methods:
        lines.append("  plain math: its matrices do not fit into the memory")
    return "\n".join(lines)


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__, several=False)
    positive = number(int, 1)
    parser.add_argument("--batch_size", type=positive, default=2, help="B (default: %(default)s)")
    parser.add_argument("--hidden_dim", type=positive, default=256, help="d (default: %(default)s)")
    parser.add_argument("--nheads", type=positive, default=8, help="heads (default: %(default)s)")
    parser.add_argument("--smoothing_sigma", type=number(float, 1), help="in pixels (default: of the detector's recipe)")
    parser.add_argument("--lengths", type=positive, nargs="+", metavar="N", help="default: 256 1050 4200 16800; quick: to 1050")
    parser.add_argument("--repeats", type=positive, help="rounds (default: 7; quick: 3)")
    args = parser.parse_args(argv)
    args.lengths = args.lengths or ([256, 1050] if args.quick else [256, 1050, 4200, 16800])
    args.repeats = args.repeats or (3 if args.quick else 7)
    args.smoothing_sigma = args.smoothing_sigma or options(args.detector).smoothing_sigma
    if args.hidden_dim % args.nheads or args.hidden_dim % 4:
        raise UserError(f"--hidden_dim {args.hidden_dim} must be divisible by 4 and by --nheads {args.nheads}")
    return args


def draw(records: list[dict], caption: str) -> Figure:
    """Forward time, forward + backward time and memory over N; each curve's label ends with its last ratio to plain."""
    figure = Figure(figsize=(8.2, 2.85), dpi=200, layout="constrained")
    lengths = sorted({r["N"] for r in records})
    charts = figure.subplots(1, len(MEASURES))
    for axes, (kind, (title, unit, scale)) in zip(charts, MEASURES.items()):
        scaling_axes(axes, f"{title} ({unit})", lengths, "N, pixels of the feature map")
        labels = {}
        for name, (colour, style) in STYLES.items():
            curve = sorted((r for r in records if r["method"] == name), key=lambda r: r["N"])
            if not curve:
                continue
            points = [(r["N"], scale * r[kind]) for r in curve]
            axes.plot(*zip(*points), style, color=colour, label=name, linewidth=1.3, markersize=4)
            label = name if name == PLAIN else f"{name}  {curve[-1]['ratios'][kind]:.2f}\u00d7"
            if curve[-1]["N"] == lengths[-1]:
                labels[name] = label
            else:  # its end is among the other curves: in the corner that they leave free
                axes.text(0.03, 0.98, label.replace("  ", "\n"), color=colour, fontsize=7.5, va="top", transform=axes.transAxes)
        label_curves(axes, labels)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = complete(args)
    layer = "row-column decoupled attention" if args.detector == DECOUPLED else "multi-head attention"
    sizes = f"B = {args.batch_size}, d = {args.hidden_dim}, h = {args.nheads}, \u03c3 = {args.smoothing_sigma:g}"
    print(f"{layer}: {sizes}; medians of {args.repeats} rounds; ratios to plain", flush=True)
    records = []
    for length in args.lengths:
        new = measure(length, args, device)
        print("\n" + table(new), flush=True)
        records += new
    caption = f"{layer}, {sizes}; \u00d7: ratio to plain at the curve's end\n{describe(machine(device))}"
    content = {"units": {"forward": "s", "forward_backward": "s", "memory": "bytes"}, "results": records}
    save(NAME, args, argv, content, figure=draw(records, caption), variant=["rcda"] * (args.detector == DECOUPLED))


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

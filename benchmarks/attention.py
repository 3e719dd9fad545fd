"""Time and peak memory of one encoder self-attention layer: plain fused attention against ENACT, over the size of the feature map.

    python benchmarks/attention.py            # minutes on two CPU cores
    python benchmarks/attention.py --quick    # a shorter look

Four methods share one set of weights and run in one process, in turn, so that a change of the machine's load meets all of them:

- plain: ``nn.MultiheadAttention``, which runs ``scaled_dot_product_attention`` as long as no weights are asked for;
- region, window: ``enact.ClusteredAttention``;
- window loop: the simplest implementation of window, a Python loop over the images, see ``window_loop.py``.

**Input.** As in a detector, query = key = features + sine positions and value = features. The features are white noise at half the
resolution, enlarged bilinearly, because the receptive fields of neighbouring pixels overlap. How smooth they are hardly matters:
for independent pixels the second derivative of a signal smoothed by a Gaussian changes sign sqrt(5/2) / (pi sigma) times a pixel
(Rice's formula), which makes M = N / 6 clusters at sigma = 3, and these features make a tenth fewer. M is printed with the times.

**Time.** "forward" is inference, without gradients; "forward + backward" computes the gradients of the features and of every
parameter, as in training. Each number is the median of ``--repeats`` rounds; a round calls every method once (short ones several
times in a row). **Memory** is the peak of forward + backward beyond the features and parameters, gradients included, see
``common_measure.peak_memory``.

Shapes: B images, N pixels, d features; M clusters, the mean over the images.
"""

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from datetime import datetime, timezone
from math import ceil
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common_charts import BLUE, GREEN, GREY, VERMILION, label_curves, scaling_axes
from benchmarks.common_measure import machine, peak_memory, seconds
from benchmarks.window_loop import WindowLoop
from common.arguments import Parser, number
from common.errors import UserError
from common.positions import PositionEmbeddingSine
from enact import ClusteredAttention, record

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("plain", "region", "window", "window loop")
STYLES = ((GREY, "o-"), (BLUE, "s-"), (VERMILION, "^-"), (GREEN, "v--"))
MEASURES = {  # title, unit, and the factor from seconds or bytes to it
    "forward": ("forward", "ms", 1e3),
    "forward_backward": ("forward + backward", "ms", 1e3),
    "memory": ("peak memory", "MiB", 2**-20),
}
TIMES = ("forward", "forward_backward")
ASPECT = 1333 / 800  # width over height of the feature map of the largest images that DETR trains with
SHORTEST_ROUND = 0.05  # seconds that a method is called for in a round, at least


def build_methods(args: Namespace, device: torch.device) -> dict[str, nn.Module]:
    """The four layers, which share their parameters."""
    plain = nn.MultiheadAttention(args.hidden_dim, args.nheads, batch_first=True, device=device)
    region, window = (ClusteredAttention.from_attention(plain, c, args.smoothing_sigma) for c in ("region", "window"))
    window.W_prob.weight, window.W_prob.bias = region.W_prob.weight, region.W_prob.bias
    prob = nn.Linear(args.hidden_dim, 1, device=device)
    prob.weight, prob.bias = region.W_prob.weight, region.W_prob.bias
    return dict(zip(METHODS, (plain, region, window, WindowLoop(plain, prob, args.smoothing_sigma))))


def feature_map(length: int) -> tuple[int, int]:
    """Height and width of a map of ``length`` pixels, its aspect as near to `ASPECT` as the divisors allow."""
    heights = [h for h in range(1, length + 1) if length % h == 0]
    height = min(heights, key=lambda h: max(length / h / h / ASPECT, ASPECT * h * h / length))
    return height, length // height


def build_input(length: int, args: Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features and their positions, both (B, N, d)."""
    height, width = feature_map(length)
    noise = torch.randn(args.batch_size, args.hidden_dim, ceil(height / 2), ceil(width / 2), device=device)
    features = F.interpolate(noise, (height, width), mode="bilinear")
    features = (features / features.std()).flatten(2).transpose(1, 2).contiguous()
    mask = torch.zeros(args.batch_size, height, width, dtype=torch.bool, device=device)
    return features, PositionEmbeddingSine(args.hidden_dim)(mask).flatten(1, 2)


def passes(attention: nn.Module, features: Tensor, positions: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """What is measured: one inference, and one forward and backward pass."""
    features = features.clone().requires_grad_()
    gradient = torch.randn_like(features)
    leaves = [features, *attention.parameters()]

    def run() -> Tensor:
        key = features + positions
        return attention(key, key, features, need_weights=False)[0]

    def forward() -> None:
        with torch.no_grad():
            run()

    def forward_backward() -> None:
        run().backward(gradient)
        for leaf in leaves:
            leaf.grad = None

    return forward, forward_backward


def measure(length: int, args: Namespace, device: torch.device) -> list[dict]:
    """One record per method at N = ``length``: seconds of every round and their medians, bytes, clusters, and ratios to plain."""
    torch.manual_seed(0)
    methods = build_methods(args, device)
    features, positions = build_input(length, args, device)
    height, width = feature_map(length)
    records = {name: {"method": name, "N": length, "height": height, "width": width} for name in METHODS}
    runs = {name: dict(zip(TIMES, passes(method, features, positions))) for name, method in methods.items()}

    for name, method in methods.items():
        with record(method) as clusters:
            runs[name]["forward"]()
        for found in clusters.values():
            records[name]["M"] = found.count.double().mean().item()
    records["window loop"]["M"] = records["window"]["M"]

    for kind in TIMES:
        calls = {name: ceil(SHORTEST_ROUND / _warm_up(runs[name][kind], device)) for name in METHODS}
        rounds = [{name: seconds(runs[name][kind], calls[name], device) for name in METHODS} for _ in range(args.repeats)]
        for name in METHODS:
            records[name][f"{kind}_rounds_s"] = times = [times[name] for times in rounds]
            records[name][kind] = median(times)
    for name in METHODS:
        records[name]["memory"] = peak_memory(runs[name]["forward_backward"], device)
    for name in METHODS:
        records[name]["ratios"] = {kind: records[name][kind] / records["plain"][kind] for kind in MEASURES}
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
    region, loop = (next(r for r in records if r["method"] == name) for name in ("region", "window loop"))
    against = [f"{region[kind] / loop[kind]:.2f}x" for kind in TIMES]
    return "\n".join([*lines, f"  region / window loop: {against[0]} forward, {against[1]} forward + backward"])


def build_parser() -> Parser:
    parser = Parser(prog="benchmarks/attention.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    positive = number(int, 1)
    parser.add_argument("--batch_size", type=positive, default=2, help="B (default: %(default)s)")
    parser.add_argument("--hidden_dim", type=positive, default=256, help="d (default: %(default)s)")
    parser.add_argument("--nheads", type=positive, default=8, help="heads (default: %(default)s)")
    parser.add_argument("--smoothing_sigma", type=number(float, 1), default=3.0, help="in pixels (default: %(default)s)")
    parser.add_argument("--lengths", type=positive, nargs="+", metavar="N", help="default: 256 1050 4200 16800; quick: to 4200")
    parser.add_argument("--repeats", type=positive, help="rounds (default: 7; quick: 3)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one, else cpu")
    parser.add_argument("--quick", action="store_true", help="under two minutes on two cores")
    where = "folder for the numbers and the chart (default: benchmarks/results; quick: runs/benchmarks)"
    parser.add_argument("--output", type=Path, help=where)
    return parser


def parse(argv: list[str]) -> Namespace:
    args = build_parser().parse_args(argv)
    args.lengths = args.lengths or ([256, 1050, 4200] if args.quick else [256, 1050, 4200, 16800])
    args.repeats = args.repeats or (3 if args.quick else 7)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.output = args.output or ROOT / ("runs/benchmarks" if args.quick else "benchmarks/results")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but no CUDA device is available: pass --device cpu")
    if args.hidden_dim % args.nheads or args.hidden_dim % 4:
        raise UserError(f"--hidden_dim {args.hidden_dim} must be divisible by 4 and by --nheads {args.nheads}")
    return args


def draw(records: list[dict], caption: str) -> Figure:
    """Forward time, forward + backward time and memory over N; each curve's label ends with its ratio to plain at the largest N."""
    figure = Figure(figsize=(8.2, 2.7), dpi=200, layout="constrained")
    lengths = sorted({r["N"] for r in records})
    charts = figure.subplots(1, len(MEASURES))
    for axes, (kind, (title, unit, scale)) in zip(charts, MEASURES.items()):
        scaling_axes(axes, f"{title} ({unit})", lengths, "N, pixels of the feature map")
        labels = {}
        for name, (colour, style) in zip(METHODS, STYLES):
            curve = {r["N"]: r for r in records if r["method"] == name}
            values = [scale * curve[n][kind] for n in lengths]
            axes.plot(lengths, values, style, color=colour, label=name, linewidth=1.3, markersize=4)
            labels[name] = name if name == "plain" else f"{name}  {curve[lengths[-1]]['ratios'][kind]:.2f}\u00d7"
        label_curves(axes, labels)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def save(output: Path, device: torch.device, content: dict, figure: Figure) -> list[Path]:
    """Writes the numbers and the chart; returns their paths."""
    numbers = output / f"attention-{device.type}.json"
    chart = numbers.with_suffix(".png")
    try:
        numbers.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        figure.savefig(chart)
    except OSError as error:
        raise UserError(f"{numbers} and {chart.name} cannot be written ({error.strerror}): choose another --output") from error
    return [numbers, chart]


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = torch.device(args.device)
    about = machine(device)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output} cannot be created ({error.strerror}): choose another folder") from error
    settings = f"B = {args.batch_size}, d = {args.hidden_dim}, h = {args.nheads}, \u03c3 = {args.smoothing_sigma:g}"
    threads = f"{about['threads']} CPU thread{'s' * (about['threads'] > 1)}"
    print(f"{about['device']}, {threads}, torch {about['torch']}, Python {about['python']}")
    print(f"{settings}; medians of {args.repeats} rounds; ratios to plain", flush=True)
    records = []
    for length in args.lengths:
        found = measure(length, args, device)
        print("\n" + table(found), flush=True)
        records += found
    content = {
        "command": shlex.join(["python", "benchmarks/attention.py", *argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": about,
        "settings": {name: getattr(args, name) for name in ("batch_size", "hidden_dim", "nheads", "smoothing_sigma", "repeats")},
        "units": {"forward": "s", "forward_backward": "s", "memory": "bytes"},
        "results": records,
    }
    caption = f"{settings}; {about['device']}, {threads}; \u00d7: ratio to plain at the largest N"
    paths = save(args.output, device, content, draw(records, caption))
    print("\nwritten: " + ", ".join(map(str, paths)))


def main(argv: list[str]) -> int:
    """Runs the command line; a mistake of the user ends as one sentence and code 2."""
    try:
        run(argv)
    except UserError as error:
        print(f"benchmarks/attention.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

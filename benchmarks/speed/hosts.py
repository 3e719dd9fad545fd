"""Models of timm and transformers, plain against patched by ``enact.patch``, over the size of the image.

    python benchmarks/speed/hosts.py            # a quarter of an hour on a CPU core
    python benchmarks/speed/hosts.py --quick    # a shorter look

ViT-B/16 and DINOv2-B/14 of timm, DETR-R50 and RT-DETR-R50 of transformers, with random weights, on square images of white noise,
which has more clusters than photographs. What is measured is the part that is patched: the blocks of a ViT, DETR's encoder, the
AIFI layer of RT-DETR. The methods share one set of weights and one input, and run in one process, in turn:

- plain: the host's own attention, by ``scaled_dot_product_attention``;
- region: the same after ``enact.patch(model)``;
- ToMe, for the ViTs: keys and values merged by tomesd's bipartite soft matching into as many tokens as region has clusters. All
  else is region's code. It needs no training; what it does to the accuracy is not measured here.

All blocks of a ViT are alike, so that ``--depth`` of them tell the ratio; 1 of 12 on a CPU.

**Time** is inference, without gradients. Ratios are those of one round, the median of ``--repeats`` rounds, so that a change of the
machine's load meets both. **The whole model's** ratio follows from the part's and from its share in the time of the plain model.
**Memory** is what a forward pass of the part keeps for the backward pass in training, which grows with the blocks as the time does;
the plain attention keeps no N x N matrix, as it is fused.
"""

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from statistics import mean, median

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.charts import BLUE, GREEN, PURPLE, VERMILION, label_curves
from benchmarks.lib.cli import build_parser, complete, describe, main, save
from benchmarks.lib.measure import machine, seconds
from benchmarks.speed.hosts_models import DEPTH, MODELS, PLAIN, TOME, VITS, Host
from common.cli.arguments import number
from common.errors import UserError

NAME = "speed/hosts"
WHOLE = "whole"
MULTIPLES = {"ViT-B/16": 16, "DINOv2-B/14": 14, "DETR": 32, "RT-DETR": 32}
COLOURS = dict(zip(MODELS, (BLUE, GREEN, VERMILION, PURPLE)))
PART_NAMES = {"ViT-B/16": "blocks", "DINOv2-B/14": "blocks", "DETR": "encoder", "RT-DETR": "AIFI"}
MEASURES = {"part": "time of the part", "whole": "time of the whole model", "memory": "memory of the part"}


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__, detectors=())
    positive = number(int, 1)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS], help="default: all")
    parser.add_argument("--sizes", type=positive, nargs="+", help="sides of the images (default: 448 672 896 1344; quick: 448)")
    parser.add_argument("--depth", type=positive, help="blocks of a ViT (default: 12 on a GPU, 1 on a CPU)")
    parser.add_argument("--batch_size", type=positive, default=1, help="B (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, help="rounds (default: 3; quick: 1)")
    args = parser.parse_args(argv)
    args.sizes = sorted(args.sizes or ([448] if args.quick else [448, 672, 896, 1344]))
    args.repeats = args.repeats or (1 if args.quick else 3)
    for size in args.sizes:
        for name in args.models:
            if size % MULTIPLES[name]:
                raise UserError(f"--sizes {size} is no multiple of {MULTIPLES[name]}, which {name} needs: choose one such as 448")
    return args


def measure(name: str, size: int, args: Namespace, device: torch.device) -> list[dict]:
    """One record per method: N, the mean M of its attentions, seconds of every round and their median, bytes, ratios to plain."""
    torch.manual_seed(0)
    host = Host(name, size, args.depth, args.batch_size, device)
    sizes = {"model": name, "size": size, "N": host.clusters[0].index.shape[1]}
    sizes["M"] = mean(c.count.double().mean().item() for c in host.clusters)
    memory = {method: host.kept_bytes(method) for method in host.methods}  # warms up, too
    runs = {WHOLE: host.run_whole} | {method: partial(host.run, method) for method in host.methods}
    rounds = [
        {key: seconds(run, 1, device) for key, run in runs.items()}
        for _ in trange(args.repeats, desc=f"{name}, {size} px", leave=False)
    ]
    scale = DEPTH / args.depth if name in VITS else 1
    rest = median(max(0.0, times[WHOLE] / times[PLAIN] - 1) for times in rounds)  # in units of the part that is there
    share = scale / (rest + scale)
    records = []
    for method in host.methods:
        times = [times[method] for times in rounds]
        part = median(times[method] / times[PLAIN] for times in rounds)
        ratios = {"part": part, "whole": 1 - share + share * part, "memory": memory[method] / memory[PLAIN]}
        measured = {"seconds": median(times), "rounds_s": times, "memory": memory[method]}
        records.append(sizes | {"method": method, "share": share, **measured, "ratios": ratios})
    return records


def table(records: list[dict]) -> str:
    """The records of one model and size."""
    first = records[0]
    lines = [
        f"{first['model']}, {first['size']} px, N = {first['N']}, M = {first['M']:.0f} (N / M = {first['N'] / first['M']:.2f}); "
        f"{PART_NAMES[first['model']]}: {100 * first['share']:.1f} % of the plain model's time"
    ]
    for r in records:
        part, whole, memory = (f"{r['ratios'][kind]:5.2f}x" for kind in MEASURES)
        mebibytes = r["memory"] / 2**20
        lines.append(f"  {r['method']:8}{1e3 * r['seconds']:12.1f} ms {part}, whole {whole}{mebibytes:12.1f} MiB {memory}")
    return "\n".join(lines)


def draw(records: list[dict], caption: str) -> Figure:
    """Ratios to plain over the image's side, dashed for ToMe."""
    figure = Figure(figsize=(10.5, 3.1), dpi=200, layout="constrained")
    for axes, (kind, title) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items()):
        _draw_ratios(axes, records, kind)
        axes.set_title(f"{title}: ratio to plain", fontsize=9)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def _draw_ratios(axes: Axes, records: list[dict], kind: str) -> None:
    curves = {(r["model"], r["method"]) for r in records if r["method"] != PLAIN}
    labels = {}
    for model, method in sorted(curves, key=lambda curve: (*MODELS,).index(curve[0])):
        points = [(r["size"], r["ratios"][kind]) for r in records if (r["model"], r["method"]) == (model, method)]
        label = f"{model}{', ToMe' if method == TOME else ''}"
        axes.plot(*zip(*points), "o--" if method == TOME else "s-", color=COLOURS[model], label=label, linewidth=1.3, markersize=4)
        labels[label] = f"{label}  {points[-1][1]:.2f}\u00d7"
    axes.axhline(1, color="0.5", linewidth=0.7, zorder=0)
    axes.set_ylim(0, 1.3 * max(1, *(r["ratios"][kind] for r in records)))
    axes.set_xticks(sorted({r["size"] for r in records}))
    axes.set_xlabel("side of the image (px)", fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
    label_curves(axes, labels)


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = complete(args)
    args.depth = args.depth or (DEPTH if args.device == "cuda" else 1)
    print(f"B = {args.batch_size}; medians of {args.repeats} rounds; ratios to plain", flush=True)
    records = []
    for name in args.models:
        for size in args.sizes:
            new = measure(name, size, args, device)
            print("\n" + table(new), flush=True)
            records += new
    parts = ", ".join(f"{PART_NAMES[name]} of {name}" for name in args.models)
    blocks = f"{args.depth} of {DEPTH} blocks of {', '.join(name for name in args.models if name in VITS)}; "
    blocks = blocks if set(args.models) & set(VITS) else ""
    caption = f"part: {parts}\nB = {args.batch_size}; {blocks}\u00d7: at the curve's end\n{describe(machine(device))}"
    content = {"units": {"seconds": "s", "memory": "bytes"}, "results": records}
    save(NAME, args, argv, content, figure=draw(records, caption))


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

"""What poll and pool leaves of the encoder's cost, alone and with ENACT behind it.

    python benchmarks/speed/sampling.py            # minutes on two CPU cores
    python benchmarks/speed/sampling.py --quick    # a shorter look

PnP-DETR's sampler and encoder (6 layers, 256 features, FFN 2048) against DETR's encoder on the same map, without padding: maps of a
ResNet's last stage (C5, 1/32, M = 30 pooled vectors) and of the dilated one (DC5, 1/16, M = 100), over the share of polled pixels;
each with plain attention and with ENACT's regions, which cluster the polled pixels and leave the pooled vectors as they are. All
share one set of weights. The features are white noise at half the resolution, enlarged bilinearly (see ``attention.py``).

"forward" is inference, without gradients; "forward + backward" computes the gradients of the features and of every parameter, as in
training. Everything runs in one process, in turn; times are medians of ``--repeats`` rounds. **Memory** is the peak of forward +
backward beyond features and parameters, gradients included, see ``lib/measure.py``. Attention is by
``scaled_dot_product_attention`` with the kernel that PyTorch chooses. **GFLOPs** are those of an inference, one multiply-add being
one. Keys are those that the first layer's queries attend to.
"""

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.charts import BLUE, GREY, VERMILION
from benchmarks.lib.cli import build_parser, complete, describe, main, save
from benchmarks.lib.flops import ENCODER, SAMPLER, count_multiply_adds
from benchmarks.lib.measure import machine, peak_memory, seconds
from benchmarks.lib.workload import size
from common.cli.arguments import number
from common.models.positions import PositionEmbeddingSine
from enact import TransformerEncoder, record
from pnp_detr.options import KPROJ_NETS, POOLED, POOLED_OF_DC5, SCORE_NETS, ratio
from pnp_detr.sampler import Sampler

NAME = "speed/sampling"
DETECTOR = "PnP-DETR"
WIDTH, HEADS, LAYERS, HIDDEN = 256, 8, 6, 2048
MAPS = {"C5": (32, POOLED), "DC5": (16, POOLED_OF_DC5)}  # stride, M
ALL = 1.0  # the share of DETR's encoder, which has no sampler
ENCODERS = ("plain", "region")
MEASURES = {  # title, unit, the factor from seconds or bytes to it
    "forward": ("forward", "ms", 1e3),
    "forward_backward": ("forward + backward", "ms", 1e3),
    "memory": ("memory", "MiB", 2**-20),
}
AIM = 0.45  # of the plain encoder's time and memory, at DC5 and a third of the pixels


@dataclass(frozen=True)
class Case:
    """What is measured: an encoder ("plain", "region") behind a sampler that polls a share of the pixels."""

    encoder: str
    share: float


class SampledEncoder(nn.Module):
    """Sampler and encoder, or the encoder alone."""

    def __init__(self, sampler: Sampler, encoder: TransformerEncoder, share: float):
        super().__init__()
        self.sampler = sampler if share < ALL else None
        self.encoder = encoder
        self.share = share

    def forward(self, src: Tensor, mask: Tensor, pos: Tensor) -> Tensor:
        """src (B, d, H, W), mask (B, N), pos (B, N, d) -> (B, N or S + M, d)."""
        if self.sampler is None:
            return self.encoder(src.flatten(2).transpose(1, 2), mask, pos)
        sampled = self.sampler(src, mask, pos, self.share)
        return self.encoder(sampled.src, sampled.mask, sampled.pos)


def build_encoders(pooled: int, shares: list[float], device: torch.device) -> dict[Case, SampledEncoder]:
    """Every case, on one set of weights but for ENACT's own."""
    torch.manual_seed(0)
    sampler = Sampler(WIDTH, pooled, SCORE_NETS[0], KPROJ_NETS[0], pos_embed_kproj=False)
    plain = TransformerEncoder(WIDTH, HEADS, LAYERS, HIDDEN, dropout=0.0, clustering="none")
    cases = {}
    for share in (ALL, *shares):
        clustered = TransformerEncoder(
            WIDTH, HEADS, LAYERS, HIDDEN, dropout=0.0, clustering="region", unclustered=pooled if share < ALL else 0
        )
        clustered.load_state_dict(plain.state_dict(), strict=False)
        for name, encoder in zip(ENCODERS, (plain, clustered)):
            cases[Case(name, share)] = SampledEncoder(sampler, encoder, share).to(device)
    return cases


def build_input(image: tuple[int, int], stride: int, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """src, mask and pos of an image of this width and height."""
    width, height = (ceil(side / stride) for side in image)
    noise = torch.randn(batch_size, WIDTH, ceil(height / 2), ceil(width / 2), device=device)
    src = F.interpolate(noise, (height, width), mode="bilinear")
    mask = torch.zeros(batch_size, height, width, dtype=torch.bool, device=device)
    return src / src.std(), mask.flatten(1), PositionEmbeddingSine(WIDTH)(mask).flatten(1, 2)


def passes(encoder: SampledEncoder, inputs: tuple[Tensor, Tensor, Tensor]) -> dict[str, Callable[[], None]]:
    src, mask, pos = inputs
    src = src.clone().requires_grad_()
    leaves = [src, *encoder.parameters()]

    def forward() -> None:
        with torch.no_grad():
            encoder.eval()(src, mask, pos)

    def forward_backward() -> None:
        encoder.train()(src, mask, pos).square().mean().backward()
        for leaf in leaves:
            leaf.grad = None

    return {"forward": forward, "forward_backward": forward_backward}


def measure(name: str, args: Namespace, device: torch.device) -> list[dict]:
    """A record per case of one map."""
    stride, pooled = MAPS[name]
    torch.manual_seed(0)
    inputs = build_input(args.image, stride, args.batch_size, device)
    cases = build_encoders(pooled, args.ratios, device)
    runs = {case: passes(encoder, inputs) for case, encoder in cases.items()}
    rounds: dict[tuple[Case, str], list[float]] = {(case, kind): [] for kind in ("forward", "forward_backward") for case in cases}
    for i in trange(1 + args.repeats, desc=name, leave=False):
        for (case, kind), times in rounds.items():
            duration = seconds(runs[case][kind], 1, device)
            times += [duration] if i else []
    records = []
    for case, encoder in cases.items():
        keys, gflops = count(encoder, inputs)
        r = {"map": name, "N": inputs[1].shape[1], "M": pooled, "encoder": case.encoder, "share": case.share}
        r |= {"keys": keys, "gflops": gflops, "memory": peak_memory(runs[case]["forward_backward"], device)}
        for kind in ("forward", "forward_backward"):
            r |= {kind: median(rounds[case, kind]), f"{kind}_rounds_s": rounds[case, kind]}
        records.append(r)
    plain = next(r for r in records if (r["encoder"], r["share"]) == ("plain", ALL))
    return [r | {"ratios": {kind: r[kind] / plain[kind] for kind in (*MEASURES, "gflops")}} for r in records]


@torch.no_grad()
def count(encoder: SampledEncoder, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Keys of the first layer, the mean over the images, and GFLOPs per image."""
    encoder.eval()
    lengths = []
    handle = encoder.encoder.layers[0].register_forward_pre_hook(lambda module, x: lengths.append(x[0].shape[1]))
    with record(encoder) as clusters:
        products = count_multiply_adds(lambda: encoder(*inputs), encoder)
    handle.remove()
    keys = lengths[0]
    if clusters:
        own = encoder.encoder.layers[0].self_attn
        keys = next(iter(clusters.values())).count.double().mean().item() + own.unclustered
    return keys, (products[ENCODER] + products[SAMPLER]) * 1e-9 / len(inputs[0])


def table(records: list[dict]) -> str:
    """The records of one map."""
    first = records[0]
    lines = [f"{first['map']}, N = {first['N']}, M = {first['M']}"]
    lines[0] = f"{lines[0]:34}{'keys':>8}{'GFLOPs':>16}" + "".join(f"{title:>27}" for title, _, _ in MEASURES.values())
    for r in records:
        cells = "".join(f"{r[kind] * scale:14.5g} {unit:3}{r['ratios'][kind]:8.2f}x" for kind, (_, unit, scale) in MEASURES.items())
        gflops = f"{r['gflops']:9.3g}{r['ratios']['gflops']:6.2f}x"
        lines.append(f"  {_name(r):32}{r['keys']:8.0f}{gflops}{cells}")
    return "\n".join(lines)


def _name(r: dict) -> str:
    polled = "all pixels" if r["share"] == ALL else f"polled {r['share']:.3g}"
    return f"{polled}, {r['encoder']}"


def draw(records: list[dict], caption: str) -> Figure:
    """For each map the ratios to DETR's plain encoder over the share of polled pixels."""
    maps = list(dict.fromkeys(r["map"] for r in records))
    figure = Figure(figsize=(8.6, 0.6 + 2.3 * len(maps)), dpi=200, layout="constrained")
    for row, name in zip(figure.subplots(len(maps), len(MEASURES), sharey=True, squeeze=False), maps):
        own = [r for r in records if r["map"] == name]
        for axes, (kind, (title, unit, scale)) in zip(row, MEASURES.items()):
            _draw_curves(axes, own, kind)
            plain = own[0][kind] * scale
            axes.set_title(f"{name}: {title} (1 = {plain:.4g} {unit})", fontsize=8.5)
        row[0].set_ylabel("ratio to DETR's encoder", fontsize=8)
    figure.axes[0].legend(fontsize=7, frameon=False, loc="upper left")
    figure.supxlabel(f"share of polled pixels\n{caption}", fontsize=7.5)
    return figure


def _draw_curves(axes: Axes, records: list[dict], kind: str) -> None:
    for encoder, colour, label in zip(ENCODERS, (BLUE, VERMILION), ("PnP-DETR", "PnP-DETR + ENACT, region")):
        points = sorted((r["share"], r["ratios"][kind]) for r in records if r["encoder"] == encoder and r["share"] < ALL)
        axes.plot(*zip(*points), "o-", color=colour, linewidth=1.3, markersize=4, label=label)
        style = {"textcoords": "offset points", "fontsize": 6.5, "ha": "center", "color": colour}
        for x, y in points:
            axes.annotate(f"{y:.2f}", (x, y), (0, 5 if encoder == "plain" else -10), **style)
    [enact] = [r["ratios"][kind] for r in records if (r["encoder"], r["share"]) == ("region", ALL)]
    axes.axhline(1.0, color=GREY, linewidth=0.9, label="DETR")
    axes.axhline(enact, color=GREY, linewidth=0.9, linestyle="--", label="DETR + ENACT, region")
    axes.set_ylim(0, 1.35)
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__, detectors=[DETECTOR], several=False)
    positive = number(int, 1)
    parser.add_argument("--image", type=size, metavar="WxH", help="default: 1066x800; quick: 320x256")
    parser.add_argument("--maps", choices=MAPS, nargs="+", default=[*MAPS], help="default: both")
    parser.add_argument("--ratios", type=ratio, nargs="+", default=[1 / 3, 0.5, 0.65, 0.8], help="default: 1/3, 0.5, 0.65 and 0.8")
    parser.add_argument("--batch_size", type=positive, default=1, help="B (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, help="rounds (default: 7; quick: 2)")
    args = parser.parse_args(argv)
    args.image = args.image or ((320, 256) if args.quick else (1066, 800))
    args.repeats = args.repeats or (2 if args.quick else 7)
    args.ratios = sorted({*args.ratios})
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = complete(args)
    records = []
    for name in args.maps:
        new = measure(name, args, device)
        print("\n" + table(new), flush=True)
        records += new
    width, height = args.image
    caption = (
        f"{LAYERS} encoder layers with their sampler, {width} \u00d7 {height}, B = {args.batch_size}\n{describe(machine(device))}"
    )
    units = {"forward": "s", "forward_backward": "s", "memory": "bytes", "gflops": "1e9 multiply-adds/image"}
    save(NAME, args, argv, {"units": units, "aim": AIM, "results": records}, figure=draw(records, caption))


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

"""Clusters of each encoder layer, before and after training: how many, how long, and whether Anchor DETR's rows and columns agree.

    python benchmarks/quality/regions.py                                  # the demos of all detectors, before training
    python benchmarks/quality/regions.py --checkpoint CKPT...             # before and after training

**Regions** are those of the paper (section 3.3), also in a model that was trained with windows: the maximal runs of equal sign of
the second derivative of the smoothed self-information, along the walk (``--scan``) of the model. Reported are their number M in an
image of N pixels and their lengths in pixels; of ``--cuts steps`` those of its clusters, which are as many. Independent pixels
would have regions too, of pi / arccos(rho) pixels on average, where rho is the correlation of neighbours in the second derivative
of smoothed noise: that is the yardstick for a signal. It is not proportional to sigma, because the Gaussian ends at 3 sigma, and
its ends bend the signal: 5.95 pixels at sigma = 3, 7.71 at 5, 6.01 at 7.

**Rows and columns.** The row-column decoupled attention of Anchor DETR has two keys, features + positions of the columns x ("row")
and features + positions of the rows y ("column"). The regions come from the row keys alone; the paper states that those from the
column keys are "similar by 95 % on average" (section 4.4). Measured is the share of pixels at which the step functions of both,
with the layer's one probability layer, are equal; beside it the share p q + (1 - p) (1 - q) that two independent step functions
with their shares p and q of ones would have.

Images are run one by one, so none is padded. Shapes: S sequences of an image (feature levels; 1 but for Anchor DETR with several),
N pixels, d features.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor, nn
from tqdm import tqdm

import tools.detectors  # noqa: F401 - it puts the detectors' packages on the path

# isort: split
from anchor_detr.rcda import ClusteredRCDA
from benchmarks.lib import cli
from benchmarks.lib.charts import BLUE, GREY, VERMILION, label_curves
from benchmarks.lib.models import Loaded, before_training, demo, images_of, trained
from common.boundary.checkpoints import load_checkpoint
from common.cli.arguments import number
from common.data.images import read_image
from common.predictor import batch_of
from enact.clustering import AutoCapacity, EntropyClustering
from enact.information import mean_length_of_noise, smooth_and_bend
from enact.scans import places

NAME = "quality/regions"
DECOUPLED = "Anchor-DETR-ENACT"
PAPER = 0.95  # share of equal pixels that section 4.4 states
STATES = {"before": (GREY, "before training"), "after": (BLUE, "after training")}
SHOWN = 0.995  # share of the regions that the lengths of the chart hold


def steps(information: Tensor, sigma: float) -> Tensor:
    """The step function of self-information (S, N) without padding: (S, N) bool, True where its smoothed signal is concave."""
    lengths = torch.full(information.shape[:1], information.shape[1], device=information.device)
    return smooth_and_bend(information, lengths, sigma, int(3 * sigma))[1]


def walked(information: Tensor, scores: EntropyClustering, feature_size: tuple[int, int]) -> Tensor:
    """Self-information (S, N) of a map of H x W pixels in the order in which its layer walks over them."""
    if scores.scan == "raster":
        return information  # also of sequences that are no map
    return information[:, places(scores.scan, feature_size, scores.band, device=information.device)[0].argsort()]


def run_lengths(step: Tensor) -> Tensor:
    """Lengths of the maximal runs of equal values of (N,)."""
    return torch.unique_consecutive(step, return_counts=True)[1]


def agreement(row: Tensor, column: Tensor) -> tuple[float, float]:
    """Share of pixels at which two step functions (N,) are equal, and that of independent ones with as many ones."""
    p, q = row.double().mean().item(), column.double().mean().item()
    return (row == column).double().mean().item(), p * q + (1 - p) * (1 - q)


def noise_length(sigma: float) -> float:
    """Mean length in pixels of the regions of independent normal pixels."""
    return mean_length_of_noise(sigma, int(3 * sigma))


@contextmanager
def column_keys(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects the column keys (S, N, d) of every decoupled attention: name of its probability layer -> what it met last."""
    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[f"{name}.W_prob"] = inputs[3].flatten(1, 2)

        return hook

    handles = [m.register_forward_pre_hook(keep(name)) for name, m in model.named_modules() if isinstance(m, ClusteredRCDA)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def measure(loaded: Loaded, images: Sequence[Path]) -> dict[str, Any]:
    """What the layers do with each image: ``N`` of every sequence, and a list of ``layers``.

    A layer has ``counts`` (M of every sequence), ``exceeded`` (share of the sequences with more than ``--capacity auto`` has
    room for), ``lengths`` (number of regions of 0, 1, ... pixels) and ``mean_length``; with decoupled attention also ``agreement``
    and ``chance`` of every sequence and their means.
    """
    sigma = loaded.args.smoothing_sigma
    sizes: list[int] = []
    layers: list[dict[str, Any]] = []
    with column_keys(loaded.model) as columns:
        for path in tqdm(images, desc=f"{loaded.detector.name}, {loaded.state} training", leave=False):
            clusters, outputs = loaded.observe(batch_of([read_image(path)], loaded.args.image_size))
            layers = layers or [{"layer": i, "counts": [], "lengths": []} for i in range(len(clusters))]
            for layer, (name, record) in zip(layers, clusters.items()):
                scores, size = loaded.model.get_submodule(name), outputs["feature_size"]
                rows = steps(walked(record.information, scores, size), sigma)
                for row, index in zip(rows, record.index):
                    runs = run_lengths(row)
                    layer["counts"].append(len(runs))
                    layer["lengths"] += (index.bincount() if scores.cuts == "steps" else runs).tolist()
                if name in columns:
                    information = scores(columns[name], feature_size=size).information
                    for pair in zip(rows, steps(walked(information, scores, size), sigma)):
                        for key, share in zip(("agreement", "chance"), agreement(*pair)):
                            layer.setdefault(key, []).append(share)
            sizes += [rows.shape[1]] * len(rows)
    room = AutoCapacity("region", sigma)
    for layer in layers:
        layer["exceeded"] = float(np.mean([m > room.of(n) for m, n in zip(layer["counts"], sizes)]))
        layer["mean_length"] = float(np.mean(layer["lengths"]))
        layer["lengths"] = np.bincount(layer["lengths"]).tolist()
        layer |= {f"mean_{key}": float(np.mean(layer[key])) for key in ("agreement", "chance") if key in layer}
    return {"N": sizes, "layers": layers}


def records_of(loaded: Loaded, label: str, images: Sequence[Path]) -> dict[str, Any]:
    """What :func:`measure` found, and of what."""
    description = {"label": label, "detector": loaded.detector.name, "state": loaded.state, "checkpoint": loaded.source}
    return description | loaded.settings | measure(loaded, images)


def lengths_of(layer: dict[str, Any]) -> np.ndarray:
    """The lengths of a layer's regions, ascending."""
    return np.repeat(np.arange(len(layer["lengths"])), layer["lengths"])


def table(records: list[dict[str, Any]]) -> str:
    """The records of one model."""
    first = records[0]
    decoupled = "agreement" in first["layers"][0]
    source = records[-1]["checkpoint"] or "--demo"
    title = f"{first['label']}: {source}, image size {first['image_size']}, seed {first['seed']}"
    sizes = f"N = {min(first['N'])} to {max(first['N'])} ({np.mean(first['N']):.1f} on average)"
    noise = f"independent pixels would give regions of {noise_length(first['smoothing_sigma']):.2f} pixels"
    heads = f"{'':18}{'regions M':>18}{'length (pixels)':>32}{'over':>10}{'rows = columns' if decoupled else '':>21}"
    parts = f"{'':18}{'mean':>6}{'least':>6}{'most':>6}{'mean':>8}{'10 %':>8}{'50 %':>8}{'90 %':>8}{'capacity':>10}"
    lines = [title, f"{sizes}; {noise}", heads, parts + (f"{'share':>11}{'by chance':>10}" if decoupled else "")]
    for r in records:
        for layer in r["layers"]:
            counts, lengths = layer["counts"], lengths_of(layer)
            quantiles = "".join(f"{np.quantile(lengths, q):8.0f}" for q in (0.1, 0.5, 0.9))
            shares = f"{layer['mean_agreement']:11.1%}{layer['mean_chance']:10.1%}" if decoupled else ""
            regions = f"{np.mean(counts):6.1f}{min(counts):6d}{max(counts):6d}{layer['mean_length']:8.2f}"
            over = f"{layer['exceeded']:10.1%}"
            lines.append(f"  {r['state']:7} layer {layer['layer']:<2}{regions}{quantiles}{over}{shares}")
        if decoupled:
            means = (np.mean([layer[f"mean_{key}"] for layer in r["layers"]]) for key in ("agreement", "chance"))
            lines.append(f"  {r['state']:7} mean{'':64}" + "".join(f"{m:{w}.1%}" for m, w in zip(means, (11, 10))))
    return "\n".join(lines)


def draw(records: list[dict[str, Any]], caption: str) -> Figure:
    """A row of histograms per model, one per layer; below them the agreement of rows and columns, where a model has both."""
    models = {r["label"]: [x for x in records if x["label"] == r["label"]] for r in records}
    decoupled = [r for r in records if "agreement" in r["layers"][0]]
    heights = [1.5] * len(models) + [1.7] * bool(decoupled)
    figure = Figure(figsize=(8.2, sum(heights) + 0.7), dpi=200, layout="constrained")
    rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    longest = max(np.quantile(lengths_of(layer), SHOWN) for r in records for layer in r["layers"])
    for row, (label, states) in zip(rows, models.items()):
        charts = row.subgridspec(1, len(states[0]["layers"])).subplots(sharey=True, squeeze=False)[0]
        for i, axes in enumerate(charts):
            _histogram(axes, states, i, longest)
        title = f"{label}: lengths of regions (pixels)"
        text = charts[0].annotate(title, (0, 1), (0, 5), "axes fraction", "offset points", fontsize=9)
        text.set_in_layout(False)  # it may be wider than a chart, which it would widen
        charts[0].set_title(" ", fontsize=9)  # keeps its height
        charts[0].set_ylabel("regions", fontsize=8)
    handles = {text: handle for chart in figure.axes for handle, text in zip(*chart.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=7.5)
    if decoupled:
        _agreement(figure.add_subplot(rows[-1]), decoupled)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def _histogram(axes: Axes, states: list[dict[str, Any]], i: int, longest: float) -> None:
    """The lengths of layer i's regions in both states."""
    layers = [r["layers"][i] for r in states]
    for r, layer in zip(states, layers):
        colour, text = STATES[r["state"]]
        shares = np.array(layer["lengths"]) / sum(layer["lengths"])
        style = {"fill": True, "color": "0.8"} if r["state"] == "before" else {"color": colour, "linewidth": 1.3}
        axes.stairs(shares, np.arange(len(shares) + 1) - 0.5, label=text, **style)
    noise = noise_length(states[0]["smoothing_sigma"])
    axes.axvline(noise, color=VERMILION, linewidth=1, linestyle=":", label="mean length that independent pixels would give")
    means = " \u2192 ".join(f"{layer['mean_length']:.2f}" for layer in layers)
    axes.set_xlabel(f"layer {i}\nmean {means}", fontsize=7.5)
    axes.set_xlim(0.5, longest + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    _plain(axes)


def _agreement(axes: Axes, records: list[dict[str, Any]]) -> None:
    """The mean agreement over the layers, what chance gives, and the paper's number."""
    last = max(len(r["layers"]) for r in records) - 1
    several = len({r["label"] for r in records}) > 1
    axes.plot([0, last], [PAPER] * 2, "--", color=VERMILION, linewidth=1.3, label="paper")
    labels = {"paper": f"paper, on average: {PAPER:.0%}", "chance": "independent step functions"}
    longest = max(reversed(records), key=lambda r: len(r["layers"]))
    for r in records:
        colour, text = STATES[r["state"]]
        name = f"{r['label']}, {text}" if several else text
        shares, chances = ([layer[f"mean_{key}"] for layer in r["layers"]] for key in ("agreement", "chance"))
        axes.plot(shares, "o-", color=colour, linewidth=1.3, markersize=4, label=name)
        # All lie at one half or little above it: one label says what they are.
        axes.plot(chances, ":", color=colour, linewidth=1.3, label="chance" if r is longest else None)
        labels[name] = f"{name}: {shares[-1]:.0%}"
    axes.set_ylim(min(0.4, axes.dataLim.y0), 1)
    axes.set_xticks(range(last + 1))
    axes.set_xlabel("encoder layer", fontsize=8)
    axes.set_title("Pixels at which the step functions of row and column keys agree", fontsize=9, loc="left")
    _plain(axes)
    label_curves(axes, labels)


def _plain(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)


def label_of(loaded: Loaded, others: Sequence[str]) -> str:
    """What a model is called in the table and the chart; a number tells it from others of the same name."""
    same = sum(other.startswith(loaded.label) for other in {*others})
    return f"{loaded.label} ({same + 1})" if same else loaded.label


def run(argv: list[str]) -> None:
    parser = cli.build_parser(NAME, __doc__)
    parser.add_argument("--checkpoint", nargs="+", metavar="CKPT", help="of this repository or published: paths or https URLs")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="default: the built-in shapes for validation")
    parser.add_argument("--count", type=number(int, 1), help="images (default: 250; quick: 10)")
    parser.add_argument("--image_size", type=number(int, 32), help="shortest side (default: that of the checkpoint or the demo)")
    parser.add_argument("--smoothing_sigma", type=number(float, 1), help="in pixels (default: that of the checkpoint or the demo)")
    args = parser.parse_args(argv)
    args.count = args.count or (10 if args.quick else 250)
    device = cli.complete(args)
    images = images_of(args.images, args.count)
    print(f"{len(images)} images of {images[0].parent}", flush=True)

    changes = {"image_size": args.image_size, "smoothing_sigma": args.smoothing_sigma}
    records: list[dict[str, Any]] = []
    for source in args.checkpoint or args.detector:
        if args.checkpoint:
            loaded = trained(load_checkpoint(source), source, args.detector, device, changes)
            states = [state for state in (before_training(loaded), loaded) if state]
        else:
            loaded = demo(source, device, changes)
            states = [loaded]
        label = label_of(loaded, [r["label"] for r in records])
        new = [records_of(state, label, images) for state in states]
        print("\n" + table(new), flush=True)
        records += new
    sizes = [n for r in records for n in r["N"]]
    caption = f"{len(images)} images of {images[0].parent.name}, N = {min(sizes)} to {max(sizes)} pixels of the feature map"
    cli.save(NAME, args, argv, {"images": str(images[0].parent), "results": records}, figure=draw(records, caption))


if __name__ == "__main__":
    sys.exit(cli.main(NAME, run, sys.argv[1:]))

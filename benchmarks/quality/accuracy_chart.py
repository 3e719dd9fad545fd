"""The picture of ``accuracy.py``: AP per epoch over sigma, and final AP of every detector and clustering."""

from collections.abc import Sequence
from itertools import cycle
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.lib.charts import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION
from tools.detectors import options

COLOURS = {"none": GREY, "window": VERMILION, "region": BLUE, "region+": GREEN}
SIGMA_COLOURS = (BLUE, ORANGE, PURPLE, VERMILION)


def draw(records: Sequence[dict], curves: Sequence[str], caption: str) -> Figure:
    """Left: AP per epoch over sigma (figure 3) of the detectors ``curves``. Right: final AP of all with every clustering, a dot for
    each seed.
    """
    figure = Figure(figsize=(4.5 + 3.5 * len(curves), 3), dpi=200, layout="constrained")
    *lefts, right = charts = figure.subplots(1, len(curves) + 1, width_ratios=(*[1] * len(curves), 1.15))
    for left, detector in zip(lefts, curves, strict=True):
        _draw_curves(left, [r for r in records if r["detector"] == detector and r["clustering"] in ("none", "region")])
        left.set_title(f"{detector}: AP (%) per epoch", fontsize=9)
    detectors = list(dict.fromkeys(r["detector"] for r in records))
    demo = {d: options(d, ["--demo"]).smoothing_sigma for d in detectors}
    shown = [r for r in records if r["sigma"] in (None, demo[r["detector"]])]
    _draw_finals(right, shown, detectors)
    right.set_title("AP (%) after the last epoch", fontsize=9)
    for axes in charts:
        axes.tick_params(labelsize=7.5)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def _draw_curves(axes: Axes, records: Sequence[dict]) -> None:
    colours = cycle(SIGMA_COLOURS)
    for r in sorted(records, key=lambda r: r["sigma"] or 0):
        plain = r["clustering"] == "none"
        label, colour = ("plain", GREY) if plain else (f"region, \u03c3 = {r['sigma']:g}", next(colours))
        epochs = sorted(set.intersection(*(set(log) for log in r["AP_per_epoch"])))
        values = [[log[epoch] for log in r["AP_per_epoch"]] for epoch in epochs]
        shown = [epoch + 1 for epoch in epochs]
        axes.plot(
            shown, [mean(v) for v in values], "o--" if plain else "o-", color=colour, label=label, linewidth=1.3, markersize=3
        )
        if len(r["seeds"]) > 1:
            axes.fill_between(shown, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if records:
        axes.legend(frameon=False, fontsize=7.5)


def _draw_finals(axes: Axes, records: Sequence[dict], detectors: Sequence[str]) -> None:
    for r in records:
        x = detectors.index(r["detector"]) + 0.21 * (list(COLOURS).index(r["clustering"]) - 1.5)
        axes.bar(x, r["AP"], 0.19, color=COLOURS[r["clustering"]], alpha=0.75)
        if len(r["seeds"]) > 1:
            axes.plot([x] * len(r["seeds"]), r["AP_seeds"], "o", color="black", markersize=2.5)
        above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{r['AP']:.1f}", (x, max(r["AP_seeds"])), **above, fontsize=7)
    for name, colour in COLOURS.items():
        if any(r["clustering"] == name for r in records):
            axes.bar(0, 0, color=colour, alpha=0.75, label=name)
    axes.set_xticks(range(len(detectors)), [d.removesuffix("-ENACT") for d in detectors])
    if records:
        axes.legend(frameon=False, fontsize=7.5, loc="upper left", ncols=len(COLOURS))
    axes.set_ylim(top=1.25 * max([1.0, *(max(r["AP_seeds"]) for r in records)]))

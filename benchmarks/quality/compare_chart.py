"""The pictures of ``compare.py``: AP over the time of training, and over the encoder's multiply-adds."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.lib.charts import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, label_curves
from benchmarks.lib.flops import ENCODER
from benchmarks.lib.methods import Method, models
from benchmarks.quality.compare_runs import MINUTES, Results

COLOURS = dict(
    zip(
        ("DETR", "Conditional DETR", "Anchor DETR", "PnP-DETR", "Deformable DETR", "DAC-DETR"),
        (BLUE, VERMILION, GREEN, PURPLE, GREY, ORANGE),
    )
)
PLAIN_MARKERS, ENACT_MARKER = "osv^", "D"  # of a family's plain models in turn


def draw_time(results: Results, methods: Sequence[Method], machine: str, minutes: float, caption: str) -> Figure:
    """A curve per model that was trained for equal minutes on this machine, mean over its seeds, with a mark for every epoch."""
    figure, axes = _axes((8.8, 5.0))
    labels, looks = {}, marks(methods)
    for group in models(methods):
        method = group[-1]  # PnP-DETR with most of the pixels
        runs = [r for key, r in results.items() if (key.method, key.kind, key.machine) == (method.name, MINUTES, machine)]
        if not runs:
            continue
        epochs = range(min(run.epochs for run in runs))
        times = [mean(run.minutes[epoch] for run in runs) for epoch in epochs]
        precisions = [mean(run.AP[epoch] for run in runs) for epoch in epochs]
        style = {"linewidth": 1.1, "linestyle": "--" if method.enact else "-"}
        axes.plot(times, precisions, label=method.name, **looks[method.name] | style)
        labels[method.name] = method.name
    axes.axvline(minutes, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xlim(0, max(axes.get_xlim()[1], 1.02 * minutes))
    axes.set_ylim(0)
    axes.set_xlabel("minutes of training", fontsize=8)
    axes.set_ylabel(f"AP (%), each trained for {minutes:g} minutes", fontsize=8)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    if labels:
        label_curves(axes, labels, align=True)
    return figure


def draw_flops(records: Sequence[Mapping[str, Any]], methods: Sequence[Method], epochs: int, caption: str) -> Figure:
    """A point per method and a bar from its worst run to its best; lines join PnP-DETR's shares, and a detector and its ENACT."""
    figure, axes = _axes((8.8, 4.6))
    looks = marks(methods)
    known = {record["name"]: record for record in records}
    places = {record["name"]: (1e3 * record["gflops"][ENCODER], record["AP"]) for record in records}
    for group in models(methods):
        label = f"{group[0].name} to {group[-1].share[0]}" if group[-1].share else group[0].name
        points = zip(*(places[method.name] for method in group))
        line = "none" if len(group) == 1 else "--" if group[0].enact else "-"
        axes.plot(*points, label=label, linewidth=0.9, linestyle=line, **looks[group[0].name])
        for method in group:
            values = known[method.name]["AP_runs"]
            axes.vlines(places[method.name][0], min(values), max(values), color=COLOURS[method.family], linewidth=0.7, alpha=0.6)
    for plain, enact in _pairs(methods):
        axes.plot(*zip(places[plain.name], places[enact.name]), color=COLOURS[plain.family], linewidth=0.7, linestyle=":")
    axes.set_xlim(0)
    axes.set_ylim(0)
    axes.set_xlabel("MFLOPs of the encoder per image (one multiply-add = 1)", fontsize=8)
    axes.set_ylabel(f"AP (%) after {epochs} epoch{'s' * (epochs > 1)}", fontsize=8)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7.5)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def marks(methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """How each method is drawn: one colour per family, one marker per model of it, filled with ENACT."""
    looks = {}
    for family, group in groupby(methods, key=lambda method: method.family):
        plain = iter(PLAIN_MARKERS)
        for same in models(group):
            colour = COLOURS[family]
            marker = ENACT_MARKER if same[0].enact else next(plain)
            face = colour if same[0].enact else "white"
            look = {"color": colour, "marker": marker, "markerfacecolor": face, "markersize": 5.5}
            looks |= {method.name: look for method in same}
    return looks


def _pairs(methods: Sequence[Method]) -> list[tuple[Method, Method]]:
    """The same without ENACT and with it."""
    forms = {(method.family, method.share, method.enact): method for method in methods}
    pairs = ((forms.get((family, share, False)), method) for (family, share, enact), method in forms.items() if enact)
    return [(plain, enact) for plain, enact in pairs if plain]


def _axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes

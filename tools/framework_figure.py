"""The framework of ENACT as one figure, drawn from what a forward pass has computed.

Shapes: h x w feature map, N = h * w pixels in row-major order, M clusters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Patch, Rectangle

STRETCH = 120  # pixels of the sequence that the signal is shown for, about
CONCAVE, CONVEX = ("#F4A259", "#FBD3A4"), ("#6FAEDB", "#B9DAF0")  # two shades each: clusters lie above each other too
INK, GREY, FRAME = "0.1", "0.4", "#00E0C6"
SIZE, SMALL = 8.5, 7.5  # points


@dataclass(frozen=True)
class Observation:
    """What ENACT made of one image in one encoder layer.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        information, smoothed, index: (h, w) of the ``enact.Clusters`` of that layer.
        plain: (N, N) attention weights, mean of the heads, that the same parameters give without clustering.
        clustered: (N, M) attention weights, mean of the heads.
    """

    image: np.ndarray
    information: np.ndarray
    smoothed: np.ndarray
    index: np.ndarray
    plain: np.ndarray
    clustered: np.ndarray


def draw_framework(observation: Observation) -> Figure:
    """Image, self-information, regions and attention in a row; below them the signal that leads from the second to the third."""
    n, m = observation.clustered.shape
    h, w = observation.index.shape
    figure = Figure(figsize=(8, 4), dpi=200, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.06, wspace=0.06, hspace=0)
    # The widths are in proportion to what is shown, so that all pictures come out equally high.
    grid = figure.add_gridspec(2, 5, height_ratios=(1.75, 1), width_ratios=(w / h, w / h, w / h, 1, m / n))
    image, information, regions, plain, clustered = (figure.add_subplot(grid[0, i]) for i in range(5))
    signal = figure.add_subplot(grid[1, :])
    rows = busiest_rows(observation.smoothed, max(1, round(STRETCH / w)))
    colours = cluster_colours(observation.smoothed.ravel(), observation.index.ravel())

    over_map = {"extent": (0, w, h, 0)}
    _show(image, observation.image, "(a) image", "{} \u00d7 {} pixels".format(*observation.image.shape), **over_map)
    keys = f"$N$ = {h} \u00d7 {w} = {n} keys"
    _show(information, observation.information, "(b) self-information", keys, cmap="inferno", **over_map)
    frame = Rectangle((0, rows.start), w, len(rows), fill=False, edgecolor=FRAME, linewidth=1.6, clip_on=False, zorder=3)
    information.add_patch(frame)
    _draw_signal(signal, observation, rows, colours)
    _show(regions, _coloured(observation.index, colours), "(d) regions", f"$M$ = {m} clusters", **over_map)
    regions.add_collection(LineCollection(borders(observation.index), colors="white", linewidths=0.7, capstyle="projecting"))
    _show_attention(plain, observation.plain, "(e) attention weights", f"plain: {n} \u00d7 {n}")
    _show_attention(clustered, observation.clustered, "", f"ENACT:\n{n} \u00d7 {m}")

    below = -0.15  # of a picture, the place under its label
    _arrow(image, (1, 0.5), information, (0, 0.5))
    _arrow(information, (0.5, below), signal, (_across(information, signal), 1))
    _arrow(signal, (_across(regions, signal), 1), regions, (0.5, below))
    _arrow(regions, (1, 0.5), plain, (0, 0.5))
    for axes, point, offset, text in (
        (image, (1, 0.5), (4, 4), "keys"),
        (information, (0.5, below), (5, -12), "flatten"),
        (regions, (0.5, below), (5, -12), "fold back"),
        (regions, (1, 0.5), (4, 4), "pool"),
    ):
        note = axes.annotate(text, point, offset, "axes fraction", "offset points", fontsize=SMALL - 0.5, color=GREY)
        note.set_in_layout(False)
    return figure


def busiest_rows(smoothed: np.ndarray, count: int) -> range:
    """The ``count`` neighbouring rows, at most h, in which a map (h, w) varies most."""
    count = min(count, len(smoothed))
    stretches = [range(top, top + count) for top in range(len(smoothed) - count + 1)]
    return max(stretches, key=lambda rows: smoothed[rows.start : rows.stop].std())


def cluster_colours(smoothed: np.ndarray, index: np.ndarray) -> list[str]:
    """A colour per cluster, orange where the signal is concave and blue where it is convex.

    Args:
        smoothed, index: (N,), the signal and the cluster of each pixel. The sign changes from each cluster to the next.
    """
    concave = 2 * smoothed[1] - smoothed[0] - smoothed[2] > 0
    parity = (index[1] + (not concave)) % 2
    return [(CONCAVE if cluster % 2 == parity else CONVEX)[cluster // 2 % 2] for cluster in range(index[-1] + 1)]


def borders(index: np.ndarray) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The lines, from (x, y) to (x, y), between neighbours of different clusters in a map (h, w)."""
    upright = [((x + 1, y), (x + 1, y + 1)) for y, x in zip(*np.nonzero(np.diff(index, axis=1)))]
    level = [((x, y + 1), (x + 1, y + 1)) for y, x in zip(*np.nonzero(np.diff(index, axis=0)))]
    return upright + level


def _draw_signal(axes: Axes, observation: Observation, rows: range, colours: Sequence[str]) -> None:
    """The information along some rows of the map, one behind the other, over the clusters that it makes."""
    w = observation.index.shape[1]
    start, stop = rows.start * w, rows.stop * w
    index = observation.index.ravel()[start:stop]
    edges = [0, *(np.flatnonzero(np.diff(index)) + 1), len(index)]
    for left, right in zip(edges, edges[1:]):
        axes.axvspan(start + left - 0.5, start + right - 0.5, color=colours[index[left]], linewidth=0)
    raw, smooth = (1e3 * signal.ravel()[start:stop] for signal in (observation.information, observation.smoothed))
    axes.plot(range(start, stop), raw, color=GREY, linewidth=0.8, label="self-information")
    axes.plot(range(start, stop), smooth, color=INK, linewidth=2, label="smoothed")
    axes.set_xlim(start - 0.5, stop - 0.5)
    axes.set_xticks(range(start, stop, w))
    axes.set_xlabel("pixel of the flattened map, a tick where a row begins", fontsize=SMALL, color=INK, loc="left")
    axes.set_ylabel("$10^{-3}$ bit", fontsize=SMALL, color=GREY)
    axes.tick_params(labelsize=SMALL, colors=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("(c) framed rows, smoothed and cut", fontsize=SIZE, loc="left", color=INK)
    patches = [Patch(color=CONCAVE[0], label="concave"), Patch(color=CONVEX[0], label="convex")]
    style = {"fontsize": SMALL, "ncols": 4, "frameon": False, "handlelength": 1.5, "borderaxespad": 0}
    axes.legend(handles=[*axes.lines, *patches], loc="upper right", bbox_to_anchor=(1, -0.16), **style)


def _coloured(index: np.ndarray, colours: Sequence[str]) -> np.ndarray:
    return np.array([to_rgb(colour) for colour in colours])[index]


def _show(axes: Axes, picture: np.ndarray, title: str, label: str, **how) -> None:
    axes.imshow(picture, **how)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=SIZE, color=INK)
    below = {"xytext": (0, -4), "textcoords": "offset points", "ha": "center", "va": "top"}
    axes.annotate(label, (0.5, 0), xycoords="axes fraction", fontsize=SMALL, color=INK, **below)  # an xlabel may not be wider


def _show_attention(axes: Axes, weights: np.ndarray, title: str, label: str) -> None:
    """Weights by query and key; the largest ones are clipped, as a few would leave the others dark."""
    _show(axes, weights, title, label, cmap="viridis", norm=PowerNorm(0.5, 0, np.quantile(weights, 0.995)))


def _across(upper: Axes, lower: Axes) -> float:
    """Where the middle of the upper axes lies along the lower ones, from 0 to 1, once the figure is laid out."""
    upper.figure.draw_without_rendering()
    middle = upper.transAxes.transform((0.5, 0.5))
    return lower.transAxes.inverted().transform(middle)[0]


def _arrow(start: Axes, a: tuple[float, float], end: Axes, b: tuple[float, float]) -> None:
    """An arrow between two points in the axes' own units, from 0 to 1."""
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.2, "color": INK, "shrinkA": 3, "shrinkB": 3}
    arrow = start.figure.add_artist(ConnectionPatch(a, b, start.transAxes, end.transAxes, **style))
    arrow.set_in_layout(False)

"""What the benchmarks' charts share."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter
from scipy.optimize import isotonic_regression

from common.output.drawing import PALETTE

GREY, BLUE, VERMILION, GREEN, PURPLE, ORANGE = "0.35", *(PALETTE[[6, 1, 3, 4, 5]] / 255)  # the dark ones, for lines on white
LABEL_HEIGHT = 9.5  # points between the baselines of two labels


def scaling_axes(axes: Axes, title: str, x: Sequence[float], x_label: str) -> None:
    """Makes the axes logarithmic, with a tick at every measured x."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x_label, fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def label_curves(axes: Axes, labels: Mapping[str, str], align: bool = False) -> None:
    """Writes a label at the right end of every curve that ``labels`` names, in its colour, moved as little as keeps them apart.

    Where the curves end at different places, ``align`` puts the labels below each other, right of the axes, and dots lead to them.
    """
    figure = axes.figure
    FigureCanvasAgg(figure).draw()  # lays the figure out, so that heights in points are known
    curves = [line for line in axes.lines if line.get_label() in labels]
    ends = np.array([axes.transData.transform(line.get_xydata()[-1])[1] for line in curves]) * 72 / figure.dpi
    order = np.argsort(ends, kind="stable")
    steps = LABEL_HEIGHT * np.arange(len(order))
    places = isotonic_regression(ends[order] - steps).x + steps
    leader = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)}  # to the label's left end
    leader |= {"linestyle": ":"} if align else {}
    for i, place in zip(order, places):
        line = curves[i]
        axes.annotate(
            labels[line.get_label()],
            line.get_xydata()[-1],
            (1.01 if align else 9, place - ends[i]),
            textcoords=("axes fraction" if align else "offset points", "offset points"),
            color=line.get_color(),
            fontsize=7.5,
            va="center",
            annotation_clip=False,
            arrowprops=leader | {"color": line.get_color()},
        )

"""Training curves."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..boundary.logs import read_log
from ..errors import UserError
from .drawing import PALETTE


def plot_curves(log_path: str | os.PathLike, out_path: str | os.PathLike) -> None:
    """Draw the losses and the average precision of a training log over its epochs.

    Args:
        log_path: `log.txt`, one JSON object per line and epoch. Of an epoch that appears twice, as after a resumed
            run, the last line counts. Values that are missing or not finite are left out.
        out_path: the figure, in the format of the extension (.png, .pdf, .svg).

    Raises `UserError` if the log cannot be read or holds no curve, or if the figure cannot be written.
    """
    records = _finite_numbers(Path(log_path))
    figure = Figure(figsize=(10.5, 2.8), layout="constrained")
    total, parts, precision = charts = figure.subplots(1, 3)
    blue, red, green = PALETTE[[6, 1, 3]] / 255  # the dark ones, for lines on white
    for split in ("train", "test"):
        layers = "all decoder layers" if split == "train" else "the last one"
        _plot(total, records, f"{split}_loss", f"{split}, {layers}", blue)
        _plot(parts, records, f"{split}_loss_ce", f"class, {split}", blue)
        _plot(parts, records, f"{split}_loss_bbox", f"L1, {split}", red)
        _plot(parts, records, f"{split}_loss_giou", f"GIoU, {split}", green)
    for name, colour in (("AP", blue), ("AP50", red), ("AP75", green)):
        _plot(precision, records, name, name, colour)
    if not any(axes.lines for axes in charts):
        raise UserError(f"The log {log_path} holds neither losses nor evaluations to plot.")
    for axes, title in zip(charts, ("Loss", "Loss components", "Average precision (%)"), strict=True):
        axes.set_title(title, fontsize=10)
        if not axes.lines:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "not in the log", color="0.5", ha="center", va="center", transform=axes.transAxes)
            continue
        axes.set_xlim(records[0]["epoch"] - 0.5, records[-1]["epoch"] + 0.5)
        axes.set_ylim(0, 1.08 * axes.dataLim.y1 or 1)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9", linewidth=0.6)
        axes.legend(frameon=False, fontsize=8, ncols=2 if axes is parts else 1)
    try:
        figure.savefig(out_path, dpi=200)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot write the figure {out_path}: {error}.") from None


def _plot(axes: Axes, records: Sequence[dict], key: str, label: str, colour: np.ndarray) -> None:
    """Plot the values of one key: training solid, testing dashed with hollow dots."""
    points = [(record["epoch"], record[key]) for record in records if key in record]
    if points:
        line, face = ("--", "white") if key.startswith("test") else ("-", colour)
        # A line through one point would be invisible, and a dot on the axis would be cut in half.
        dots = {"marker": "o" if len(points) <= 20 else None, "markersize": 4, "mfc": face, "clip_on": False}
        axes.plot(*zip(*points, strict=True), line, color=colour, linewidth=1.4, label=label, **dots)


def _finite_numbers(path: Path) -> list[dict[str, float]]:
    """Return the finite numbers of a log's records, by epoch, with AP, AP50 and AP75 in percent."""
    found = []
    for epoch, record in sorted(read_log(path).items()):
        try:
            stats = zip(("AP", "AP50", "AP75"), record.get("test_coco_eval_bbox") or [], strict=False)
            percent = {name: 100 * value for name, value in stats if value >= 0}  # -1: there was nothing to find
        except TypeError:
            raise UserError(f"The log {path} is broken: test_coco_eval_bbox of epoch {epoch} is no list of numbers.") from None
        found.append({k: v for k, v in (record | percent).items() if isinstance(v, (int, float)) and math.isfinite(v)})
    if not found:
        raise UserError(f"The log {path} is empty: train for an epoch first.")
    return found

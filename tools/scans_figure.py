"""The clusters of one image under each order of its pixels, as one figure.

Shapes: H x W image, h x w feature map.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from tools.framework_figure import INK, SIZE, SMALL, borders


def draw_scans(image: np.ndarray, indices: Mapping[str, np.ndarray], places: Mapping[str, np.ndarray]) -> Figure:
    """The image (H, W, 3), and beside it, for each scan, the clusters (h, w) under a line along the walk.

    Args:
        indices: scan -> the cluster of each pixel, (h, w).
        places: scan -> where each pixel stands in the walk, (h, w).
    """
    h, w = next(iter(indices.values())).shape
    figure = Figure(figsize=(8, 0.5 + 8 / (len(indices) + 1) * h / w), dpi=200, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    first, *others = figure.subplots(1, 1 + len(indices))
    first.imshow(image, extent=(0, w, h, 0))
    first.set_title("image", fontsize=SIZE, color=INK)
    for axes, (scan, index) in zip(others, indices.items()):
        axes.imshow(index / index.max(), extent=(0, w, h, 0), cmap="viridis", vmin=-0.2, vmax=1.1)
        axes.add_collection(LineCollection(borders(index), colors="white", linewidths=0.9, capstyle="projecting"))
        rows, columns = np.divmod(places[scan].ravel().argsort(), w)
        axes.plot(columns + 0.5, rows + 0.5, color="black", linewidth=0.45, alpha=0.55)
        axes.set_title(scan, fontsize=SIZE, color=INK)
        axes.set_xlabel(f"$M$ = {index.max() + 1}, {_extent(index):.1f} pixels wide", fontsize=SMALL, color=INK)
    for axes in (first, *others):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return figure


def _extent(index: np.ndarray) -> float:
    """Mean over the pixels of the longer side of their cluster's bounding box."""
    rows, columns = np.indices(index.shape)
    sides = [max(np.ptp(rows[index == m]), np.ptp(columns[index == m])) + 1 for m in range(index.max() + 1)]
    return float(np.mean(np.array(sides)[index]))

"""The picture of ``fidelity.py``: the error of every layer, and what AP loses without fine-tuning."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.lib.charts import GREY
from benchmarks.quality.fidelity_variants import VARIANTS


def draw(records: list[dict[str, Any]], caption: str) -> Figure:
    """A row per detector and dataset. Left: the error of every layer; right: AP without fine-tuning, less the plain model's."""
    figure = Figure(figsize=(8.4, 0.6 + 2.6 * len(records)), dpi=200, layout="constrained")
    for record, (left, right) in zip(records, figure.subplots(len(records), 2, squeeze=False)):
        variants = record["variants"]
        for i, (variant, found) in enumerate(variants.items()):
            colour, errors = VARIANTS[variant].colour, [layer["error"] for layer in found["layers"]]
            x = np.arange(len(errors)) + 0.8 * ((i + 0.5) / len(variants) - 0.5)
            left.bar(x, errors, 0.75 / len(variants), color=colour, label=variant)
            right.bar(i, found["AP_to_plain"], 0.75, color=colour)
            right.plot([i] * len(found["AP_to_plain_seeds"]), found["AP_to_plain_seeds"], "o", color="black", markersize=2)
        right.axhline(0, color=GREY, linewidth=0.8)
        name = f"{record['detector'].removesuffix('-ENACT')}, {Path(record['coco_path']).name}"
        left.set_title(f"{name}: relative error of the attention", fontsize=9)
        right.set_title(f"AP (%) without fine-tuning, less the plain model's {record['AP_plain']:.1f}", fontsize=9)
        left.set_xticks(range(len(errors)), [f"layer {i}" for i in range(len(errors))])
        right.set_xticks(range(len(variants)), variants, rotation=30, ha="right", rotation_mode="anchor")
        left.legend(frameon=False, fontsize=7, ncols=5, columnspacing=0.8, handlelength=1, loc="upper left")
        left.set_ylim(top=1.3 * max(layer["error"] for found in variants.values() for layer in found["layers"]))
        for axes in (left, right):
            axes.tick_params(labelsize=7.5)
            axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure

"""The picture of ``fidelity.py``: what AP loses without fine-tuning, and the error of every layer."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.lib.charts import GREY
from benchmarks.quality.fidelity_variants import VARIANTS


def draw(records: list[dict[str, Any]], caption: str) -> Figure:
    """A row of charts per detector and dataset: AP without fine-tuning, less the plain model's; and the error of every layer."""
    layers = max(len(found["layers"]) for record in records for found in record["variants"].values())
    height = sum(0.7 + 0.17 * len(record["variants"]) for record in records)
    figure = Figure(figsize=(8.4, 0.3 + height), dpi=200, layout="constrained")
    widths = [2, *[1] * layers]
    for record, row in zip(records, figure.subplots(len(records), 1 + layers, squeeze=False, sharey="row", width_ratios=widths)):
        variants = record["variants"]
        colours = [VARIANTS[variant].colour for variant in variants]
        places = np.arange(len(variants))
        loss, *errors = row
        loss.barh(places, [found["AP_to_plain"] for found in variants.values()], 0.75, color=colours)
        for place, found in zip(places, variants.values()):
            of_seeds = found["AP_to_plain_seeds"]
            loss.plot(of_seeds, [place] * len(of_seeds), "o", color="black", markersize=1.8)
        loss.axvline(0, color=GREY, linewidth=0.8)
        loss.set_yticks(places, variants)
        loss.invert_yaxis()
        name = f"{record['detector'].removesuffix('-ENACT')}, {Path(record['coco_path']).name}"
        loss.set_title(f"{name}: AP (%) less plain's {record['AP_plain']:.1f}", fontsize=8.5)
        for i, axes in enumerate(errors):
            of_layer = [found["layers"][i]["error"] for found in variants.values() if i < len(found["layers"])]
            if not of_layer:
                axes.set_visible(False)
                continue
            axes.barh(places, of_layer, 0.75, color=colours)
            axes.set_title(f"error, layer {i}", fontsize=8.5)
        for axes in row:
            axes.tick_params(labelsize=7.5)
            axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure

"""The ways to cluster that ``fidelity.py`` compares: a row of its table is a row of `VARIANTS`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib.charts import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from enact import clustering

PLAIN = ("--clustering", "none")
REGION = ("--clustering", "region")


class Variant(NamedTuple):
    """A way to cluster.

    Attributes:
        colour: in the chart.
        options: of the command line.
        cuts: where it cuts instead: (number of pixels, of clusters by these options, generator) -> first pixels of the clusters.
    """

    colour: str | np.ndarray
    options: tuple[str, ...]
    cuts: Callable[[int, int, torch.Generator], Tensor] | None = None


def random_cuts(pixels: int, clusters: int, generator: torch.Generator) -> Tensor:
    """As likely anywhere."""
    return torch.cat((torch.zeros(1, dtype=torch.long), 1 + torch.randperm(pixels - 1, generator=generator)[: clusters - 1]))


def uniform_cuts(pixels: int, clusters: int, generator: torch.Generator) -> Tensor:
    """Lengths that differ by one pixel at most."""
    return torch.arange(clusters) * pixels // clusters


def no_cuts(pixels: int, clusters: int, generator: torch.Generator) -> Tensor:
    return torch.zeros(1, dtype=torch.long)


def _pale(colour: np.ndarray, white: float) -> np.ndarray:
    return (1 - white) * colour + white


VARIANTS = {
    "region": Variant(BLUE, REGION),
    "size bias": Variant(_pale(BLUE, 0.25), (*REGION, "--size_bias")),
    "serpentine": Variant(_pale(BLUE, 0.45), (*REGION, "--scan", "serpentine")),
    "hilbert": Variant(_pale(BLUE, 0.6), (*REGION, "--scan", "hilbert")),
    "band": Variant(_pale(GREEN, 0.5), (*REGION, "--scan", "band")),
    "region+": Variant(GREEN, ("--clustering", "region+")),
    "region+, \u03c3 = 2": Variant(0.75 * GREEN, ("--clustering", "region+", "--smoothing_sigma", "2")),
    "region, steps": Variant(ORANGE, (*REGION, "--cuts", "steps")),
    "region+, steps": Variant(0.75 * ORANGE, ("--clustering", "region+", "--cuts", "steps")),
    "region+, steps, \u03c3 = 2": Variant(0.5 * ORANGE, ("--clustering", "region+", "--cuts", "steps", "--smoothing_sigma", "2")),
    "window": Variant(VERMILION, ("--clustering", "window")),
    "uniform": Variant(PURPLE, REGION, uniform_cuts),
    "random": Variant(_pale(PURPLE, 0.5), REGION, random_cuts),
    "one": Variant("0.7", REGION, no_cuts),
}


@contextmanager
def cutting(variant: Variant, generator: torch.Generator) -> Iterator[None]:
    """While it lasts, ENACT cuts where the variant does."""
    if variant.cuts is None:
        yield
        return
    regions = clustering.at_bends

    def cut(bends: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        starts = torch.zeros_like(bends, dtype=torch.long)
        for row, length, count in zip(starts, lengths.tolist(), regions(bends, lengths)[1].tolist()):
            row[variant.cuts(length, count, generator).to(row.device)] = 1
        return starts.cumsum(1) - 1, starts.sum(1)

    with patch.object(clustering, "at_bends", cut):
        yield

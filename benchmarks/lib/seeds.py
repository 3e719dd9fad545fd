"""Numbers of several seeds: how far they lie apart, and how that is written."""

from collections.abc import Sequence
from statistics import stdev


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation over the seeds, which fewer than two do not have."""
    return stdev(values) if len(values) > 1 else None


def with_spread(value: float, spread: float | None, digits: int = 1) -> str:
    """A mean and, where there is one, its spread."""
    return f"{value:.{digits}f}" + ("" if spread is None else f" \u00b1 {spread:.{digits}f}")

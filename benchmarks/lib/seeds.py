"""Numbers of several seeds: which seeds, their mean, how far they lie apart, and how that is written."""

from collections.abc import Sequence
from statistics import mean, stdev


def default_seeds(quick: bool) -> list[int]:
    """Of training runs: three, so that there is a spread, and one for a quick look."""
    return [42] if quick else [42, 43, 44]


def named_seeds(seeds: Sequence[int]) -> str:
    """For captions: "seed 1", "seeds 1, 2"."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def over_seeds(name: str, values: Sequence[float]) -> dict[str, float | list[float] | None]:
    """What a record keeps of a number: the mean, under its ``name``, those of all seeds, and their spread."""
    return {name: mean(values), f"{name}_seeds": [*values], f"{name}_spread": spread(values)}


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation over the seeds, which fewer than two do not have."""
    return stdev(values) if len(values) > 1 else None


def with_spread(value: float, spread: float | None, digits: int = 1) -> str:
    """A mean and, where there is one, its spread."""
    return f"{value:.{digits}f}" + ("" if spread is None else f" \u00b1 {spread:.{digits}f}")

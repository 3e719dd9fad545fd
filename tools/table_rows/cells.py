"""What the cells of the tables look like, and what a table is made of."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.lib.seeds import with_spread

Rows = list[list[str]]
Content = dict[str, Any]
MISSING = "–"


class Table(NamedTuple):
    """Where a table comes from.

    Attributes:
        sources: files of `benchmarks/results/`, without their suffix.
        rows: the contents of these -> the rows, the head first.
    """

    sources: Sequence[str]
    rows: Callable[..., Rows]


def times(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f}×"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def spread(record: Content, key: str) -> str:
    """Mean and, where there are several seeds, standard deviation."""
    return with_spread(record[key], record[f"{key}_spread"])


def difference(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def share_of(value: float) -> str:
    return "1/3" if abs(value - 1 / 3) < 1e-9 else f"{value:g}"


def plain_name(detector: str) -> str:
    """The detector of a folder, without ENACT."""
    return detector.removesuffix("-ENACT")


def pick(records: Iterable[Content], **wanted: Any) -> Content:
    """The first record with these values; LookupError where there is none."""
    for record in records:
        if all(record[key] == value for key, value in wanted.items()):
            return record
    raise LookupError(f"no record with {', '.join(f'{key} {value}' for key, value in wanted.items())}")

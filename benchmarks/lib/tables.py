"""Tables in markdown, which read well as they are."""

from collections.abc import Sequence


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the heads first; the first column to the left, numbers to the right."""
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    text = [f"| {cells[0]:{first}} | {' | '.join(f'{c:>{w}}' for c, w in zip(cells[1:], widths))} |" for cells in lines]
    text.insert(1, f"| {'-' * first} | {' | '.join('-' * (w - 1) + ':' for w in widths)} |")
    return "\n".join(text)

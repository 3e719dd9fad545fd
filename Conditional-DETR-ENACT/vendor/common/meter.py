"""Means of what is logged, over steps and processes."""

from collections import defaultdict

from accelerate import Accelerator
from accelerate.utils import gather_object


class Meter:
    """Weighted means of named numbers."""

    def __init__(self):
        self.sums: dict[str, float] = defaultdict(float)
        self.weight = 0.0

    def add(self, values: dict[str, float], weight: float = 1.0) -> None:
        for name, value in values.items():
            self.sums[name] += value * weight
        self.weight += weight

    def mean(self, name: str) -> float:
        return self.sums[name] / self.weight

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes."""
        parts = gather_object([(dict(self.sums), self.weight)])
        weight = sum(w for _, w in parts)
        names = dict.fromkeys(name for sums, _ in parts for name in sums)
        return {name: sum(sums.get(name, 0.0) for sums, _ in parts) / weight for name in names}

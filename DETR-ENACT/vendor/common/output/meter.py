"""What is measured while a run goes on: means of what is logged, over steps and processes; speed and memory."""

import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

T = TypeVar("T")


class Meter:
    """Weighted means of named numbers; NaN says that there is none to count, and is left out."""

    def __init__(self):
        self.sums: dict[str, float] = defaultdict(float)
        self.weights: dict[str, float] = defaultdict(float)

    def add(self, values: dict[str, float], weight: float = 1.0) -> None:
        for name, value in values.items():
            if not math.isnan(value):
                self.sums[name] += value * weight
                self.weights[name] += weight

    def mean(self, name: str) -> float:
        return self.sums[name] / self.weights[name]

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes."""
        parts = gather_object([(dict(self.sums), dict(self.weights))])
        names = dict.fromkeys(name for sums, _ in parts for name in sums)
        return {name: sum(s.get(name, 0.0) for s, _ in parts) / sum(w.get(name, 0.0) for _, w in parts) for name in names}


class Throughput:
    """Images per second, and the share of the time that was spent waiting for them."""

    def __init__(self):
        self.start = time.perf_counter()
        self.waited = 0.0
        self.images = 0

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Hands on what it gets, and counts how long it took to come."""
        batches = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.perf_counter() - asked
            yield batch

    def add(self, images: int) -> None:
        self.images += images

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def images_per_second(self) -> float:
        return self.images / self.seconds()

    def share_waited(self) -> float:
        """In [0, 1]."""
        return self.waited / self.seconds()


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: of tensors on a GPU; on a CPU of the process, its libraries included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # there is none on Windows

    kilobytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes

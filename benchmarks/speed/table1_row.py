"""One row of table 1, in a process of its own: ``table1.py`` starts it with a JSON object and reads one from its last line."""

import json
import sys
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.measure import peak_memory, seconds
from benchmarks.lib.workload import Workload, attention_kernel, build_batches
from common.output import meter


def measure(
    *,
    detector: str,
    options: list[str],
    attention: str,
    sizes: list[tuple[int, int]],
    batch_size: int,
    image_size: int,
    warm_up: int,
) -> dict[str, Any]:
    """Trains and infers once over the batches.

    Args:
        detector: its folder.
        options: of its command line.
        attention: "math", with the N x N matrix in memory, or "fused".
        sizes: width and height of the images.
        batch_size: images per step.
        image_size: shortest side after resizing.
        warm_up: steps before the measurement.

    Returns:
        ``train`` and ``inference``, seconds per image, with those of every step in ``..._steps``; ``memory``, most bytes in
        training: allocated on a GPU, resident on a CPU, where ``memory_before`` is what the process took before its first step;
        ``step_memory``, most bytes of the tensors that a step makes; ``N`` and ``M``, pixels and clusters, means over the images
        and layers.
    """
    work = Workload(detector, options)
    device = work.accelerator.device
    batches = build_batches(sizes, batch_size, image_size)
    row: dict[str, Any] = {"memory_before": meter.peak_memory(device)}
    with attention_kernel(attention):
        for name, run in (("train", work.train), ("inference", work.infer)):
            for batch in islice(cycle(batches), warm_up):
                run(batch)
            steps = [seconds(partial(run, batch), 1, device) for batch in batches]
            row |= {name: sum(steps) / len(sizes), f"{name}_steps": steps}
            if name == "train":
                row |= {"memory": meter.peak_memory(device), "step_memory": peak_memory(partial(run, batches[0]), device)}
        with work.detector.record(work.model) as layers:
            work.infer(batches[0])
    valid = [(clusters.information > 0).sum(1) for clusters in layers.values()]
    if valid:
        row["N"] = torch.stack(valid).double().mean().item()
        row["M"] = torch.stack([clusters.count for clusters in layers.values()]).double().mean().item()
    return row


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))

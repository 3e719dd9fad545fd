"""What the benchmarks share: times, peak memory, and a description of the machine."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages would break up the tables


def seconds(run: Callable[[], object], calls: int, device: torch.device) -> float:
    """Mean duration of ``calls`` calls in a row, the work that they leave on a GPU included."""
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _synchronize(device)
    return (time.perf_counter() - start) / calls


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors alive at once during ``run()``, beyond those that were alive before it.

    On a GPU from PyTorch's caching allocator (``torch.cuda.max_memory_allocated``). On a CPU from the same kind of count: the
    profiler reports every allocation and release of PyTorch's allocator, scratch memory inside its kernels included, and the peak
    of their running sum is exact and repeatable. The resident size of the process is neither: it depends on what the C library has
    kept from earlier runs. Buffers of libraries that allocate for themselves, such as a BLAS, are in neither count.
    """
    if device.type == "cuda":
        _synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        _synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(trace)
        events = json.loads(Path(trace).read_text(encoding="utf-8"))["traceEvents"]
    alive = peak = 0
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]):
        alive += event["args"]["Bytes"]
        peak = max(peak, alive)
    return peak


def machine(device: torch.device) -> dict[str, str | int]:
    """The device, the threads and the versions that a measurement depends on."""
    description = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }
    return description | ({"cuda": torch.version.cuda} if device.type == "cuda" else {})


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    """The model name of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""A mutation fuzzer for what comes from outside: annotation files, descriptions of YOLO datasets, checkpoints and logs.

    python -m tests.reliability.fuzz --count 100000 [--seed 0]

Every damaged file ends with success or with a :class:`UserError`, whose sentence is short and printable, within seconds, and
without a file outside the folder that it may write to. What does not is reported with the seed that makes it again.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.boundary.annotations import read_annotations
from common.boundary.logs import read_log
from common.cli.restore import restore
from common.data.annotations import category_names, stuff_of
from common.data.layouts import recognise
from common.data.loading import build_dataset
from common.data.shapes import write_shapes_dataset
from common.errors import MOST_SAID, UserError
from common.evaluation.coco import coco_evaluate
from tests.detector_runs import EXAMPLE, run_here, tiny
from tests.reliability.mutations import mutate
from tools.detectors import DETECTORS

TIME = 60  # seconds, after which a case counts as hanging
RUN_EVERY = 20  # checkpoints of which one is trained on, which takes long


class Hanging(Exception):
    """A case took too long."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hanging

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Fuzzer:
    """Cases on a small dataset and on the checkpoint and log of a run of it.

    Args:
        folder: to work in.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = write_shapes_dataset(folder / "data", train=8, val=2, image_size=48, progress=False)
        run = folder / "run"
        argv = (*tiny(EXAMPLE), "--image_size", 48, "--batch_size", 4, "--coco_path", self.data, "--output_dir", run)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            assert run_here(EXAMPLE, *argv, "--epochs", 1) == 0
        self.checkpoint = torch.load(run / "checkpoint.pth", weights_only=True)
        self.checkpoint_path, self.log = run / "damaged.pth", run / "damaged.txt"
        self.lines = [json.loads(line) for line in (run / "log.txt").read_text().splitlines()] * 3
        self.json = {name: self.data / "annotations" / f"{name}_val2017.json" for name in ("instances", "panoptic")}
        self.content = {name: json.loads(path.read_text()) for name, path in self.json.items()}
        self.results = [{"image_id": 1, "category_id": 1, "bbox": [1.0, 1.0, 9.0, 9.0], "score": 0.5}]
        self.kinds: tuple[Callable[[random.Random], None], ...] = (
            self.instances,
            self.panoptic,
            self.yolo,
            self.weights,
            self.record,
            self.bytes_of_a_file,
        )

    def run(self, seed: int) -> tuple[str, str]:
        """One case: its kind with "taken" or "refused", and "" or what was wrong with its end."""
        rng = random.Random(seed)
        kind = rng.choice(self.kinds)
        before, end = self.files(), "failed"
        try:
            with time_limit(TIME), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                kind(rng)
            problem, end = "", "taken"
        except UserError as error:
            text, end = str(error), "refused"
            problem = "" if text.isprintable() and 10 < len(text) <= MOST_SAID else f"an unreadable sentence: {text[:300]!r}"
        except Hanging:
            problem = f"longer than {TIME} s"
        except BaseException:
            problem = traceback.format_exc()
        if new := self.files() - before:
            problem += f"files appeared: {sorted(new)[:3]}"
        return f"{kind.__name__} {end}", problem

    def files(self) -> set[str]:
        """All that lies around, but not what a case writes on purpose."""
        own = {self.checkpoint_path, self.log, *self.folder.glob("out/**/*")}
        return {str(path) for path in self.folder.rglob("*") if path not in own and path != self.folder / "out"}

    @contextmanager
    def written(self, path: Path, content: bytes) -> Iterator[None]:
        """A file with another content."""
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        try:
            yield
        finally:
            path.write_bytes(before) if before is not None else path.unlink()

    def instances(self, rng: random.Random) -> None:
        """Read, looked at, and evaluated against."""
        with self.written(self.json["instances"], _json(mutate(self.content["instances"], rng))):
            coco = read_annotations(self.json["instances"])
            category_names(coco), stuff_of(coco)
            images = build_dataset(self.data, "val", 48, 0, masks=rng.random() < 0.5)
            images.remarks(), images.aspect_ratios(), images[len(images) - 1]
            coco_evaluate(coco, self.results)

    def panoptic(self, rng: random.Random) -> None:
        """Read with its PNGs."""
        with self.written(self.json["panoptic"], _json(mutate(self.content["panoptic"], rng))):
            images = build_dataset(self.data, "val", 48, 0, masks=True, panoptic_path=self.data)
            images.remarks(), images[0], images[len(images) - 1]

    def yolo(self, rng: random.Random) -> None:
        """The same images, described by a damaged ``data.yaml`` or by a damaged row beside the first of them."""
        description = {"path": str(self.data), "val": ["val2017"], "names": {"0": "a", "1": "b"}, "nc": 2}
        row: list[Any] = [rng.randrange(2), *[rng.random() for _ in range(rng.choice((4, 6)))]]
        if rng.random() < 0.5:
            description = mutate(description, rng)
        else:
            row = mutate(row, rng)
        path, text = self.data / "data.yaml", self.data / "val2017" / "000000000001.txt"
        labels = " ".join(map(str, row)).encode(errors="surrogatepass")
        with self.written(text, labels), self.written(path, _json(description)):  # JSON is YAML
            images = build_dataset(recognise(path), "val", 48, 0)
            images.remarks(), images.aspect_ratios(), images[0]

    def weights(self, rng: random.Random) -> None:
        """Read as ``--predict`` does, and now and then trained on."""
        detector = EXAMPLE if rng.random() < 0.8 else rng.choice(list(DETECTORS))
        try:
            torch.save(mutate(self.checkpoint, rng), self.checkpoint_path)
        except Exception:  # not every value can be saved
            return
        restore(DETECTORS[detector], self.checkpoint_path)
        if rng.randrange(RUN_EVERY) == 0:
            argv = ("--resume", self.checkpoint_path, "--epochs", 2, "--output_dir", self.folder / "out", "--device", "cpu")
            assert run_here(detector, *argv, "--coco_path", self.data, "--num_workers", 0) in (0, 2)

    def record(self, rng: random.Random) -> None:
        """A log with a damaged line."""
        lines = [_json(mutate(line, rng) if rng.random() < 0.5 else line) for line in self.lines]
        self.log.write_bytes(b"\n".join(lines) + rng.choice((b"", b"\n", b"\n\n", b"{", b"\x00")))
        read_log(self.log)

    def bytes_of_a_file(self, rng: random.Random) -> None:
        """Cut off, or with other bytes."""
        name = rng.choice(("instances", "panoptic"))
        content = bytearray(self.json[name].read_bytes())
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        cut = content[: rng.randrange(len(content))] if rng.random() < 0.5 else content
        with self.written(self.json[name], bytes(cut)):
            build_dataset(self.data, "val", 48, 0, masks=True, panoptic_path=self.data if name == "panoptic" else None)[0]


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")


def fuzz(count: int, seed: int, folder: Path, progress: bool = False) -> tuple[Counter, list[str]]:
    """How many cases of each kind were run, and a report for each that ended badly."""
    fuzzer, counts, reports = Fuzzer(folder), Counter(), []
    for i in tqdm(range(seed, seed + count), disable=not progress):
        kind, problem = fuzzer.run(i)
        counts[kind] += 1
        if problem:
            reports.append(f"seed {i}, {kind}: {problem}")
    return counts, reports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others follow")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCH_HOME"] = folder
        counts, reports = fuzz(args.count, args.seed, Path(folder), progress=True)
    for report in reports:
        print(report, end="\n\n")
    print(f"{args.count} cases in {time.perf_counter() - start:.0f} s ({dict(sorted(counts.items()))}): {len(reports)} ended badly")
    return int(bool(reports))


if __name__ == "__main__":
    sys.exit(main())

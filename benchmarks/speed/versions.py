"""A training step and an inference of this version of the repository against another, on the same weights and images.

    git worktree add ../before c13f79f
    python benchmarks/speed/versions.py --against ../before --device cpu    # minutes on two cores
    python benchmarks/speed/versions.py --against ../before --quick

Both versions of a detector run in one process, on as many threads, in turn, and take turns at being first, so that a change of the
machine's load meets both. A training step is that of the loop: forward, matching and losses, backward, clipping, optimiser;
inference goes from images to detections. Each version computes them as its own command line does by default, with its own batch of
the same pictures. The weights are random, and those of this version. The times are the medians of ``--repeats`` rounds, after
``WARM_UP``.
"""

import importlib
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from torch import nn
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib import workload
from benchmarks.lib.cli import ROOT, build_parser, complete, save
from benchmarks.lib.cli import main as run_main
from benchmarks.lib.measure import seconds
from benchmarks.lib.workload import QUICK, size
from common.cli.arguments import number
from common.errors import UserError
from common.models.sizes import BACKBONES

NAME = "speed/versions"
WORKLOADS = ("benchmarks.lib.workload", "benchmarks.workload")  # where a version has it: today's place, and that of old ones
# Inference first: a training step leaves memory at hand, which an evaluation has to ask the system for.
PASSES = {"infer": "inference", "train": "training step"}
THIS, OTHER = VERSIONS = ("this", "other")
WARM_UP = 2


@dataclass(frozen=True)
class Version:
    """A detector of one version of the repository, ready to run.

    Attributes:
        model: with its weights.
        passes: what is timed, by the names of :data:`PASSES`.
    """

    model: nn.Module
    passes: dict[str, Callable[[], None]]


@contextmanager
def isolated(root: Path) -> Iterator[None]:
    """Inside, imports find the packages of another version of the repository instead of this one's.

    Both call them ``common``, ``enact``, ``benchmarks``, ..., and Python keeps one module of a name. So this version's modules are
    put aside meanwhile, and the other's leave ``sys.modules`` at the end; they live on in the objects that were made of them.
    Nothing else in the repository needs two versions, or may do this.
    """
    names = _own_names(ROOT) | _own_names(root)

    def take_out() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}

    path, modules = [*sys.path], take_out()
    sys.path[:] = [str(root), *(entry for entry in path if not _leads_into(entry, ROOT))]
    try:
        yield
    finally:
        take_out()
        sys.path[:] = path
        sys.modules.update(modules)


def _own_names(root: Path) -> set[str]:
    """The names of a version's own modules, those of its detectors' folders included, whether they are imported or not."""
    folders = [root, *(main.parent for main in root.glob("*/main.py"))]
    return {path.stem for folder in folders for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}


def _leads_into(entry: str, root: Path) -> bool:
    """Whether an entry of ``sys.path`` is a version's own folder or inside it; installed packages may lie inside it, too."""
    return Path(entry).resolve().is_relative_to(root) and "site-packages" not in Path(entry).parts


def import_workload(root: Path) -> ModuleType:
    """The module that builds and runs a version's detectors; inside :func:`isolated`."""
    for name in WORKLOADS:
        if root.joinpath(*name.split(".")).with_suffix(".py").is_file():
            return importlib.import_module(name)
    raise UserError(f"--against {root} is not a version of this repository that can be measured: it lacks benchmarks/workload.py")


def build(module: ModuleType, detector: str, argv: list[str], args: Namespace) -> Version:
    """A version's detector with its own batch of the pictures of ``--sizes``, by its module ``workload``."""
    work = module.Workload(detector, argv)
    [batch] = module.build_batches(args.sizes, len(args.sizes), work.args.image_size)
    return Version(work.accelerator.unwrap_model(work.model), {name: partial(getattr(work, name), batch) for name in PASSES})


def build_both(args: Namespace, detector: str) -> dict[str, Version]:
    """Both versions of a detector, on the weights of this one.

    Raises:
        UserError: the other lacks the detector or an option, or its weights have other names or shapes.
    """
    argv = ["--device", args.device, "--clustering", args.clustering, "--backbone", args.backbone, *(QUICK if args.quick else [])]
    this = build(workload, detector, argv, args)
    try:
        with isolated(args.against):
            other = build(import_workload(args.against), detector, argv, args)
        other.model.load_state_dict(this.model.state_dict())
    except UserError:
        raise
    except Exception as error:  # whatever a version that is too different ends in
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{detector} of --against {args.against} cannot be measured ({reason}): choose another version") from error
    return {THIS: this, OTHER: other}


def measure(args: Namespace, detector: str, device: torch.device) -> dict[str, Any]:
    """Per pass the seconds of both versions in every round, their medians, and the ratio of this one's to the other's."""
    versions = build_both(args, detector)
    record: dict[str, Any] = {"detector": detector, "clustering": args.clustering, "backbone": args.backbone}
    for name in PASSES:
        rounds: dict[str, list[float]] = {version: [] for version in VERSIONS}
        for i in trange(WARM_UP + args.repeats, desc=f"{detector}, {PASSES[name]}", leave=False):
            for version in VERSIONS if i % 2 else VERSIONS[::-1]:
                _reset_precision()
                duration = seconds(versions[version].passes[name], 1, device)
                if i >= WARM_UP:
                    rounds[version].append(duration)
        medians = {version: median(times) for version, times in rounds.items()}
        record[name] = medians | {"ratio": medians[THIS] / medians[OTHER], "rounds_s": rounds}
    return record


def _reset_precision() -> None:
    """PyTorch's own precision of float32 products, which the whole process has: a version sets another for its own pass alone."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


def commit(root: Path) -> str | None:
    """The commit of a version, and whether it was changed since; None where git does not tell."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if (root / ".git").exists() and not done.returncode else None


def table(records: list[dict[str, Any]]) -> str:
    heads = "".join(f"{title + ' (s): this, other':>36}{'ratio':>8}" for title in PASSES.values())
    lines = [f"{'detector':26}{'clusters':10}{heads}"]
    for r in records:
        cells = "".join(f"{r[name][THIS]:26.4g}{r[name][OTHER]:10.4g}{r[name]['ratio']:7.2f}x" for name in PASSES)
        lines.append(f"{r['detector']:26}{r['clustering']:10}{cells}")
    return "\n".join(lines)


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__)
    parser.add_argument("--against", type=Path, required=True, metavar="PATH", help="folder of the other version")
    parser.add_argument("--clustering", choices=("region", "window", "none"), default="region", help="default: %(default)s")
    parser.add_argument("--backbone", choices=BACKBONES, help="default: resnet50; quick: resnet18")
    parser.add_argument("--sizes", type=size, nargs="+", metavar="WxH", help="images of the batch (default: 1066x800)")
    parser.add_argument("--repeats", type=number(int, 1), help="rounds (default: 9; quick: 2)")
    args = parser.parse_args(argv)
    args.against = args.against.resolve()
    if not args.against.is_dir():
        raise UserError(f"--against {args.against} is not a folder: pass one with another version of this repository")
    args.backbone = args.backbone or ("resnet18" if args.quick else "resnet50")
    args.sizes = args.sizes or [(1066, 800)]
    args.repeats = args.repeats or (2 if args.quick else 9)
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = complete(args)
    commits = {THIS: commit(ROOT), OTHER: commit(args.against)}
    print("; ".join(f"{version}: {name or 'of no commit that git tells'}" for version, name in commits.items()), flush=True)
    # A process for each detector: what one leaves in the allocator's hands would change the times of the next.
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        records = pool.starmap(measure, [(args, detector, device) for detector in args.detector], chunksize=1)
    print("\n" + table(records))
    args.against = Path(os.path.relpath(args.against, ROOT))  # a place beside this version, on any machine
    save(NAME, args, argv, {"units": dict.fromkeys(PASSES, "s"), "commits": commits, "results": records})


if __name__ == "__main__":
    sys.exit(run_main(NAME, run, sys.argv[1:]))

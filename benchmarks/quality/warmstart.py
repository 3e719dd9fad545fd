"""A plain detector as a start for ENACT: AP with clustering as it is, and after a little fine-tuning.

    python benchmarks/quality/warmstart.py                         # from accuracy.py's plain demos, trained if need be
    python benchmarks/quality/warmstart.py --checkpoint CKPT...    # of plain detectors
    python benchmarks/quality/warmstart.py --quick

**As it is**: ``python <folder>/main.py --eval --resume CKPT --clustering ...``. **Fine-tuned**: ``--finetune CKPT`` in the place
of ``--resume``, for ``--epochs`` at a tenth of the demo's learning rates, those that its training ends with. The probability
layers are new; each of ``--seeds`` draws them, and the order of the images. ``none`` is fine-tuned as well, and tells what the
further training gives without any clustering; ``steps`` are ``--cuts steps``. Runs are kept in ``--runs``, one checkpoint of each
detector, and finished ones are not repeated.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.cli import ROOT, build_parser, complete, main, save
from benchmarks.lib.demos import Demo, run_quietly, share_threads, train_all
from benchmarks.lib.models import shapes
from benchmarks.lib.seeds import default_seeds, over_seeds, with_spread
from benchmarks.quality.fidelity import plain_demos
from benchmarks.quality.fidelity_variants import PLAIN
from benchmarks.quality.fidelity_variants import VARIANTS as FIDELITY
from common.boundary.checkpoints import load_checkpoint
from common.cli.arguments import number
from common.cli.restore import recognise
from common.data.shapes import OUTLINE
from common.errors import UserError
from tools.detectors import CLUSTERED, DETECTORS, options

NAME = "quality/warmstart"
# Name -> options.
VARIANTS = {"none": PLAIN} | {name: FIDELITY[name].options for name in ("region", "region+", "region+, steps")}
NUMBERS = "coco_eval_bbox"


def plan(source: str, detector: str, args: Namespace) -> dict[tuple[str, int], Demo]:
    """The runs from a checkpoint: (variant, seed) -> demo."""
    demo = options(detector, ["--demo"])
    rates = ("--lr", f"{demo.lr / 10:g}", "--lr_backbone", f"{demo.lr_backbone / 10:g}", "--lr_drop", str(args.epochs + 1))
    return {
        (variant, seed): Demo(
            detector,
            (*chosen, "--seed", str(seed), *rates),
            args.epochs,
            _folder(detector, variant, seed, args),
            finetune=source,
        )
        for variant, chosen in VARIANTS.items()
        for seed in args.seeds
    }


def _folder(detector: str, variant: str, seed: int, args: Namespace) -> Path:
    return args.runs / detector / f"{variant.replace(', ', '-')}-seed{seed}"


def as_it_is(source: str, detector: str, variant: str, seed: int, args: Namespace) -> float:
    """AP in % of the checkpoint with clusters, whose probability layers the seed draws."""
    folder = _folder(detector, variant, seed, args)
    folder = folder.with_name(f"{folder.name}-before")
    command = [sys.executable, str(ROOT / detector / "main.py"), "--eval", "--resume", source]
    command += [*VARIANTS[variant], "--seed", str(seed)]
    command += ["--device", args.device, "--coco_path", str(args.coco_path), "--output_dir", str(folder)]
    run_quietly(command, f"the evaluation of {source}")
    return 100 * json.loads((folder / "eval.json").read_text(encoding="utf-8"))[NUMBERS][0]


def detectors_of(sources: Sequence[str]) -> dict[str, str]:
    """Detector -> its checkpoint.

    Raises:
        UserError: one is clustered, or two are of one detector, whose runs have the same folders.
    """
    found: dict[str, str] = {}
    for source in sources:
        checkpoint = load_checkpoint(source)
        detector = recognise([DETECTORS[name] for name in CLUSTERED], checkpoint, source).name
        if any("W_prob" in name for name in checkpoint["model"]):
            raise UserError(f"{source} is clustered already: choose a checkpoint of a plain detector")
        if first := found.get(detector):
            raise UserError(f"{first} and {source} are both of {detector}: pass one, and the other in a call with another --runs")
        found[detector] = source
    return found


def measure(source: str, detector: str, args: Namespace) -> list[dict[str, Any]]:
    """A record per variant: AP before and after fine-tuning, of every seed and their means."""
    demos = plan(source, detector, args)
    train_all([*demos.values()], args.jobs, args.device, args.coco_path)
    records = []
    for variant in VARIANTS:
        drawn = args.seeds[:1] if variant == "none" else args.seeds
        before = [as_it_is(source, detector, variant, seed, args) for seed in drawn]
        after = [100 * demos[variant, seed].log()[args.epochs - 1][0] for seed in args.seeds]
        record = {"detector": detector, "checkpoint": source, "variant": variant, "seeds": args.seeds}
        for name, values in (("AP_before", before), ("AP_after", after)):
            record |= over_seeds(name, values)
        records.append(record)
    return records


def table(records: list[dict[str, Any]]) -> str:
    """One variant a line."""
    lines = [f"{'':24}{'':16}{'as it is':>16}{'fine-tuned':>16}"]
    for r in records:
        cells = "".join(f"{with_spread(r[name], r[f'{name}_spread']):>16}" for name in ("AP_before", "AP_after"))
        lines.append(f"{r['detector']:24}{r['variant']:16}{cells}")
    return "\n".join(lines)


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__)
    positive = number(int, 1)
    parser.add_argument("--checkpoint", nargs="+", metavar="CKPT", help="of plain detectors, of this repository or published")
    parser.add_argument("--coco_path", type=Path, help="data that the checkpoints know (default: the built-in shapes)")
    parser.add_argument("--epochs", type=positive, default=1, help="of fine-tuning (default: %(default)s)")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", metavar="SEED", help="default: 42 43 44; quick: 42")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at once, which share the cores (default: %(default)s)")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/warmstart; quick: runs/warmstart_quick)")
    args = parser.parse_args(argv)
    if args.coco_path and not args.checkpoint:  # the plain demos, which accuracy.py keeps, are those of the built-in shapes
        raise UserError(f"--coco_path {args.coco_path} needs --checkpoint: pass one that was trained on it")
    args.seeds = args.seeds or default_seeds(args.quick)
    args.runs = args.runs or ROOT / "runs" / ("warmstart" + "_quick" * args.quick)
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    share_threads(args.jobs)
    complete(args)
    args.coco_path = args.coco_path or shapes(quick=args.quick)
    sources = args.checkpoint or plain_demos(args.detector, OUTLINE, args, jobs=args.jobs)
    records = [record for detector, source in detectors_of(sources).items() for record in measure(source, detector, args)]
    print("\n" + table(records))
    save(NAME, args, argv, {"units": {"AP": "%"}, "results": records})


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

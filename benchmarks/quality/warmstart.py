"""A plain detector as a start for ENACT: AP with clustering as it is, and after a little fine-tuning.

    python benchmarks/quality/warmstart.py                         # from accuracy.py's plain demos, trained if need be
    python benchmarks/quality/warmstart.py --checkpoint CKPT...    # of plain detectors
    python benchmarks/quality/warmstart.py --quick

**As it is**: ``python <folder>/main.py --eval --resume CKPT --clustering ...``. **Fine-tuned**: ``--finetune CKPT`` in the place
of ``--resume``, for ``--epochs`` at a tenth of the demo's learning rates, those that its training ends with. The probability
layers are new; each of ``--seeds`` draws them, and the order of the images. ``none`` is fine-tuned as well, and tells what the
further training gives without any clustering. Runs are kept in ``--runs``, and finished ones are not repeated.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.cli import ROOT, build_parser, complete, main, save
from benchmarks.lib.demos import Demo, run_quietly, share_threads, train_all
from benchmarks.lib.models import shapes
from benchmarks.lib.seeds import spread, with_spread
from benchmarks.quality.fidelity import plain_demos
from common.boundary.checkpoints import load_checkpoint
from common.cli.arguments import number
from common.cli.restore import recognise
from common.data.shapes import OUTLINE
from common.errors import UserError
from tools.detectors import CLUSTERED, DETECTORS, options

NAME = "quality/warmstart"
CLUSTERINGS = ("none", "region", "region+")
NUMBERS = "coco_eval_bbox"


def plan(source: str, detector: str, args: Namespace) -> dict[tuple[str, int], Demo]:
    """The runs from a checkpoint: (clustering, seed) -> demo."""
    demo = options(detector, ["--demo"])
    rates = ("--lr", f"{demo.lr / 10:g}", "--lr_backbone", f"{demo.lr_backbone / 10:g}", "--lr_drop", str(args.epochs + 1))
    return {
        (clustering, seed): Demo(
            detector,
            ("--clustering", clustering, "--seed", str(seed), *rates),
            args.epochs,
            args.runs / detector / f"{clustering}-seed{seed}",
            start=("--finetune", source),
        )
        for clustering in CLUSTERINGS
        for seed in args.seeds
    }


def as_it_is(source: str, detector: str, clustering: str, seed: int, args: Namespace) -> float:
    """AP in % of the checkpoint with a clustering, whose probability layers the seed draws."""
    folder = args.runs / detector / f"{clustering}-seed{seed}-before"
    command = [sys.executable, str(ROOT / detector / "main.py"), "--eval", "--resume", source]
    command += ["--clustering", clustering, "--seed", str(seed)]
    command += ["--device", args.device, "--coco_path", str(args.coco_path), "--output_dir", str(folder)]
    run_quietly(command, f"the evaluation of {source}")
    return 100 * json.loads((folder / "eval.json").read_text(encoding="utf-8"))[NUMBERS][0]


def measure(source: str, args: Namespace) -> list[dict[str, Any]]:
    """A record per clustering: AP before and after fine-tuning, of every seed and their means."""
    checkpoint = load_checkpoint(source)
    detector = recognise([DETECTORS[name] for name in CLUSTERED], checkpoint, source).name
    if any("W_prob" in name for name in checkpoint["model"]):
        raise UserError(f"{source} is clustered already: choose a checkpoint of a plain detector")
    demos = plan(source, detector, args)
    train_all([*demos.values()], args.jobs, args.device, args.coco_path)
    records = []
    for clustering in CLUSTERINGS:
        drawn = args.seeds[:1] if clustering == "none" else args.seeds
        before = [as_it_is(source, detector, clustering, seed, args) for seed in drawn]
        after = [100 * demos[clustering, seed].log()[args.epochs - 1][0] for seed in args.seeds]
        record = {"detector": detector, "checkpoint": source, "clustering": clustering, "seeds": args.seeds}
        for name, values in (("AP_before", before), ("AP_after", after)):
            record |= {name: mean(values), f"{name}_seeds": values}
            record[f"{name}_spread"] = spread(values)
        records.append(record)
    return records


def table(records: list[dict[str, Any]]) -> str:
    """One clustering a line."""
    lines = [f"{'':24}{'':10}{'as it is':>16}{'fine-tuned':>16}"]
    for r in records:
        cells = "".join(f"{with_spread(r[name], r[f'{name}_spread']):>16}" for name in ("AP_before", "AP_after"))
        lines.append(f"{r['detector']:24}{r['clustering']:10}{cells}")
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
    args.seeds = args.seeds or ([42] if args.quick else [42, 43, 44])
    args.runs = args.runs or ROOT / "runs" / ("warmstart" + "_quick" * args.quick)
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    share_threads(args.jobs)
    complete(args)
    args.coco_path = args.coco_path or shapes(quick=args.quick)
    sources = args.checkpoint or plain_demos(args.detector, OUTLINE, args)
    records = [record for source in sources for record in measure(source, args)]
    print("\n" + table(records))
    save(NAME, args, argv, {"units": {"AP": "%"}, "results": records})


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

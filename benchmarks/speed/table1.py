"""Table 1 of the paper: memory, training time and inference time of the detectors with and without ENACT.

    python benchmarks/speed/table1.py                             # on a GPU, with the paper's batch sizes
    python benchmarks/speed/table1.py --device cpu --batch_size 1 # forty minutes on two cores
    python benchmarks/speed/table1.py --device cpu --quick

Every row runs in a process of its own: the detector of the paper (section 4.2) with random weights, on images of COCO's sizes,
resized to a shortest side of 800 and a longest of at most 1333 and padded to batches as in training. All rows see the same batches.
A training step is that of the training loop: forward, matching, losses, backward, clipping, optimiser; inference goes from images
to detections. Loading images is in neither. On a GPU, float32 products use TF32 in training alone, as the command line does. With
``--rounds`` the rows are measured several times in turn, and the medians count.

**Attention.** ``math`` keeps the N x N matrix in memory, as the paper's detectors did; ``fused`` is what PyTorch chooses. Ratios
are to the plain detector (``none``) with the same attention and, where both are measured, to the plain one with ``math``.

**Memory** is the peak of training: allocated on a GPU; resident on a CPU, the interpreter and libraries included. "Of that, a step"
is the peak of the tensors that one training step makes, beside weights and optimiser (see ``lib/measure.py``).

The paper's columns are its own numbers (one NVIDIA RTX A6000). Its rows with ENACT stand beside ``region``, which the paper
describes; the released code does what ``window`` does.
"""

import json
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.charts import BLUE, GREEN, GREY, VERMILION
from benchmarks.lib.cli import build_parser, complete, describe, main, named_after, save
from benchmarks.lib.measure import machine
from benchmarks.lib.workload import QUICK, add_workload_options, complete_workload, image_sizes
from common.cli.arguments import number
from common.errors import UserError
from tools.detectors import options

NAME = "speed/table1"
CLUSTERINGS = ("none", "window", "region", "region+")
ATTENTIONS = ("math", "fused")
COLUMNS = {  # title, unit, and the factor from bytes or seconds to it
    "memory": ("memory", "GiB", 2**-30),
    "step_memory": ("of that, a step", "GiB", 2**-30),
    "train": ("training", "s/image", 1),
    "inference": ("inference", "s/image", 1),
}
PUBLISHED = ("memory", "train", "inference")
PAPER = {  # GB, and seconds per image (table 1)
    "DETR-ENACT": {"none": (36.5, 0.0541, 0.0482), "region": (23.5, 0.0488, 0.0472)},
    "Conditional-DETR-ENACT": {"none": (46.6, 0.0826, 0.0637), "region": (36.7, 0.0779, 0.0605)},
    "Anchor-DETR-ENACT": {"none": (29.7, 0.0999, 0.0712), "region": (17.7, 0.0845, 0.0608)},
}


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__)
    parser.add_argument("--clustering", choices=CLUSTERINGS, nargs="+", help="default: all; quick: none and region")
    parser.add_argument("--attention", choices=ATTENTIONS, nargs="+", default=list(ATTENTIONS), help="default: both")
    add_workload_options(parser)
    parser.add_argument(
        "--rounds", type=number(int, 1), default=1, help="times that all rows are measured, in turn (default: %(default)s)"
    )
    parser.add_argument("--amp", choices=("no", "bf16", "fp16"), default="no", help="mixed precision (default: %(default)s)")
    args = parser.parse_args(argv)
    args.clustering = args.clustering or (["none", "region"] if args.quick else list(CLUSTERINGS))
    return args


def measure(args: Namespace, detector: str, argv: list[str], attention: str) -> dict:
    """One row: what ``table1_row.py`` measures with these options of the detector's command line, or ``failed``."""
    argv = ["--device", args.device, *argv, *(QUICK if args.quick else [])]
    recipe = options(detector, argv)
    batch_size = args.batch_size or recipe.batch_size
    images = max(batch_size, args.images // batch_size * batch_size)
    arguments = {"detector": detector, "options": argv, "attention": attention, "batch_size": batch_size, "warm_up": 1}
    arguments |= {"sizes": image_sizes(images, args.coco_path, args.sizes), "image_size": recipe.image_size}
    command = [sys.executable, str(Path(__file__).with_name("table1_row.py")), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    row = {"detector": detector, "clustering": recipe.clustering, "attention": attention, "batch_size": batch_size}
    if not done.returncode:
        return row | json.loads(done.stdout.splitlines()[-1])
    if done.returncode == -9 or "out of memory" in done.stderr or "can't allocate memory" in done.stderr:
        return row | {"failed": "out of memory"}
    raise UserError(f"{detector} {shlex.join(argv)} failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}")


def combine(rounds: list[dict]) -> dict:
    """One row of all that were measured of it: the medians, and the rounds themselves."""
    if any("failed" in row for row in rounds):
        return next(row for row in rounds if "failed" in row)
    medians = {column: median(row[column] for row in rounds) for column in COLUMNS}
    return rounds[0] | medians | {"rounds": [{column: row[column] for column in COLUMNS} for row in rounds]}


def add_ratios(rows: list[dict]) -> None:
    """Adds the ratios to the plain detector with the same attention, ``ratios``, and with math, and the paper's numbers."""
    measured = [row for row in rows if "train" in row]
    for row in rows:
        plain = {r["attention"]: r for r in measured if r["detector"] == row["detector"] and r["clustering"] == "none"}
        for key, reference in (("ratios", plain.get(row["attention"])), ("ratios_to_math", plain.get("math"))):
            if reference and "train" in row:
                row[key] = {column: row[column] / reference[column] for column in COLUMNS}
        published = PAPER[row["detector"]]
        if row["clustering"] in published:
            row["paper"] = dict(zip(PUBLISHED, published[row["clustering"]]))
            row["paper_ratios"] = {column: row["paper"][column] / n for column, n in zip(PUBLISHED, published["none"])}


def table(rows: list[dict]) -> str:
    """The rows, in each column this machine's value, its ratios and the paper's."""
    widths = {column: 42 if column in PUBLISHED else 26 for column in COLUMNS}
    units = "".join(f"{f'{title} ({unit})':^{widths[column]}}" for column, (title, unit, _) in COLUMNS.items())
    heads = {column: f"{'here':>10}{'/ none':>8}{'/ math':>8}" for column in COLUMNS}
    columns = "".join(head + (f"{'paper':>8}{'/ none':>8}" if column in PUBLISHED else "") for column, head in heads.items())
    lines = [f"{'':36}{'':14}{units}", f"{'detector':24}{'clusters':12}{'N':>7}{'M':>7}{columns}"]
    for row in rows:
        name = f"{row['detector'].removesuffix('-ENACT'):18}{row['attention']:6}{row['clustering']:12}"
        counts = "".join(f"{row[key]:7.0f}" if key in row else f"{'':7}" for key in "NM")
        cells = [f"  {row['failed']}"] if "failed" in row else [_cells(row, column) for column in COLUMNS]
        lines.append(name + counts + "".join(cells))
    return "\n".join(lines)


def _cells(row: dict, column: str) -> str:
    """One measure of one row: here, its two ratios, the paper's value and its ratio."""
    ratios = (f"{row[key][column]:7.2f}x" if key in row else " " * 8 for key in ("ratios", "ratios_to_math"))
    here = f"{row[column] * COLUMNS[column][2]:10.4g}" + "".join(ratios)
    if column not in PUBLISHED:
        return here
    return here + (f"{row['paper'][column]:8.4g}{row['paper_ratios'][column]:7.2f}x" if "paper" in row else " " * 16)


def draw(rows: list[dict], caption: str) -> Figure:
    """A bar for every row, relative to the plain detector with the first attention, and the paper's ratio as a diamond."""
    key = "ratios_to_math" if any("ratios_to_math" in row for row in rows) else "ratios"
    rows = [row for row in rows if key in row][::-1]
    figure = Figure(figsize=(9.6, 1.2 + 0.19 * len(rows)), dpi=200, layout="constrained")
    charts = figure.subplots(1, len(COLUMNS), sharey=True)
    colours = dict(zip(CLUSTERINGS, (GREY, VERMILION, BLUE, GREEN)))
    for axes, (column, (title, unit, factor)) in zip(charts, COLUMNS.items()):
        for y, row in enumerate(rows):
            value = row[key][column]
            axes.barh(y, value, color=colours[row["clustering"]], height=0.72, alpha=1 if row["attention"] == "math" else 0.7)
            axes.text(0.03, y, f"{row[column] * factor:.3g}", va="center", fontsize=6.5, color="white")
            if column in row.get("paper_ratios", ()) and row["clustering"] != "none" and row["attention"] == "math":
                axes.plot(row["paper_ratios"][column], y, "D", color="white", markeredgecolor="black", markersize=4, clip_on=False)
        axes.axvline(1, color="0.5", linewidth=0.7, zorder=0)
        axes.set_title(f"{title} ({unit})", fontsize=9)
        axes.set_xlim(0, 1.25 * max(1, *(row[key][column] for row in rows)))
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    names = [f"{row['detector'].removesuffix('-ENACT')}, {row['clustering']}, {row['attention']}" for row in rows]
    charts[0].set_yticks(range(len(rows)), names)
    reference = "plain detector" + (" with math attention" if key == "ratios_to_math" else "")
    figure.supxlabel(f"ratio to the {reference}; diamonds: the paper's ratio\n{caption}", fontsize=7.5, color="0.3")
    return figure


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = complete(args)
    complete_workload(args)
    wanted = [(d, c, a) for d in args.detector for a in args.attention for c in args.clustering]
    measured: dict[tuple, list[dict]] = {row: [] for row in wanted}
    for detector, clustering, attention in tqdm(wanted * args.rounds, desc="rows", leave=False):
        row = measure(args, detector, ["--clustering", clustering, "--amp", args.amp], attention)
        measured[detector, clustering, attention].append(row)
    rows = [combine(rounds) for rounds in measured.values()]
    add_ratios(rows)
    if not any("train" in row for row in rows):
        raise UserError("no row fits into the memory: pass a smaller --batch_size")
    print("\n" + table(rows))
    content = {"units": {"memory": "bytes", "step_memory": "bytes", "train": "s/image", "inference": "s/image"}, "results": rows}
    save(NAME, args, argv, content, figure=draw(rows, describe(machine(device))), variant=named_after(args.detector))


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))

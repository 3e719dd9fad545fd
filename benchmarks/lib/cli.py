"""What the benchmarks' command lines share: their options, their outputs, and how they end.

A script's main is ``sys.exit(main(NAME, run, sys.argv[1:]))``, NAME being its path below ``benchmarks/`` without the suffix. Its
``run(argv)`` parses with :func:`build_parser` and :func:`complete`, measures, and hands its records and its chart to :func:`save`.
"""

import json
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.lib.measure import machine
from common.cli.arguments import Parser
from common.errors import UserError
from tools.detectors import CLUSTERED

ROOT = Path(__file__).resolve().parents[2]


def build_parser(name: str, doc: str, detectors: Iterable[str] = CLUSTERED, several: bool = True) -> Parser:
    """A parser with the options that all benchmarks have.

    Args:
        name: of the script, such as "speed/table1".
        doc: its docstring; the first line is the description.
        detectors: those that it can measure; without any there is no ``--detector``.
        several: whether ``--detector`` takes several, all of them by default; else one, by default the first.
    """
    detectors = tuple(detectors)
    parser = Parser(prog=f"benchmarks/{name}.py", description=doc.splitlines()[0], allow_abbrev=False)
    if detectors:
        many = {"nargs": "+", "default": [*detectors]} if several else {"default": detectors[0]}
        names = "all" if several else detectors[0]
        parser.add_argument("--detector", choices=detectors, **many, help=f"folder of a detector (default: {names})")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one, else cpu")
    parser.add_argument("--quick", action="store_true", help="under two minutes on two cores")
    where = "folder for the numbers and the chart (default: benchmarks/results; quick: runs/benchmarks)"
    parser.add_argument("--output", type=Path, help=where)
    return parser


def complete(args: Namespace) -> torch.device:
    """Fills in the device and the output folder, makes the latter, and says what is measured on; UserError where that fails."""
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.output = args.output or ROOT / ("runs/benchmarks" if args.quick else "benchmarks/results")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but no CUDA device is available: pass --device cpu")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output} cannot be created ({error.strerror}): choose another folder") from error
    device = torch.device(args.device)
    print(describe(machine(device)), flush=True)
    return device


def describe(description: dict[str, Any]) -> str:
    """One line about a machine."""
    threads = f"{description['threads']} CPU thread{'s' * (description['threads'] > 1)}"
    return f"{description['device']}, {threads}, torch {description['torch']}, Python {description['python']}"


def named_after(detector: Collection[str], detectors: Iterable[str] = CLUSTERED) -> list[str]:
    """What the files of a run with ``--detector`` are named after: those detectors, in the order of all, or none where all are."""
    detectors = [*detectors]
    return [name for name in detectors if name in detector] if set(detector) != set(detectors) else []


def save(
    name: str,
    args: Namespace,
    argv: list[str],
    content: dict[str, Any],
    *,
    figure: Figure | None = None,
    further: Mapping[str, Figure] | None = None,
    variant: Iterable[str] = (),
) -> None:
    """Writes ``<script>[-<variant>...]-<device>.json`` and ``.png`` and prints where.

    Args:
        name: as in :func:`build_parser`.
        args: the options; those of this module are left out of the ``settings``.
        argv: the command line, for the ``command``.
        content: what was measured, beside the command, the date, the machine and the settings.
        figure: the chart, where there is one.
        further: charts beside it, with what their files are called before the suffix: ``...-<device>-<name>.png``.
        variant: tells apart the files of runs that answer different questions.
    """
    general = ("device", "quick", "output")
    settings = {k: v for k, v in vars(args).items() if k not in general}
    description = {
        "command": shlex.join(["python", f"benchmarks/{name}.py", *argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(torch.device(args.device)),
        "settings": settings,
    }
    numbers = args.output / ("-".join((Path(name).name, *variant, args.device)) + ".json")
    charts = {numbers.with_suffix(".png"): figure} if figure else {}
    charts |= {numbers.with_name(f"{numbers.stem}-{name}.png"): chart for name, chart in (further or {}).items()}
    try:
        text = json.dumps(description | content, indent=1, default=os.fspath)
        text = text.replace(f"{ROOT}{os.sep}", "")  # paths as anybody has them
        numbers.write_text(text + "\n", encoding="utf-8")
        for path, chart in charts.items():
            chart.savefig(path)
    except OSError as error:
        raise UserError(f"{numbers} and its charts cannot be written ({error.strerror}): choose another --output") from error
    print(f"\nwritten: {', '.join(map(str, (numbers, *charts)))}")


def main(name: str, run: Callable[[list[str]], None], argv: list[str]) -> int:
    """Runs a command line; a mistake of the user ends as one sentence and code 2, Ctrl-C with code 130."""
    try:
        run(argv)
    except UserError as error:
        print(f"benchmarks/{name}.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"benchmarks/{name}.py: interrupted, nothing was written to the results", file=sys.stderr)
        return 130
    return 0

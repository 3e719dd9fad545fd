"""The values of the options as they were given, and which of them contradict each other."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .arguments import Parser, common_parser
from .masks import MASK_DEMO, MASK_RECIPE, NoMaskHead

if TYPE_CHECKING:
    from ..detector import Detector

PAIRS = ("train_images", "train_annotations", "val_images", "val_annotations")
# Options that say what a run's data are.
DATA = ("coco_path", *PAIRS, "coco_panoptic_path", "demo")
# Options of one call, which a resumed run does not take over from the one before.
PER_CALL = {
    *DATA,
    *("eval", "export", "predict", "information", "score_threshold", "save_json"),
    *("resume", "finetune", "output_dir"),
    *("device", "num_workers", "channels_last", "compile", "tf32"),
}
# Options that belong to a checkpoint's model and may still be changed when it is used; a detector has more of its own.
CHANGEABLE = ("backbone_weights", "image_size")


def build_parser(name: str, add_arguments: Callable[[Parser], None]) -> Parser:
    """The common options and those of a detector."""
    parser = common_parser(name)
    add_arguments(parser)
    if "masks" not in {action.dest for action in parser._actions}:  # of which argparse has no public list
        parser.add_argument("--masks", action=NoMaskHead, nargs=0, dest=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def parse(detector: Detector, argv: list[str] | None) -> tuple[argparse.Namespace, set[str]]:
    """Parses the command line; with ``--demo`` the demo's values stand in for the defaults.

    Returns:
        The options, and the names of those that the user gave.
    """
    parser, not_given = build_parser(detector.name, detector.add_arguments), object()
    blank = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([])), not_given))
    explicit = {k: v for k, v in vars(parser.parse_args(argv, blank)).items() if v is not not_given}
    defaults = vars(parser.parse_args([]))
    if explicit.get("demo"):
        defaults |= detector.demo | (MASK_DEMO if explicit.get("masks") else {})
    elif explicit.get("frozen_weights"):
        defaults |= MASK_RECIPE
    return argparse.Namespace(**defaults | explicit), set(explicit)


def check(args: argparse.Namespace) -> None:
    """Raises UserError where options contradict each other."""
    chosen = [f"--{name}" for name in ("eval", "predict", "export") if getattr(args, name)]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} are different runs: choose one")
    if chosen and not args.resume:
        raise UserError(f"{chosen[0]} needs weights: pass a checkpoint with --resume")
    if args.resume and args.finetune:
        raise UserError("--resume continues a run and --finetune starts one: choose one")
    frozen = getattr(args, "frozen_weights", None)  # an option of some detectors
    if frozen and not args.masks:
        raise UserError("--frozen_weights trains a mask head alone: pass --masks, too")
    if frozen and args.finetune:
        raise UserError("--finetune trains all weights and --frozen_weights the mask head alone: choose one")
    if args.hidden_dim % args.nheads or args.hidden_dim % 4:
        raise UserError(f"--hidden_dim {args.hidden_dim} must be divisible by 4 and by --nheads {args.nheads}")
    if args.dilation and args.last_stage != 4:
        raise UserError(f"--dilation dilates stage 4, which --last_stage {args.last_stage} leaves out: choose one")
    if getattr(args, "cuts", None) == "steps" and args.clustering == "window":  # options of some detectors
        raise UserError("--clustering window has parts of equal size, which no --cuts steps can move: pass --cuts bends")
    if args.dropout >= 1:
        raise UserError(f"--dropout {args.dropout} must be below 1")


def check_given(args: argparse.Namespace, explicit: set[str]) -> None:
    """Raises UserError where an option that the user gave would have no effect.

    A checkpoint may bring such options along, as when clusters are left out of an evaluation. A capacity, which a program of any
    model may be exported with, and the smoothing, which comparisons give to all their runs, are let pass.
    """
    clustering = getattr(args, "clustering", None)  # an option of some detectors, as are the others
    idle = [name for name in ("scan", "band", "size_bias", "cuts") if name in explicit and getattr(args, name)]
    if clustering == "none" and idle:
        raise UserError(f"--{idle[0]} shapes clusters, which --clustering none has not: choose one")
    if "band" in idle and (args.scan or ("band" if clustering == "region+" else "raster")) != "band":
        raise UserError(f"--band {args.band} sets the rows of --scan band: pass that, too, or leave out --band")


def trains(args: argparse.Namespace) -> bool:
    """Whether a run is a training."""
    return not (args.eval or args.predict or args.export)


def lacks_data(args: argparse.Namespace) -> bool:
    """Whether a run needs a dataset and has none."""
    return not (args.coco_path or pairs_given(args) or args.demo or args.predict or args.export)


def pairs_given(args: argparse.Namespace) -> list[str]:
    """The options that name folders of images and their annotation files one by one, as far as they are given."""
    return [name for name in PAIRS if getattr(args, name)]


def check_data(args: argparse.Namespace) -> None:
    """Raises UserError where a run has no data, or parts of them; one that goes on may have them from its checkpoint."""
    if lacks_data(args):
        raise UserError("no data: pass --coco_path with the folder of a dataset, or --demo for the built-in one")
    if not (given := pairs_given(args)) or args.predict or args.export:
        return
    if args.coco_path or args.demo:
        other = "--coco_path" if args.coco_path else "--demo"
        raise UserError(f"{other} and --{given[0]} both say what the data are: choose one")
    if lacking := [name for name in (PAIRS[2:] if args.eval else PAIRS) if name not in given]:
        raise UserError(f"--{given[0]} is not enough: pass --{', --'.join(lacking)}, too")


def argv_of(options: dict[str, Any]) -> list[str]:
    """Options by name, as Python has them, as a command line: ``{"demo": True, "epochs": 3}`` -> ``["--demo", "--epochs", "3"]``.

    False becomes ``--no-<name>``, a list several values; None leaves the option out.
    """
    argv: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            argv.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            argv += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return argv

"""The values of the options: as they were given, and as a checkpoint brings them along."""

import argparse
from typing import Any

from ..detector import Detector
from ..errors import UserError
from .arguments import Parser, common_parser
from .masks import MASK_DEMO, MASK_RECIPE, NoMaskHead

# Options of one call, which a resumed run does not take over from the one before.
PER_CALL = {
    *("coco_path", "coco_panoptic_path", "demo", "eval", "export", "predict", "information", "score_threshold"),
    *("resume", "finetune", "output_dir"),
    *("device", "num_workers", "channels_last", "compile", "tf32"),
}
# Options that belong to a checkpoint's model and may still be changed when it is used; a detector has more of its own.
CHANGEABLE = ("backbone_weights", "image_size")


def build_parser(detector: Detector) -> Parser:
    """The common options and those of a detector."""
    parser = common_parser(detector.name)
    detector.add_arguments(parser)
    if "masks" not in detector.architecture:
        parser.add_argument("--masks", action=NoMaskHead, nargs=0, dest=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def parse(detector: Detector, argv: list[str] | None) -> tuple[argparse.Namespace, set[str]]:
    """Parses the command line; with ``--demo`` the demo's values stand in for the defaults.

    Returns:
        The options, and the names of those that the user gave.
    """
    parser, not_given = build_parser(detector), object()
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
    if not (args.coco_path or args.demo or args.predict or args.export):
        raise UserError("no data: pass --coco_path with a dataset in COCO's format, or --demo for the built-in one")
    if args.hidden_dim % args.nheads or args.hidden_dim % 4:
        raise UserError(f"--hidden_dim {args.hidden_dim} must be divisible by 4 and by --nheads {args.nheads}")
    if args.dilation and args.last_stage != 4:
        raise UserError(f"--dilation dilates stage 4, which --last_stage {args.last_stage} leaves out: choose one")
    if args.dropout >= 1:
        raise UserError(f"--dropout {args.dropout} must be below 1")


def follow_checkpoint(
    detector: Detector, args: argparse.Namespace, explicit: set[str], checkpoint: dict[str, Any], path: str
) -> list[str]:
    """Takes options and the number of classes over from a checkpoint.

    The options that shape the model, and those that belong to it; to continue a run of this repository all its others, too, but
    not those of one call. Evaluation and prediction keep the precision of their own call.

    Args:
        args: changed in place.
        explicit: names of the options that the user gave.
        checkpoint: with the options that it was trained with under ``args``, as far as it has them; gets ``num_classes``, and under
            ``fresh`` parts of the names of weights that start anew.
        path: of the checkpoint, for messages.

    Returns:
        Lines that say what may surprise.

    Raises:
        UserError: it is of another detector, or an option that shapes the model was given with another value.
    """
    try:
        revealed = detector.reveal(checkpoint["model"])
    except (KeyError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is not a checkpoint of {detector.name}: {error} is missing") from error
    checkpoint["num_classes"] = revealed.pop("num_classes")
    recorded = checkpoint.get("args") or {}
    for name, weights in detector.told.items():
        if not {name} & (explicit | recorded.keys()) and any(weights in key for key in checkpoint["model"]):
            raise UserError(f"{path} does not tell the --{name} that it was trained with: pass it")
    lines = []
    starts = args.finetune or getattr(args, "frozen_weights", None) and not args.resume
    warm = {name for name, (value, *_) in detector.plain.items() if starts and revealed.get(name) == value}
    for name in detector.architecture:
        known = revealed.get(name, recorded.get(name))
        if known is None or name in warm or name in explicit and getattr(args, name) == known:
            continue
        if name in explicit and args.finetune and name in detector.fresh:
            checkpoint["fresh"] = (*checkpoint.get("fresh", ()), *detector.fresh[name])
            continue
        if name in explicit:
            raise UserError(f"--{name} {getattr(args, name)} contradicts the checkpoint {path}, which has {name} {known}")
        is_plain = known == detector.plain.get(name, (None,))[0]
        if is_plain and name not in recorded and known != getattr(args, name):
            lines.append(_as_trained(path, name, known))
        setattr(args, name, known)
    continued = args.resume and "detector" in checkpoint
    followed = {*vars(args)} - PER_CALL - {*detector.architecture} if continued else {*CHANGEABLE, *detector.changeable}
    if args.eval or args.predict or args.export:
        followed -= {"amp"}
    options = revealed | recorded
    for name in sorted(followed - warm - explicit):
        if name not in options:
            continue
        expected = (getattr(args, name), *detector.plain.get(name, ())[:1])
        if name in detector.changeable and name not in recorded and options[name] not in expected:
            lines.append(_as_trained(path, name, options[name]))
        setattr(args, name, options[name])
    return lines


def _as_trained(path: str, name: str, value: Any) -> str:
    return f"{path} was trained with --{name} {value}, and is used so"

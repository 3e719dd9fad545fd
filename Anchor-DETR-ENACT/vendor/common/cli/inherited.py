"""The options that a checkpoint brings along."""

import argparse
from argparse import Action, ArgumentTypeError
from pathlib import Path
from typing import Any

from ..detector import Detector
from ..errors import UserError, quoted
from .arguments import Parser
from .options import CHANGEABLE, DATA, PER_CALL, build_parser, lacks_data, trains


def follow_checkpoint(
    detector: Detector, args: argparse.Namespace, explicit: set[str], checkpoint: dict[str, Any], path: str
) -> list[str]:
    """Takes options and the number of classes over from a checkpoint.

    The options that shape the model, and those that belong to it; to continue a run of this repository all its others, too, its
    data and its folder included, but not those of one call. Evaluation and prediction keep the precision of their own call.

    Args:
        args: changed in place.
        explicit: names of the options that the user gave.
        checkpoint: with the options that it was trained with under ``args``, as far as it has them; gets ``num_classes``, and under
            ``fresh`` parts of the names of weights that start anew.
        path: of the checkpoint, for messages.

    Returns:
        Lines that say what may surprise.

    Raises:
        UserError: it is of another detector, holds an impossible option, or one that shapes the model was given with another value.
    """
    revealed = _reveal(detector, checkpoint, path)
    checkpoint["num_classes"] = revealed.pop("num_classes")
    if "category_ids" in checkpoint and len(checkpoint["category_ids"]) != checkpoint["num_classes"]:
        raise UserError(
            f"{path} lists {len(checkpoint['category_ids'])} category_ids and has weights of {checkpoint['num_classes']} classes: "
            "it is damaged; choose another"
        )
    recorded = checkpoint.get("args") or {}
    for name, weights in detector.told.items():
        if not {name} & (explicit | recorded.keys()) and any(weights in key for key in checkpoint["model"]):
            raise UserError(f"{path} does not tell the --{name} that it was trained with: pass it")
    lines = []
    parser = build_parser(detector.name, detector.add_arguments)
    starts = args.finetune or getattr(args, "frozen_weights", None) and not args.resume
    warm = {name for name, (value, *_) in detector.plain.items() if starts and revealed.get(name) == value}
    for name in detector.architecture:
        if name not in vars(args):
            continue  # published files record options that this detector leaves no choice of, such as Deformable DETR's positions
        known = revealed.get(name, recorded.get(name))
        if known is None or name in warm or name in explicit and getattr(args, name) == known:
            continue
        if name in explicit and args.finetune and name in detector.fresh:
            checkpoint["fresh"] = (*checkpoint.get("fresh", ()), *detector.fresh[name])
            continue
        if name in explicit:
            raise UserError(f"--{name} {getattr(args, name)} contradicts the checkpoint {path}, which has {name} {quoted(known)}")
        is_plain = known == detector.plain.get(name, (None,))[0]
        if is_plain and name not in recorded and known != getattr(args, name):
            lines.append(_as_trained(path, name, known))
        setattr(args, name, _usable(parser, name, known, path))
    if args.last_stage != 4 and "dilation" not in explicit:
        args.dilation = False  # the default of some, of a stage that this model has not
    continued = args.resume and "detector" in checkpoint
    followed = {*vars(args)} - PER_CALL - {*detector.architecture} if continued else {*CHANGEABLE, *detector.changeable}
    if not trains(args):
        followed -= {"amp"}
    options = revealed | recorded
    for name in sorted(followed - warm - explicit):
        if name not in options:
            continue
        expected = (getattr(args, name), *detector.plain.get(name, ())[:1])
        if name in detector.changeable and name not in recorded and options[name] not in expected:
            lines.append(_as_trained(path, name, options[name]))
        setattr(args, name, _usable(parser, name, options[name], path))
    if continued:
        lines += _go_on(parser, args, explicit, recorded, path)
    return lines


def _reveal(detector: Detector, checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """What the weights tell; UserError where they are another detector's, which is named where the file names it."""
    try:
        return detector.reveal(checkpoint["model"])
    except Exception as error:  # whatever foreign names and shapes provoke
        missing = f"{quoted(error)} is missing" if isinstance(error, KeyError) else "its weights have other names and shapes"
        raise UserError(f"{path} is {whose(detector, checkpoint)}not a checkpoint of {detector.name}: {missing}") from error


def whose(detector: Detector, checkpoint: dict[str, Any]) -> str:
    """For messages, "one of X, and " where a checkpoint says that it is of another detector."""
    other = checkpoint.get("detector", detector.name)
    return f"one of {quoted(other)}, and " if other != detector.name else ""


def _go_on(parser: Parser, args: argparse.Namespace, explicit: set[str], recorded: dict[str, Any], path: str) -> list[str]:
    """Takes over the data of a run that goes on or is evaluated, and the folder of one that goes on; says so."""
    lines = []
    if lacks_data(args):
        for name in {*DATA, "dataset_file"} & vars(args).keys() & recorded.keys() - explicit:
            value = _usable(parser, name, recorded[name], path)
            setattr(args, name, Path(value) if isinstance(value, str) and name != "dataset_file" else value)
        if not lacks_data(args):
            data = args.coco_path or args.val_annotations or "the built-in shapes"
            lines.append(f"on the data that {path} was trained on: {data}")
    if trains(args) and "output_dir" not in explicit and Path(path).is_file():
        args.output_dir = Path(path).parent
        lines.append(f"the run goes on in its folder {args.output_dir}")
    return lines


def check_share(args: argparse.Namespace, checkpoint: dict[str, Any]) -> None:
    """UserError where a run would validate on images that the checkpoint was trained on: a folder without splits, parted anew."""
    recorded = checkpoint.get("args") or {}
    same_data = args.coco_path.resolve() == Path(str(recorded.get("coco_path", ""))).resolve()
    for name in ("val_share", "seed"):
        if same_data and recorded.get(name, getattr(args, name)) != getattr(args, name):
            raise UserError(
                f"--{name} {getattr(args, name)} parts {args.coco_path} otherwise than for {args.resume}, and images that it was "
                f"trained on would be for validation: leave out --{name}"
            )


def _usable(parser: Parser, name: str, value: Any, path: str) -> Any:
    """The value of an option, as a checkpoint has it; UserError where the command line would not take it."""
    action = next(action for action in parser._actions if action.dest == name)  # the first of several with one meaning
    if not _fits(action, value):
        raise UserError(f"{path} was trained with --{name} {quoted(repr(value))}, which is no value of that option: pass another")
    return value


def _fits(action: Action, value: Any) -> bool:
    if value is None:
        return action.default is None
    if action.nargs == 0:  # a switch
        return isinstance(value, bool)
    values = value if isinstance(value, list) and action.nargs else [value]
    return all(_is_one(action, v) for v in values)


def _is_one(action: Action, value: Any) -> bool:
    if action.type is None:
        return isinstance(value, str) and (not action.choices or value in action.choices)
    try:
        converted = action.type(str(value))
    except (ArgumentTypeError, ValueError, TypeError, UserError):
        return False
    like = (type(converted), int) if isinstance(converted, float) else (str,) if isinstance(converted, Path) else (type(converted),)
    return type(value) in like and (not action.choices or converted in action.choices)


def _as_trained(path: str, name: str, value: Any) -> str:
    return f"{path} was trained with --{name} {value}, and is used so"

"""From a checkpoint to its model: for the command line, the benchmarks and Python alike."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..boundary.checkpoints import load_checkpoint
from ..data.coco_names import known_categories
from ..detector import Detector
from ..errors import UserError
from ..models.checkpoint import load_model
from ..models.model import DetectionModel
from ..models.reveal import DETECTOR_OF_MASKS, has_mask_head
from ..predictor import Predictor
from .device import chosen_device
from .inherited import follow_checkpoint, whose
from .options import check, parse


@dataclass(frozen=True)
class Restored:
    """A model as a checkpoint has it.

    Attributes:
        model: on the CPU.
        args: its options.
        num_classes: C.
        categories: ``category_names`` (id -> name), as far as the checkpoint tells, and of a panoptic one ``stuff``.
        messages: what may surprise, a line each.
    """

    model: DetectionModel
    args: Namespace
    num_classes: int
    categories: dict[str, Any]
    messages: list[str]


def restore(detector: Detector, source: str | Path, argv: Sequence[str] = (), checkpoint: dict[str, Any] | None = None) -> Restored:
    """Reads a checkpoint, published or of this repository, and builds its model.

    Args:
        source: a path or an https URL.
        argv: options of the command line that differ from the checkpoint's.
        checkpoint: what ``load_checkpoint(source)`` read, if it was read already.

    Raises:
        UserError: it is not one, is of another detector, or contradicts the options.
    """
    args, explicit = parse(detector, ["--resume", str(source), "--predict", ".", *argv])
    checkpoint = dict(checkpoint or load_checkpoint(source))
    messages = follow_checkpoint(detector, args, explicit, checkpoint, str(source))
    check(args)
    model, message = build_model(detector, args, checkpoint, checkpoint["num_classes"])
    return Restored(model, args, checkpoint["num_classes"], known_categories(checkpoint), messages + message)


def starting_weights(args: Namespace) -> str | None:
    """The checkpoint that a run starts from."""
    return args.resume or args.finetune or getattr(args, "frozen_weights", None)


def keeps_classes(args: Namespace) -> bool:
    """Whether the model has the classes of the checkpoint that it starts from."""
    return bool(starting_weights(args)) and not args.finetune


def build_model(
    detector: Detector, args: Namespace, checkpoint: dict[str, Any], num_classes: int, other_classes: bool = False
) -> tuple[DetectionModel, list[str]]:
    """The model of these options, with the checkpoint's weights where there is one, and lines that say what was not loaded.

    Args:
        other_classes: the model's classes are not those of the checkpoint, even if they are as many.

    Raises:
        UserError: weights that must be there are missing, unknown or of another shape.
    """
    source = starting_weights(args)
    model = detector.build_model(args, num_classes, not source)
    if not source:
        return model, []
    state_dict = detector.adapt(checkpoint["model"], args.nheads)
    if model.detector is not model and not has_mask_head(state_dict):
        state_dict = {f"{DETECTOR_OF_MASKS}{name}": value for name, value in state_dict.items()}
    if other_classes:
        state_dict = {name: value for name, value in state_dict.items() if not any(part in name for part in detector.classes)}
    may_be_new = []
    optional = [part for _, *weights in detector.plain.values() for part in weights]
    if args.finetune:
        may_be_new = [*detector.classes, *detector.renewable, *optional, *checkpoint.get("fresh", ())]
    elif not args.resume:  # a detector to which a mask head is added
        may_be_new = detector.plain["masks"][1:]
    elif args.eval or args.predict:  # with an encoder that the user chose, whatever it was trained with
        for name, (plain, *weights) in detector.plain.items():
            was_plain = not any(part in key for key in state_dict for part in weights)
            if was_plain != (getattr(args, name) == plain):
                may_be_new += weights
    return model, load_model(model, state_dict, source, may_be_new, whose(detector, checkpoint))


def load_predictor(detectors: Sequence[Detector], source: str | Path, argv: Sequence[str] = ()) -> Predictor:
    """The detector, of several, whose checkpoint this is, ready to be used.

    Args:
        source: a path or an https URL.
        argv: options of the command line that differ from the checkpoint's.

    Raises:
        UserError: it is not a checkpoint, is of none of them, or contradicts the options.
    """
    checkpoint = load_checkpoint(source)
    detector = recognise(detectors, checkpoint, str(source))
    restored = restore(detector, source, argv, checkpoint)
    for line in restored.messages:
        print(line)
    return Predictor(detector, restored.model, restored.args, restored.categories, chosen_device(restored.args))


def recognise(detectors: Sequence[Detector], checkpoint: dict[str, Any], source: str) -> Detector:
    """Whose checkpoint it is: as it says itself, or the first whose weights have exactly these names and shapes.

    Raises:
        UserError: of none of them.
    """
    named = {detector.name: detector for detector in detectors}
    if len(detectors) == 1 or checkpoint.get("detector") in named:
        return named.get(checkpoint.get("detector"), detectors[0])
    for detector in detectors:
        args, explicit = parse(detector, ["--resume", source, "--predict", "."])
        try:
            known = dict(checkpoint)
            follow_checkpoint(detector, args, explicit, known, source)
            check(args)
            with torch.device("meta"):
                own = detector.build_model(args, known["num_classes"], False).state_dict()
            adapted = detector.adapt(checkpoint["model"], args.nheads)
        except (UserError, KeyError):
            continue
        if {name: value.shape for name, value in adapted.items()} == {name: value.shape for name, value in own.items()}:
            return detector
    raise UserError(f"{source} has the weights of none of {', '.join(named)}: check the file")

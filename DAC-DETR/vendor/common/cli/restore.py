"""From a checkpoint to its model: for the command line, the benchmarks and Python alike."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..boundary.checkpoints import load_checkpoint
from ..detector import Detector
from ..models.checkpoint import load_model
from ..models.model import DetectionModel
from ..models.reveal import DETECTOR_OF_MASKS, has_mask_head
from .inherited import follow_checkpoint
from .options import check, parse


@dataclass(frozen=True)
class Restored:
    """A model as a checkpoint has it.

    Attributes:
        model: on the CPU.
        args: its options.
        num_classes: C.
        category_names: category id -> name, as far as the checkpoint tells.
        messages: what may surprise, a line each.
    """

    model: DetectionModel
    args: Namespace
    num_classes: int
    category_names: dict[int, str]
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
    names = checkpoint.get("category_names", {})
    return Restored(model, args, checkpoint["num_classes"], names, messages + message)


def starting_weights(args: Namespace) -> str | None:
    """The checkpoint that a run starts from."""
    return args.resume or args.finetune or getattr(args, "frozen_weights", None)


def keeps_classes(args: Namespace) -> bool:
    """Whether the model has the classes of the checkpoint that it starts from."""
    return bool(starting_weights(args)) and not args.finetune


def build_model(
    detector: Detector, args: Namespace, checkpoint: dict[str, Any], num_classes: int
) -> tuple[DetectionModel, list[str]]:
    """The model of these options, with the checkpoint's weights where there is one, and lines that say what was not loaded.

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
    may_be_new = []
    optional = [part for _, *weights in detector.plain.values() for part in weights]
    if args.finetune:
        may_be_new = [*detector.renewable, *optional, *checkpoint.get("fresh", ())]
    elif not args.resume:  # a detector to which a mask head is added
        may_be_new = detector.plain["masks"][1:]
    elif args.eval or args.predict:  # with an encoder that the user chose, whatever it was trained with
        for name, (plain, *weights) in detector.plain.items():
            was_plain = not any(part in key for key in state_dict for part in weights)
            if was_plain != (getattr(args, name) == plain):
                may_be_new += weights
    return model, load_model(model, state_dict, source, may_be_new)

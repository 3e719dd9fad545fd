"""What a detector's folder tells the shared code about itself."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .cli.arguments import Parser
from .evaluation.postprocess import PostProcess
from .losses.criterion import Criterion
from .models.model import DetectionModel

# Options that the shape of a checkpoint's weights depends on, whatever the detector: they are read from it.
ARCHITECTURE = (
    "backbone",
    "dilation",
    "last_stage",
    "position_embedding",
    "hidden_dim",
    "nheads",
    "dim_feedforward",
    "enc_layers",
    "dec_layers",
    "num_queries",
)


def backbone_and_rest(args: Namespace, images_per_step: int) -> list[tuple[str, float]]:
    """DETR's learning rates."""
    return [("backbone", args.lr_backbone), ("", args.lr)]


def as_it_is(args: Namespace) -> dict[str, dict[str, Any]]:
    """One evaluation, which needs no name."""
    return {"": {}}


def record_nothing(model: nn.Module) -> AbstractContextManager[dict[str, Any]]:
    """Of a detector whose outputs tell all that its pictures show."""
    return nullcontext({})


def self_information(records: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Tensor]:
    """The self-information of the last encoder layer; nothing where nothing was recorded, without clustering."""
    if not records:
        return {}
    return {"Self-information": list(records.values())[-1].information[0].reshape(outputs["feature_size"]).float()}


@dataclass(frozen=True)
class Detector:
    """One detector: plain values and functions, which the shared code reads and calls without knowing a name.

    Attributes:
        name: its folder's name.
        add_arguments: adds its options to the common ones and sets its recipe as defaults.
        build_model: ``(args, num_classes, load_backbone)`` -> the model; ``load_backbone`` says whether to read pretrained weights.
        build_criterion: ``(args, num_classes)`` -> the losses.
        build_postprocess: options -> what makes detections of the model's outputs.
        reveal: a state dict, published or its own -> the options that it tells, and ``num_classes``.
        adapt: such a state dict and the number of heads -> this model's state dict; its own comes back as it is.
        export: this model's state dict and the number of heads -> the published names.
        record: a context that collects, per encoder layer, something with ``information`` (B, N).
        pictures: what ``record`` collected and the outputs of an image alone -> what ``--information`` shows beside it: captions
            and maps (h, w), of numbers or of bools.
        demo: the options of ``--demo`` that differ from the recipe.
        architecture: options that are read from a checkpoint.
        changeable: options of its own that belong to a checkpoint's model and may still be changed when it is used.
        plain: options of both kinds -> the value with which the model is a plain one, and parts of the names of the weights that it
            lacks then. ``--finetune`` does not take that value over from a checkpoint: that of a plain model is a warm start.
        classes: parts of the names of weights that belong to single classes: with ``--finetune`` they start anew where the classes
            are others.
        renewable: parts of the names of weights that may start anew with ``--finetune``: files that it starts from lack them.
        fresh: options with which a model may start from weights without them (``--finetune``): -> parts of the names of weights
            that start anew then.
        told: options that no weights tell though they belong to some: -> a part of these weights' names. Their checkpoints, or
            else the user, have to tell them.
        parameter_groups: options, and images per optimiser step -> (regular expression, learning rate), in order: a parameter
            belongs to the first whose expression is found in its name.
        evaluations: options -> the evaluations of a model: what each is called in the log -> attributes of the model that it is
            made with. The first is the one that counts.
        compiled: regular expressions of the names of the modules that ``--compile`` compiles.
    """

    name: str
    add_arguments: Callable[[Parser], None]
    build_model: Callable[[Namespace, int, bool], DetectionModel]
    build_criterion: Callable[[Namespace, int], Criterion]
    build_postprocess: Callable[[Namespace], PostProcess]
    reveal: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    adapt: Callable[[Mapping[str, Tensor], int], Mapping[str, Tensor]]
    export: Callable[[Mapping[str, Tensor], int], Mapping[str, Tensor]]
    demo: dict[str, Any]
    record: Callable[[nn.Module], AbstractContextManager[dict[str, Any]]] = record_nothing
    pictures: Callable[[dict[str, Any], dict[str, Any]], dict[str, Tensor]] = self_information
    architecture: tuple[str, ...] = ARCHITECTURE
    changeable: tuple[str, ...] = ()
    plain: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    classes: tuple[str, ...] = ("class_embed",)
    renewable: tuple[str, ...] = ()
    fresh: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)
    parameter_groups: Callable[[Namespace, int], list[tuple[str, float]]] = backbone_and_rest
    evaluations: Callable[[Namespace], dict[str, dict[str, Any]]] = as_it_is
    compiled: tuple[str, ...] = ()

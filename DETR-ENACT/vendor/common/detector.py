"""What a detector's folder tells the shared code about itself."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
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


def backbone_and_rest(args: Namespace) -> list[tuple[str, float]]:
    """DETR's learning rates."""
    return [("backbone", args.lr_backbone), ("", args.lr)]


@dataclass(frozen=True)
class Detector:
    """One detector: plain values and functions, which the shared code reads and calls without knowing a name.

    Attributes:
        name: its folder's name.
        add_arguments: adds its options to the common ones and sets its recipe as defaults.
        build_model: ``(args, num_classes, load_backbone)`` -> the model; ``load_backbone`` says whether to read pretrained weights.
        build_criterion: ``(args, num_classes)`` -> the losses.
        build_postprocess: options -> ``(outputs, original sizes (B, 2)) -> detections per image``, see ``postprocess.py``.
        reveal: a state dict, published or its own -> the options that it tells, and ``num_classes``.
        adapt: such a state dict and the number of heads -> this model's state dict; its own comes back as it is.
        export: this model's state dict and the number of heads -> the published names.
        record: a context that collects, per encoder layer, something with ``information`` (B, N).
        demo: the options of ``--demo`` that differ from the recipe.
        architecture: options that are read from a checkpoint.
        changeable: options of its own that belong to a checkpoint's model and may still be changed when it is used.
        plain: values of such options with which the model lacks its ``optional_weights``. ``--finetune`` does not take them over
            from a checkpoint: that of a plain model is a warm start.
        optional_weights: parts of the names of weights that a plain model lacks.
        parameter_groups: options -> (regular expression, learning rate), in order: a parameter belongs to the first whose
            expression is found in its name.
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
    record: Callable[[nn.Module], AbstractContextManager[dict[str, Any]]]
    demo: dict[str, Any]
    architecture: tuple[str, ...] = ARCHITECTURE
    changeable: tuple[str, ...] = ()
    plain: Mapping[str, Any] = field(default_factory=dict)
    optional_weights: tuple[str, ...] = ()
    parameter_groups: Callable[[Namespace], list[tuple[str, float]]] = backbone_and_rest
    compiled: tuple[str, ...] = ()

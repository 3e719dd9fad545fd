"""What a detector's folder tells the shared code about itself."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .arguments import ARCHITECTURE, Parser
from .losses import SetCriterion


@dataclass(frozen=True)
class Detector:
    """One detector.

    A model maps images (B, 3, H, W) and a mask (B, H, W), True = padding, to a dict of ``pred_logits`` (L, B, Q, C), ``pred_boxes``
    (L, B, Q, 4), cxcywh in [0, 1], for its L decoder layers, and ``feature_size``, height and width of its feature map. Its
    attribute ``num_queries`` is Q, its parameters whose name contains ``backbone`` get their own learning rate, and ``--compile``
    compiles its modules named ``decoder.layers.<i>`` or ``decoder_layers.<i>``.

    Attributes:
        name: its folder's name.
        add_arguments: adds its options to the common ones and sets its recipe as defaults.
        build_model: ``(args, num_classes, load_backbone)`` -> the model; ``load_backbone`` says whether to read pretrained weights.
        build_criterion: ``(args, num_classes)`` -> the losses.
        postprocess: outputs and original sizes (B, 2) -> detections per image, see ``postprocess.py``.
        reveal: a state dict, published or its own -> the options that it tells, and ``num_classes``.
        adapt: such a state dict and the number of heads -> this model's state dict; its own comes back as it is.
        export: this model's state dict and the number of heads -> the published names.
        record: a context that collects, per encoder layer, something with ``information`` (B, N).
        demo: the options of ``--demo`` that differ from the recipe.
        may_be_new: parts of the names of weights that ``--finetune`` may start anew.
        architecture: options that are read from a checkpoint.
    """

    name: str
    add_arguments: Callable[[Parser], None]
    build_model: Callable[[Namespace, int, bool], nn.Module]
    build_criterion: Callable[[Namespace, int], SetCriterion]
    postprocess: Callable[[dict[str, Tensor], Tensor], list[dict[str, Tensor]]]
    reveal: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    adapt: Callable[[Mapping[str, Tensor], int], Mapping[str, Tensor]]
    export: Callable[[Mapping[str, Tensor], int], Mapping[str, Tensor]]
    record: Callable[[nn.Module], AbstractContextManager[dict[str, Any]]]
    demo: dict[str, Any]
    may_be_new: tuple[str, ...] = ("class_embed", "W_prob")
    architecture: tuple[str, ...] = field(default=ARCHITECTURE)

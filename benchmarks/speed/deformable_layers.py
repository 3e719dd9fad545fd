"""What ``deformable.py`` runs: an encoder layer, ours and Hugging Face's, and the encoder of Sparse DETR.

Shapes: B images, N tokens of S feature levels, d features; level l has H_l x W_l pixels.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

import tools.detectors  # noqa: F401 - it puts the detectors' packages on the path

# isort: split
from benchmarks.speed.shares import BACKWARD, MARK, seconds_per_part
from common.errors import UserError
from common.models import deformable_attention
from common.models.deformable_transformer import DeformableEncoderLayer
from common.models.levels import Levels, flatten_levels
from common.models.positions import PositionEmbeddingSine
from common.models.transformer import TransformerOptions
from sparse_detr.transformer import DeformableOptions, Transformer

# The recipe's size, without dropout: its random numbers would differ from method to method.
OPTIONS = TransformerOptions(d_model=256, nhead=8, dim_feedforward=1024, dropout=0.0, enc_layers=6, dec_layers=6)
STRIDES = (8, 16, 32, 64)
POINTS = 4
OURS, THEIRS = METHODS = ("this repository", "Hugging Face")
TOLERANCE = 1e-4  # of the outputs, which a norm has brought to a standard deviation of 1
SCORING, VALUE, SAMPLING, OTHER = PARTS = ("scoring", "value projection of all tokens", "sampling", "other")
SAMPLERS = ("sample", "_sample_compiled")  # of common.models.deformable_attention


@dataclass(frozen=True)
class Passes:
    """One method.

    Attributes:
        output: (B, N, d) of an inference.
        forward: an inference, without gradients.
        forward_backward: gradients of features, positions and parameters, as in training.
    """

    output: Callable[[], Tensor]
    forward: Callable[[], None]
    forward_backward: Callable[[], None]


def level_shapes(width: int, height: int) -> tuple[tuple[int, int], ...]:
    """(H_l, W_l) of the levels of an image of this size."""
    return tuple((ceil(height / stride), ceil(width / stride)) for stride in STRIDES)


def build_levels(width: int, height: int, batch_size: int, device: torch.device) -> Levels:
    """White noise as features, without padding; features and positions are leaves that take gradients."""
    shapes, d_model = level_shapes(width, height), OPTIONS.d_model
    mask = torch.zeros(batch_size, height, width, dtype=torch.bool, device=device)
    features = [(torch.randn(batch_size, d_model, h, w, device=device), mask[:, :h, :w]) for h, w in shapes]
    embedding = torch.randn(len(shapes), d_model, device=device)
    levels = flatten_levels(features, PositionEmbeddingSine(d_model, shift=-0.5), embedding)
    return replace(levels, src=levels.src.requires_grad_(), pos=levels.pos.requires_grad_())


def spread(module: nn.Module) -> None:
    """Lets tokens look at places of their own, as those of a trained network do; at the start all look at the same pattern."""
    for name, parameter in module.named_parameters():
        if re.search(r"(sampling_offsets|attention_weights)\.weight$", name):
            nn.init.xavier_uniform_(parameter)


def build_layers(device: torch.device) -> dict[str, nn.Module]:
    """An encoder layer of each kind, on the same weights; UserError without Hugging Face's."""
    try:
        from transformers import DeformableDetrConfig
        from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrEncoderLayer
    except ImportError as error:
        raise UserError("the yardstick is Hugging Face's layer: install it with pip install 'transformers>=5'") from error
    ours = DeformableEncoderLayer(OPTIONS, len(STRIDES), POINTS)
    spread(ours)
    config = DeformableDetrConfig(
        d_model=OPTIONS.d_model,
        encoder_attention_heads=OPTIONS.nhead,
        encoder_ffn_dim=OPTIONS.dim_feedforward,
        num_feature_levels=len(STRIDES),
        encoder_n_points=POINTS,
        dropout=0.0,
        activation_dropout=0.0,
    )
    theirs = DeformableDetrEncoderLayer(config)
    theirs.load_state_dict({_their_name(name): value for name, value in ours.state_dict().items()})
    return {OURS: ours.to(device), THEIRS: theirs.to(device)}


def _their_name(name: str) -> str:
    names = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm", "linear1": "mlp.fc1", "linear2": "mlp.fc2"}
    first, _, rest = name.partition(".")
    return f"{names.get(first, first)}.{rest}"


def build_layer_passes(levels: Levels, device: torch.device) -> dict[str, Passes]:
    """Both layers on these tokens; UserError where their outputs differ."""
    layers = build_layers(device)
    shapes = torch.tensor(levels.shapes, device=device)
    areas = shapes.prod(1)
    layout = (shapes, list(levels.shapes), areas.cumsum(0) - areas)
    valid = ~levels.mask
    calls = {
        OURS: lambda: layers[OURS](levels.src, levels.pos, levels.references, levels.src, levels),
        THEIRS: lambda: layers[THEIRS](levels.src, valid, levels.pos, levels.references, *layout),
    }
    gradient = torch.randn_like(levels.src)
    methods = {name: _passes(layers[name], calls[name], levels, gradient) for name in METHODS}
    ours, theirs = (methods[name].output() for name in METHODS)
    difference = (ours - theirs).abs().max().item()
    if not difference <= TOLERANCE:
        raise UserError(f"Hugging Face's layer computes something else, up to {difference:g} away: install another transformers")
    return methods


def _passes(module: nn.Module, call: Callable[[], Tensor], levels: Levels, gradient: Tensor) -> Passes:
    leaves = [levels.src, levels.pos, *module.parameters()]

    @torch.no_grad()
    def output() -> Tensor:
        module.eval()
        return call()

    def forward() -> None:
        output()

    def forward_backward() -> None:
        module.train()
        call().backward(gradient)
        _clear(leaves)

    return Passes(output, forward, forward_backward)


def _clear(leaves: list[Tensor]) -> None:
    for leaf in leaves:
        leaf.grad = None


class SparseEncoder:
    """Scoring, selection and encoder of Sparse DETR as the paper has them, on one set of weights for every share of tokens.

    Args:
        size: width and height of the image.
        batch_size: B.
        device: where.
    """

    def __init__(self, size: tuple[int, int], batch_size: int, device: torch.device):
        paper = {"with_box_refine": True, "two_stage": True, "eff_query_init": True, "eff_specific_head": True}
        self.options = DeformableOptions(num_feature_levels=len(STRIDES), enc_n_points=POINTS, rho=1.0, **paper)
        self.transformer = Transformer(OPTIONS, self.options).to(device).train()
        spread(self.transformer)
        self.device, self.levels = device, build_levels(*size, batch_size, device)
        self.gradients = [torch.randn_like(self.levels.src), torch.randn_like(self.levels.src[..., 0])]

    def run(self, rho: float) -> None:
        """Forward and backward pass of a training step; rho 0: all tokens, without scores."""
        self.transformer.options = replace(self.options, rho=rho)
        levels = replace(self.levels)  # a new one, which has to compute references and proposals
        with record_function(MARK + SCORING):
            selection = self.transformer.select(levels)
        memory, _ = self.transformer.encoder(levels, selection)
        outputs = [memory] if selection is None else [memory, selection.scores]
        torch.autograd.backward(outputs, self.gradients[: len(outputs)])
        _clear([levels.src, levels.pos, *self.transformer.parameters()])

    def shares(self, rho: float) -> dict[str, float]:
        """The parts' shares of the operators' time."""
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        with marked(self.transformer), profile(activities=activities) as profiler:
            self.run(rho)
        durations = parts_of_pass(profiler.events(), self.device)
        return {part: durations[part] / durations.total() for part in PARTS}


@contextmanager
def marked(module: nn.Module) -> Iterator[None]:
    """Names value projections and sampling for the profiler."""
    projections = [m.value_proj for m in module.modules() if isinstance(m, deformable_attention.DeformableAttention)]
    with ExitStack() as stack:
        for projection in projections:
            stack.enter_context(patch.object(projection, "forward", _named(VALUE, projection.forward)))
        for name in SAMPLERS:
            stack.enter_context(patch.object(deformable_attention, name, _named(SAMPLING, getattr(deformable_attention, name))))
        yield


def _named(part: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*args: Any) -> Tensor:
        with record_function(MARK + part):
            return function(*args)

    return run


def parts_of_pass(events: list[FunctionEvent], device: torch.device) -> Counter[str]:
    """Seconds of each part. Sampling's way back runs one within it, which belongs to it, too."""
    for event in events:
        if event.name.startswith(BACKWARD) and _is_inner(event):
            event.name = f"inner {event.name}"
    return seconds_per_part(events, device)


def _is_inner(event: FunctionEvent) -> bool:
    while (event := event.cpu_parent) is not None:
        if BACKWARD in event.name:
            return True
    return False

"""The layers that ``attention.py`` compares, each as one function of the features.

Shapes: B images, H x W pixels of the feature map, N = H * W, d features.
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import tools.detectors  # noqa: F401 - it puts the detectors' packages on the path

# isort: split
from anchor_detr.rcda import RCDA, ClusteredRCDA
from benchmarks.speed.window_loop import WindowLoop
from common.models.positions import PositionEmbeddingSine, sine_embedding
from enact import ClusteredAttention

PLAIN, MATH, REGION, PLUS, STEPS, WINDOW, LOOP = METHODS = (
    "plain",
    "plain math",
    "region",
    "region+",
    "region+, steps",
    "window",
    "window loop",
)
CLUSTERED = {name: {"clustering": name} for name in (REGION, PLUS, WINDOW)}
DECOUPLED = "Anchor-DETR-ENACT"


@dataclass(frozen=True)
class Method:
    """One way to attend.

    Attributes:
        module: holds the parameters.
        attend: features (B, N, d) -> (B, N, d).
    """

    module: nn.Module
    attend: Callable[[Tensor], Tensor]


def build_methods(args: Namespace, height: int, width: int, device: torch.device) -> dict[str, Method]:
    """The methods of ``args.detector``'s encoder, on one set of weights, by name."""
    build = _decoupled if args.detector == DECOUPLED else _multi_head
    methods = build(args, height, width, device)
    plain = methods[PLAIN]

    def math(features: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return plain.attend(features)

    return {name: methods.get(name, Method(plain.module, math)) for name in METHODS if name in {*methods, MATH}}


def _multi_head(args: Namespace, height: int, width: int, device: torch.device) -> dict[str, Method]:
    """Multi-head attention of DETR and Conditional DETR: query = key = features + positions, value = features."""
    positions = PositionEmbeddingSine(args.hidden_dim)(_no_padding(args, height, width, device)).flatten(1, 2)
    plain = nn.MultiheadAttention(args.hidden_dim, args.nheads, batch_first=True, device=device)
    how = {"smoothing_sigma": args.smoothing_sigma, "feature_size": (height, width)}
    options = CLUSTERED | {STEPS: CLUSTERED[PLUS] | {"cuts": "steps"}}
    clustered = {name: ClusteredAttention.from_attention(plain, **chosen, **how) for name, chosen in options.items()}
    prob = nn.Linear(args.hidden_dim, 1, device=device)
    for module in clustered.values():
        _share(prob, module.W_prob)

    def method(module: nn.Module) -> Method:
        def attend(features: Tensor) -> Tensor:
            key = features + positions
            return module(key, key, features, need_weights=False)[0]

        return Method(module, attend)

    modules = {PLAIN: plain, **clustered, LOOP: WindowLoop(plain, prob, args.smoothing_sigma)}
    return {name: method(module) for name, module in modules.items()}


def _decoupled(args: Namespace, height: int, width: int, device: torch.device) -> dict[str, Method]:
    """Row-column decoupled attention of Anchor DETR; the positions of rows and columns are sine embeddings."""
    mask = _no_padding(args, height, width, device)
    across, down = ((torch.arange(n, device=device) + 0.5) / n * 2 * pi for n in (width, height))
    row, col = sine_embedding(across, args.hidden_dim)[None, None], sine_embedding(down, args.hidden_dim)[None, :, None]
    plain = RCDA(args.hidden_dim, args.nheads).to(device)
    modules = {PLAIN: plain}
    for name, chosen in CLUSTERED.items():
        rcda = ClusteredRCDA(args.hidden_dim, args.nheads, smoothing_sigma=args.smoothing_sigma, **chosen).to(device)
        modules[name] = rcda
        rcda.in_proj_weight, rcda.in_proj_bias, rcda.out_proj = plain.in_proj_weight, plain.in_proj_bias, plain.out_proj
        _share(modules[REGION].W_prob, rcda.W_prob)

    def method(module: nn.Module) -> Method:
        def attend(features: Tensor) -> Tensor:
            src = features.unflatten(1, (height, width))
            key_row, key_col = src + row, src + col
            return module(key_row.flatten(1, 2), key_col.flatten(1, 2), key_row, key_col, src, mask)

        return Method(module, attend)

    return {name: method(module) for name, module in modules.items()}


def _no_padding(args: Namespace, height: int, width: int, device: torch.device) -> Tensor:
    return torch.zeros(args.batch_size, height, width, dtype=torch.bool, device=device)


def _share(source: nn.Linear, target: nn.Linear) -> None:
    target.weight, target.bias = source.weight, source.bias

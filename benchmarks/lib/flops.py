"""Multiply-adds and parameters of a detector, as papers state them."""

import re
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.lib.workload import attention_kernel

BACKBONE, SAMPLER, ENCODER, DECODER, HEADS = PARTS = ("backbone", "sampler", "encoder", "decoder", "heads")
MODULES = {  # part -> the names of its modules; what is in none of them counts for the encoder
    HEADS: r"(^|\.)(class|bbox)_embed(\.\d+)?$",
    DECODER: r"(^|\.)(decoder|decoder_layers\.\d+|reference_points|pos_trans|adapt_pos[12]d)$",
    BACKBONE: r"^backbone(\.0)?\.body$",
    SAMPLER: r"(^|\.)sampler$",
}
ENCODER_HEAD = re.compile(r"(class|bbox)_embed\.(\d+)\.")
FLOPS = 2  # that PyTorch counts for a multiply-add


def _bag_flops(weight: tuple[int, ...], indices: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Of ``embedding_bag``, which deformable attention samples with: each entry of a bag adds a row times its weight."""
    return FLOPS * prod(indices) * weight[1]


FORMULAS = {torch.ops.aten._embedding_bag: _bag_flops, torch.ops.aten._embedding_bag_forward_only: _bag_flops}


def count_multiply_adds(run: Callable[[], object], model: nn.Module) -> dict[str, int]:
    """Multiply-adds of the products that ``run()`` computes: matrix products, convolutions, and weighted sums of samples.

    Attention's two products count, whatever kernel computes them. The bilinear samples of deformable attention count four per
    number, as papers count ``grid_sample``. Norms, activations and sums do not count.

    Args:
        run: calls the model, without gradients.
        model: its parts tell where the products belong.

    Returns:
        Those of each part: ``heads`` are those of decoder layers and proposals, ``encoder`` is what else is between backbone and
        decoder.
    """
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    counts: Counter[str] = Counter(dict.fromkeys(PARTS, 0))
    handles = []

    def attribute(module: nn.Module, part: str) -> None:
        starts = []

        def enter(*_: object) -> None:
            starts.append((counter.get_total_flops(), counts.total()))

        def leave(*_: object) -> None:
            flops, known = starts.pop()
            counts[part] += counter.get_total_flops() - flops - (counts.total() - known)  # but those of parts within this one

        handles.extend((module.register_forward_pre_hook(enter), module.register_forward_hook(leave)))

    for name, module in model.named_modules():
        part = next((part for part, pattern in MODULES.items() if re.search(pattern, name)), None)
        if part:
            attribute(module, part)
    try:
        # The kernel that computes attention by two matrix products, which the counter knows on every device and in every version.
        with attention_kernel("math"), counter:
            run()
    finally:
        for handle in handles:
            handle.remove()
    counts[ENCODER] += counter.get_total_flops() - counts.total()
    return {part: counts[part] // FLOPS for part in PARTS}


@torch.inference_mode()
def multiply_adds(model: nn.Module, images: Tensor, mask: Tensor, data_dependent: bool) -> dict[str, int]:
    """As :func:`count_multiply_adds`, of an inference; on the CPU, wherever the model is.

    Args:
        model: a detector; it stays as it is.
        images, mask: (B, 3, H0, W0), (B, H0, W0).
        data_dependent: whether sizes depend on what the images show. Where not, only sizes are computed, in little time.
    """
    model = deepcopy(model).cpu().requires_grad_(False).eval()
    with nullcontext() if data_dependent else FakeTensorMode(allow_non_fake_inputs=True):
        return count_multiply_adds(lambda: model(images.cpu(), mask.cpu()), model)


def depends_on_data(args: Namespace) -> bool:
    """Whether the sizes inside a detector with these options depend on what the images show."""
    return any(getattr(args, name, "none") != "none" for name in ("clustering", "sampling"))


def three_parts(products: Mapping[str, float]) -> dict[str, float]:
    """Of the numbers of all parts: ``backbone``; ``encoder`` with PnP-DETR's sampler; ``decoder`` with the heads."""
    return {
        BACKBONE: products[BACKBONE],
        ENCODER: products[SAMPLER] + products[ENCODER],
        DECODER: products[DECODER] + products[HEADS],
    }


def count_parameters(model: nn.Module, args: Namespace) -> dict[str, int]:
    """``all``; ``trainable``, without frozen stages; and of these ``detecting``, without the heads behind encoder layers.

    Those heads are for a loss of training alone. Their indices follow those of decoder layers and proposals.
    """
    first = args.dec_layers + getattr(args, "two_stage", False) if getattr(args, "use_enc_aux_loss", False) else None
    counts = dict.fromkeys(("all", "trainable", "detecting"), 0)
    for name, parameter in model.named_parameters():
        head = ENCODER_HEAD.match(name)
        auxiliary = first is not None and head is not None and int(head[2]) >= first
        counts["all"] += parameter.numel()
        if parameter.requires_grad:
            counts["trainable"] += parameter.numel()
            counts["detecting"] += 0 if auxiliary else parameter.numel()
    return counts

"""The same model, computed faster: memory format, compilation, and the precision of matrix products on a GPU."""

import re
from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import nn

from ..errors import UserError
from .backbone import Backbone
from .model import DetectionModel


def compile_model(model: nn.Module, parts: Sequence[str], device: torch.device, backend: str = "inductor") -> None:
    """Compiles some modules of a model, for images of any size; parameters keep their names.

    Args:
        parts: regular expressions of the names of these modules.
        device: where the model will run.
        backend: of ``torch.compile``.

    Raises:
        UserError: this machine cannot compile.
        ValueError: no module has such a name.
    """
    try:
        torch.compile(torch.sin, backend=backend)(torch.zeros(8, device=device))
    except Exception as error:  # as many kinds as there are parts of a compiler that may be missing
        needed = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler"
        # PyTorch says on the first line which backend failed, and why on the next.
        reason = next((line for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")), error)
        raise UserError(f"torch.compile does not work here ({reason}): install {needed}, or leave out --compile") from error
    for part in parts:
        found = [module for name, module in model.named_modules() if re.fullmatch(part, name)]
        if not found:
            raise ValueError(f"nothing to compile: no module is called {part}")
        for module in found:
            module.compile(backend=backend, dynamic=True)


def speed_up(model: DetectionModel, compiled: Sequence[str], args: Namespace, device: torch.device) -> DetectionModel:
    """The model as ``--channels_last`` and ``--compile`` want it, changed in place; ``compiled`` as in :func:`compile_model`, of
    the detector without its mask head.
    """
    if args.channels_last:
        for module in model.modules():
            if isinstance(module, Backbone):
                module.use_channels_last()
    if args.compile:
        compile_model(model.detector, compiled, device)
    return model


def set_tf32(allowed: bool) -> None:
    """Whether GPUs may round the inputs of float32 matrix products and convolutions to TF32, 10 bits of mantissa."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed

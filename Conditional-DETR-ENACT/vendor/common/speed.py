"""The same model, computed faster: memory format and compilation."""

import re
from argparse import Namespace

import torch
from torch import nn

from .backbone import Backbone
from .errors import UserError

DECODER_LAYER = re.compile(r"decoder[._]layers\.\d+$")


def use_channels_last(model: nn.Module) -> None:
    """Lays the backbone's convolutions out with the channels innermost; they convert the images and hand this format on."""
    for module in model.modules():
        if isinstance(module, Backbone):
            module.to(memory_format=torch.channels_last)


def compile_model(model: nn.Module, device: torch.device, backend: str = "inductor") -> None:
    """Compiles the backbone and the decoder layers, for images of any size; parameters keep their names.

    The encoder is left alone: the number of clusters, which sets the shapes of all that follows, is read in every layer.

    Args:
        model: its decoder layers are the modules ``decoder.layers.0`` or ``decoder_layers.0``, and so on, inside whatever else.
        device: where it will run.
        backend: of ``torch.compile``.

    Raises:
        UserError: this machine cannot compile.
    """
    try:
        torch.compile(torch.sin, backend=backend)(torch.zeros(8, device=device))
    except Exception as error:  # as many kinds as there are parts of a compiler that may be missing
        needed = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler"
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"torch.compile does not work here ({reason}): install {needed}, or leave out --compile") from error
    for name, module in model.named_modules():
        if isinstance(module, Backbone):
            module.body.compile(backend=backend, dynamic=True)
        elif DECODER_LAYER.search(name):
            module.compile(backend=backend, dynamic=True)


def speed_up(model: nn.Module, args: Namespace, device: torch.device) -> nn.Module:
    """The model as ``--channels_last`` and ``--compile`` want it, changed in place."""
    if args.channels_last:
        use_channels_last(model)
    if args.compile:
        compile_model(model, device)
    return model

"""One adapter for each library whose attention :func:`enact.patch` clusters.

An adapter is a module with three functions:

- ``is_attention(module)``: whether it is a self-attention over pixels that the adapter knows;
- ``prefix_of(attention, ancestors)``: how many tokens before the pixels, such as class and register tokens, its host has; the
  ancestors are the modules that it is inside of, the innermost first;
- ``cluster(attention, prefix, options)``: the clustered attention that takes its place: another module, or itself, changed. The
  options are those of :class:`enact.EntropyClustering`. ValueError where it cannot be clustered.

It is imported only for a model that has modules of its library, so that ``enact`` needs torch alone.
"""

from importlib import import_module
from types import ModuleType

from torch import nn

from . import torch

LIBRARIES = ("timm", "transformers")


def adapters_of(model: nn.Module) -> list[ModuleType]:
    """The adapters for a model; torch's, the only one that may refuse an attention, is the first.

    Raises:
        ValueError: a library is older than its adapter.
    """
    packages = {base.__module__.partition(".")[0] for kind in {type(m) for m in model.modules()} for base in kind.__mro__}
    adapters = [torch]
    for name in LIBRARIES:
        if name in packages:
            try:
                adapters.append(import_module(f".{name}", __name__))
            except ImportError as error:
                raise ValueError(f"this version of {name} is too old to be patched ({error}): pip install -U {name}") from error
    return adapters

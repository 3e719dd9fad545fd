"""Counts what would make the host wait for a GPU, on a machine that has none."""

from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose result the host reads, or whose result's shape depends on values.
OPERATORS = {
    *("_local_scalar_dense", "equal", "nonzero", "nonzero_numpy", "masked_select", "bincount", "repeat_interleave"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# Reads that reach no operator on a CPU.
READS = {Tensor.tolist, Tensor.cpu}
# With a device they copy from the host's memory, and wait unless they are told not to.
COPIES = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.to}
NUMBERS = {Tensor.new_tensor, Tensor.__setitem__}  # the host's, which they copy, too: the second to places that tensors name


def on_host(*values: Any) -> list[Tensor]:
    """The tensors among the values, of any nesting, that lie in the host's memory; all others count as the device's."""
    return [x for x in tree_leaves(values) if isinstance(x, Tensor) and getattr(x, "on_host", False)]


def put_on_host(*values: Any) -> None:
    """Says that the tensors among the values, of any nesting, lie in the host's memory."""
    for x in tree_leaves(values):
        if isinstance(x, Tensor):
            x.on_host = True


class Synchronisations(ExitStack):
    """While the context lasts, counts by name all that would wait for a GPU if the model and what it computes were on one.

    In the host's memory are the tensors that :func:`put_on_host` named, those that are made without a device or read from it, and
    what is computed from them alone.
    """

    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()

    def __enter__(self) -> "Synchronisations":
        super().__enter__()
        self.enter_context(_Operators(self.found))
        self.enter_context(_Calls(self.found))
        return self


class _Operators(TorchDispatchMode):
    """Also what autograd calls."""

    def __init__(self, found: Counter[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        name = func.overloadpacket.__name__
        if not (args and on_host(args[0])):
            masks = name in INDEXING and [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
            if masks or name in OPERATORS:
                self.found[f"{name} by a mask" if masks else name] += 1
        return func(*args, **kwargs or {})


class _Calls(TorchFunctionMode):
    """What only Python sees: on a CPU, a copy to the device is none."""

    def __init__(self, found: Counter[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__":  # attributes, such as .shape and .device
            return out
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        host = on_host(tensors)
        named = any(isinstance(x, (str, torch.device)) for x in (*args[1:], kwargs.get("device")))
        if func in COPIES and named:
            waits, stays = len(host) == len(tensors) and not kwargs.get("non_blocking"), False
            out = out.detach() if host else out  # on a CPU the copy is the tensor itself, which stays where it is
        elif func in READS:
            waits, stays = not host, True
        elif func in NUMBERS:
            copied = not isinstance(args[-1], Tensor) and (func is Tensor.new_tensor or len(tensors) > 1)
            waits, stays = copied and not on_host(args[0]), bool(on_host(args[0]))
        else:  # a number of the host may meet tensors of the device, an array has to be copied
            waits, stays = len(host) < len(tensors) and any(x.dim() for x in host), len(host) == len(tensors) and not named
        self.found[func.__name__ if waits else ""] += waits
        if stays:
            put_on_host(out)
        return out

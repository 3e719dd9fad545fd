"""What autocast does on a GPU, on a machine that has none."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# Of the operators that CUDA's autocast computes in float32, those that CPU's leaves in 16 bits.
FLOAT32 = {
    *("layer_norm", "group_norm", "softmax", "log_softmax", "softplus", "sum", "prod", "cumsum", "cumprod", "norm", "vector_norm"),
    *("exp", "expm1", "log", "log2", "log10", "log1p", "pow", "__pow__", "__rpow__", "rsqrt", "reciprocal", "dist", "cdist"),
    *("l1_loss", "mse_loss", "nll_loss", "cross_entropy", "renorm"),
}


class CudaAutocast(TorchFunctionMode):
    """Inside ``torch.autocast("cpu", ...)``, gives results the types that they would have on a GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_single, (args, kwargs))
        return func(*args, **kwargs)


def _single(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x

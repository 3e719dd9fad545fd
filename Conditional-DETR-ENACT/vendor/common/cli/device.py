"""Where a run computes, in which precision, and beside which other processes."""

from argparse import Namespace

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ..errors import UserError


def chosen_device(args: Namespace) -> torch.device:
    """``--device``, or else a GPU where there is one; UserError where the chosen one is missing."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but no CUDA device is available: pass --device cpu")
    return torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def build_accelerator(args: Namespace) -> Accelerator:
    """Device, precision and processes."""
    on_cpu = chosen_device(args).type == "cpu"
    if on_cpu and args.amp == "fp16":
        raise UserError("--amp fp16 needs a GPU: pass --amp bf16 or no")
    AcceleratorState._reset_state()  # a process may hold several runs, of different precision
    return Accelerator(cpu=on_cpu, mixed_precision=args.amp)

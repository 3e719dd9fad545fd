"""Checkpoints: written whole, read without running code from the file, and checked before anything is built from them."""

import argparse
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, TypeAdapter, with_config
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from ..errors import UserError, quoted
from .downloads import locate
from .outputs import whole_file
from .schema import OPEN, CategoryId, Epoch, Whole, conform

MOST_CLASSES = 2**20
COUNTERS = ("total_ops", "total_params")
# Under the names that a path has in files of Python up to 3.12 and from 3.13 on, on any system.
PATHS = [(PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")]


def _weights(value: Mapping) -> Mapping:
    for name, weight in value.items():
        if not isinstance(name, str):
            raise ValueError(f"has the key {quoted(repr(name))}, which is no name of a weight")
        if not isinstance(weight, Tensor):
            raise ValueError(f"holds a {type(weight).__name__} as '{quoted(name)}', which should be a tensor")
        if problem := _unusable(weight):
            raise ValueError(f"holds {problem} as '{quoted(name)}', which should be an ordinary tensor of numbers")
    return value


def _different(ids: list[int]) -> list[int]:
    if len({*ids}) < len(ids):
        raise ValueError("holds an id twice")
    return ids


def _unusable(weight: Tensor) -> str:
    """Why a tensor cannot be a weight; "" where it can."""
    if weight.layout != torch.strided or weight.is_quantized or weight.is_meta or weight.is_nested:
        return f"a tensor of the kind {weight.layout if not weight.is_meta else 'meta'}"
    if weight.is_complex():
        return "complex numbers"
    if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
        return f"{weight.numel():,} numbers of which the file stores fewer"  # it would need memory that the file does not suggest
    if weight.isnan().any():  # of a training that diverged, or a damaged file; infinite numbers may be masks
        return "NaN"
    return ""


@with_config(OPEN)
class Checkpoint(TypedDict):
    """What this repository reads of a checkpoint, its own or published."""

    model: Annotated[Any, AfterValidator(_weights)]
    args: NotRequired[dict[str, Any] | None]
    detector: NotRequired[Annotated[str, Field(strict=True, max_length=200)]]
    category_names: NotRequired[dict[CategoryId, str]]
    category_ids: NotRequired[Annotated[list[CategoryId], AfterValidator(_different)]]
    stuff: NotRequired[list[CategoryId]]
    num_classes: NotRequired[Annotated[int, Field(ge=1, le=MOST_CLASSES)]]


@with_config(OPEN)
class Continuation(TypedDict):
    """What a run that goes on needs beside the weights."""

    epoch: Epoch
    optimizer: dict[str, Any]
    lr_scheduler: dict[str, Any]
    random_states: list[dict[str, Tensor]]
    scaler: NotRequired[dict[str, Any] | None]
    log: NotRequired[dict[str, Any]]


@with_config(OPEN)
class EpochLog(TypedDict):
    """What is known of an epoch before it is in the log."""

    epoch: Whole
    train_loss: float
    train_seconds: NotRequired[float]
    train_images_per_second: NotRequired[float]
    train_share_waited: NotRequired[float]
    train_peak_memory: NotRequired[float]


CHECKPOINT, CONTINUATION, EPOCH_LOG = (TypeAdapter(kind) for kind in (Checkpoint, Continuation, EpochLog))


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes it so that ``path`` always holds a whole checkpoint, whenever the process is killed; UserError where it cannot."""
    with whole_file(path) as file:
        torch.save(checkpoint, file)


def load_checkpoint(source: str | Path) -> dict[str, Any]:
    """Reads a checkpoint: a dict with ``model`` and what else it was saved with; a bare state dict becomes ``{"model": ...}``.

    Published checkpoints keep their options as an ``argparse.Namespace``, which becomes a dict, and some have paths in it; no other
    class is allowed in the file. What a counter of operations left beside the weights of some is dropped.

    Raises:
        UserError: no such file, or not a checkpoint.
    """
    path = locate(str(source))
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *PATHS]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that is no checkpoint provokes in the unpickler
        raise UserError(f"{path} is not a checkpoint that PyTorch reads with weights_only=True: choose another") from error
    if isinstance(checkpoint, Mapping) and checkpoint and all(isinstance(v, Tensor) for v in checkpoint.values()):
        checkpoint = {"model": checkpoint}
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), Mapping):
        raise UserError(f"{path} is not a checkpoint: it holds no 'model' with weights")
    if isinstance(checkpoint.get("args"), argparse.Namespace):
        checkpoint["args"] = vars(checkpoint["args"])
    weights = checkpoint["model"].items()
    checkpoint["model"] = {k: v for k, v in weights if not (isinstance(k, str) and k.rpartition(".")[2] in COUNTERS)}
    return dict(conform(CHECKPOINT, checkpoint, path, "a checkpoint"))


def check_continuation(checkpoint: dict[str, Any], source: str) -> None:
    """UserError where a run cannot go on from a checkpoint, as from one of other software."""
    if not Continuation.__required_keys__ <= checkpoint.keys():
        raise UserError(f"{source} holds weights, but no run to continue: start from them with --finetune {source}")
    conform(CONTINUATION, checkpoint, source, "a checkpoint of a run")
    if checkpoint.get("log"):
        conform(EPOCH_LOG, checkpoint["log"], source, "a checkpoint of a run")

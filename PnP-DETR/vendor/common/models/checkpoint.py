"""Checkpoints: written atomically, read without running code from the file, from a path or an https URL."""

import argparse
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from ..errors import UserError


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes to a neighbour and renames, so that ``path`` always holds a whole checkpoint, whenever the process is killed."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"the checkpoint {path} cannot be written ({error}): free space or choose another --output_dir") from error
    finally:
        temporary.unlink(missing_ok=True)  # what an error or an interrupt left of it


def locate(source: str) -> Path:
    """The file of a checkpoint; one at an https URL is downloaded once, to torch hub's cache.

    A download that breaks off leaves nothing and is started anew by the next call. A hash in the file's name, as in
    ``detr-r50-e632da11.pth``, is checked.

    Raises:
        UserError: no such file, an unsafe or unreachable URL, or another hash.
    """
    if "://" not in source:
        if not Path(source).is_file():
            raise UserError(f"the checkpoint {source} does not exist: check the path")
        return Path(source)
    if not source.startswith("https://"):
        raise UserError(f"{source} is not an https URL: pass one, or the path of a file")
    name = Path(urlparse(source).path).name
    # Two sites may have files of one name.
    path = Path(torch.hub.get_dir(), "checkpoints", hashlib.sha256(source.encode()).hexdigest()[:8], name)
    if not path.exists():
        found = re.search(r"-([a-f0-9]{8,})\.", name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(source, str(path), found and found[1])
        except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors, another hash is a RuntimeError
            raise UserError(f"{source} could not be downloaded ({error}): check the URL and the network, or pass a file") from error
    return path


def load_checkpoint(source: str | Path) -> dict[str, Any]:
    """Reads a checkpoint: a dict with ``model`` and what else it was saved with; a bare state dict becomes ``{"model": ...}``.

    Published checkpoints keep their options as an ``argparse.Namespace``, the one class that is allowed in the file; it becomes a
    dict.

    Raises:
        UserError: no such file, or not a checkpoint.
    """
    path = locate(str(source))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that is no checkpoint provokes in the unpickler
        raise UserError(f"{path} is not a checkpoint that PyTorch reads with weights_only=True: choose another") from error
    if isinstance(checkpoint, Mapping) and checkpoint and all(isinstance(v, Tensor) for v in checkpoint.values()):
        checkpoint = {"model": checkpoint}
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), Mapping):
        raise UserError(f"{path} is not a checkpoint: it holds no 'model' with weights")
    if isinstance(checkpoint.get("args"), argparse.Namespace):
        checkpoint["args"] = vars(checkpoint["args"])
    return checkpoint


def load_model(model: nn.Module, state_dict: Mapping[str, Tensor], source: str | Path, may_be_new: Iterable[str] = ()) -> list[str]:
    """Loads the weights; layers keep their fresh ones where they are missing or of another shape, if their name contains one of
    ``may_be_new`` (a class head for other classes, the probability layers of a plain checkpoint).

    Returns:
        A line that says what was not loaded, where anything might have been left out.

    Raises:
        UserError: naming the keys that are missing, unknown or of another shape.
    """
    own = model.state_dict()
    problems = {
        "missing": own.keys() - state_dict.keys(),
        "unknown": state_dict.keys() - own.keys(),
        "different, and one and the same here": _torn(own, state_dict),
        "of another shape": {k for k in own.keys() & state_dict.keys() if own[k].shape != state_dict[k].shape},
    }
    new = sorted((problems["missing"] | problems["of another shape"]) & own.keys())
    wrong = {what: [k for k in keys if not any(part in k for part in may_be_new)] for what, keys in problems.items()}
    found = [f"{what}: {_listing(keys)}" for what, keys in wrong.items() if keys]
    if found:
        raise UserError(f"{source} is not a checkpoint of this detector with these options ({'; '.join(found)})")
    model.load_state_dict({k: v for k, v in state_dict.items() if k in own and k not in new}, strict=False)
    return [f"{source}: all weights loaded" + (f" but {_listing(new)}, which start anew" if new else "")] if may_be_new else []


def _torn(own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> set[str]:
    """Names that share a weight in ``own`` and hold different ones in ``state_dict``, of which the last would silently win."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(own[name].data_ptr(), name) for name in own.keys() & state_dict.keys() if own[name].numel()}
    return {name for name, other in names.items() if not torch.equal(state_dict[name], state_dict[other])}


def _listing(keys: Iterable[str], most: int = 10) -> str:
    keys = sorted(keys)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more

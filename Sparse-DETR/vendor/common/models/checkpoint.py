"""From the weights of a checkpoint to a model."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError


def load_model(
    model: nn.Module, state_dict: Mapping[str, Tensor], source: str | Path, may_be_new: Iterable[str] = (), whose: str = ""
) -> list[str]:
    """Loads the weights; layers keep their fresh ones where they are missing or of another shape, if their name contains one of
    ``may_be_new`` (a class head for other classes, the probability layers of a plain checkpoint).

    Args:
        whose: for messages, "one of X, and " where the file says that it is of another detector.

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
        raise UserError(f"{source} is {whose}not a checkpoint of this detector with these options ({'; '.join(found)})")
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

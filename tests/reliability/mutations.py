"""Damage to nested values, such as annotation files and checkpoints: seeded, and small enough to be read in a report."""

import copy
import math
import random
from typing import Any

import torch

TEXTS = ("", " ", "x", "4", "nan", "\x00", "\x1b[2J", "\ud800", "é" * 3, "y" * 5000, "../../etc", "None")
NUMBERS = (0, -1, 1, 2, 0.5, -0.0, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, 1e-308, math.inf, -math.inf, math.nan)


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def junk(rng: random.Random) -> Any:
    """A value that stands where another should."""
    kinds = (
        lambda: rng.choice(TEXTS),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice((None, True, False)),
        lambda: rng.choice(([], {}, [[]], [None], {"": None}, [0] * 50)),
        lambda: _deep(rng.choice((3, 200))),
    )
    return rng.choice(kinds)()


def junk_tensor(rng: random.Random, like: torch.Tensor) -> Any:
    """A tensor, or none, that stands where another should."""
    kinds = (
        lambda: junk(rng),
        lambda: torch.zeros(()),
        lambda: torch.zeros(0),
        lambda: torch.zeros(1).expand(10**9, *like.shape[1:]) if like.dim() < 3 else torch.zeros(1),
        lambda: like.new_zeros(tuple(rng.choice((0, 1, 3, n)) for n in like.shape)),
        lambda: torch.full_like(like, math.nan) if like.is_floating_point() else like + 1,
        lambda: like.to(torch.int8) if like.is_floating_point() else like.to(torch.complex64),
        lambda: like.double().to_sparse() if like.dim() else like,
        lambda: torch.empty(like.shape, device="meta"),
        lambda: torch.quantize_per_tensor(torch.zeros(like.shape), 0.1, 0, torch.qint8),
        lambda: like[None],
    )
    return rng.choice(kinds)()


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all entries below a nested value."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, inner in steps:
        found += [(*path, key), *places(inner, (*path, key))]
    return found


def mutate(value: Any, rng: random.Random) -> Any:
    """A copy with one to three damaged entries: replaced, removed, renamed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = places(value)
        if not found:
            return junk(rng)
        depth = rng.choice(sorted({len(path) for path in found}))  # what is deep is not hit more often because there is more of it
        *path, key = rng.choice([path for path in found if len(path) == depth])
        holder = value
        for step in path:
            holder = holder[step]
        _damage(holder, key, rng)
    return value


def _damage(holder: Any, key: Any, rng: random.Random) -> None:
    kind = rng.choice(("replace", "replace", "replace", "remove", "double", "rename"))
    if kind == "remove":
        del holder[key]
    elif kind == "double" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == "rename" and isinstance(holder, dict):
        holder[rng.choice(("", "x", 3))] = holder.pop(key)
    else:
        old = holder[key]
        holder[key] = junk_tensor(rng, old) if isinstance(old, torch.Tensor) else junk(rng)

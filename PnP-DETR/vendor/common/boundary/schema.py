"""Checks against a schema, by pydantic, that end with one sentence."""

from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import UserError, quoted

T = TypeVar("T")
LENGTHS = {"too_short": "at least", "too_long": "at most"}

# Unknown entries stay as they are.
OPEN = ConfigDict(extra="allow", arbitrary_types_allowed=True)
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what numpy's and pytorch's integers hold
CategoryId = Annotated[int, Field(ge=0, lt=2**31)]
Epoch = Annotated[int, Field(ge=-1, lt=2**31)]  # -1 before the first
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # a number, not a text that looks like one


def conform(adapter: TypeAdapter[T], value: Any, source: Any, kind: str) -> T:
    """The value, as the schema has it.

    Args:
        source: where the value comes from, for the message.
        kind: what it should be, such as "a COCO detection dataset".

    Raises:
        UserError: naming the place of the first entry that does not fit.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if first["type"] == "missing":
        *place, name = first["loc"]
        raise UserError(f"{source} is not {kind}: {_place(place) or 'it'} lacks '{quoted(name)}'")
    if first["type"] in LENGTHS:
        wanted = f"{LENGTHS[first['type']]} {first['ctx'].get('min_length', first['ctx'].get('max_length'))}"
        raise UserError(
            f"{source} is not {kind}: {_place(first['loc'])} has {first['ctx']['actual_length']} entries instead of {wanted}"
        )
    found = f" instead of {quoted(repr(first['input']))}" if not isinstance(first["input"], (dict, list)) else ""
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    raise UserError(f"{source} is not {kind}: {_place(first['loc']) or 'it'} {reason}{found}")


def _place(steps: Any) -> str:
    """As in Python: ``annotations[3].bbox[2]``."""
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{quoted(step)}" if text else quoted(step)
    return text

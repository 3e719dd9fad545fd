"""The training log of a run, ``log.txt``: one JSON object per line and epoch."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict

from ..errors import UserError
from .schema import OPEN, Epoch, conform

LONGEST = 10_000_000  # characters of a line


@with_config(OPEN)
class Record(TypedDict):
    """A line."""

    epoch: Epoch


RECORD = TypeAdapter(Record)


def read_log(path: Path) -> dict[int, dict[str, Any]]:
    """Epoch -> its record; of an epoch that appears twice, as after a resumed run, the last line counts.

    A last line that a killed run has not finished is left out.

    Raises:
        UserError: the file cannot be read, or a line is no JSON object with an epoch.
    """
    try:
        *lines, unfinished = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"the log {path} cannot be read ({error.strerror}): pass the log of a run") from error
    records = {}
    for number, line in enumerate(lines, start=1):
        record = _record(line, f"line {number} of the log {path}")
        records[record["epoch"]] = record
    with suppress(UserError):
        record = _record(unfinished, f"the last line of the log {path}")
        records[record["epoch"]] = record
    return records


def _record(line: bytes, source: str) -> dict[str, Any]:
    try:
        record = json.loads(line) if len(line) <= LONGEST else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{source} is no JSON object: remove it, or pass the log of a run")
    return conform(RECORD, record, source, "a record of an epoch")


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Adds a line, in place of one that a killed run has not finished; UserError where it cannot be written."""
    try:
        with open(path, "ab+") as file:
            file.seek(0)
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
            file.write(json.dumps(record).encode() + b"\n")
    except OSError as error:
        advice = "free space or choose another --output_dir"
        raise UserError(f"the log {path} cannot be written ({error.strerror}): {advice}") from error

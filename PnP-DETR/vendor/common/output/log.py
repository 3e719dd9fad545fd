"""The training log of a run, ``log.txt``: one JSON object per line and epoch."""

import json
import math
from pathlib import Path
from typing import Any

from ..errors import UserError


def read_log(path: Path) -> dict[float, dict[str, Any]]:
    """Epoch -> its record; of an epoch that appears twice, as after a resumed run, the last line counts.

    Raises:
        UserError: the file cannot be read, or a line is no JSON object with an epoch.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the log {path}: {error}.") from None
    records = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            known = math.isfinite(record["epoch"])
        except (KeyError, TypeError, ValueError):
            known = False
        if not known:
            raise UserError(f"The log {path} is broken: line {number} is no JSON object with an epoch.")
        records[record["epoch"]] = record
    return records

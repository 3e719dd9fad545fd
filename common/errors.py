"""Errors that the user can mend."""

from typing import Any

MOST_QUOTED, MOST_SAID = 200, 2000  # characters


class UserError(Exception):
    """Wrong input: one sentence that says what is wrong and what to do. Printed as it is; exit code 2."""

    def __str__(self) -> str:
        # A DataLoader raises a worker's error anew with the worker's traceback in front of the sentence.
        sentence = super().__str__().rsplit("UserError: ", 1)[-1].strip()
        return _cut(printable(sentence), MOST_SAID)


def quoted(value: Any) -> str:
    """What came from outside, as a message may quote it: on one line, and not too much of it."""
    return _cut(printable(str(value)), MOST_QUOTED)


def printable(text: str) -> str:
    """The same with control characters, and what no terminal can show, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"

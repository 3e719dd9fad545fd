"""Stopping a run by Ctrl-C or SIGTERM."""

import signal
import sys
from typing import Any

_received: list[str] = []


def install() -> None:
    """Makes SIGINT and SIGTERM raise KeyboardInterrupt; where it is lost, in a destructor, nothing is printed about it."""
    _received.clear()
    sys.unraisablehook = _report_all_but_interrupts
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def received() -> str:
    """What stopped the run, or "".

    The exception alone does not tell: one that is raised inside a destructor is lost, and a signal to the whole process group ends
    the data loader's workers too, which the loader may report first.
    """
    return f"stopped by {_received[0]}" if _received else ""


def stop_if_received() -> None:
    """Raises the KeyboardInterrupt that was lost."""
    if _received:
        raise KeyboardInterrupt(received())


def _report_all_but_interrupts(unraisable: Any) -> None:
    # An interrupt leaves objects half-made, whose destructors fail of what they lack, too.
    if not (_received or issubclass(unraisable.exc_type, KeyboardInterrupt)):
        sys.__unraisablehook__(unraisable)


def _interrupt(number: int, frame: Any) -> None:
    _received.append(signal.Signals(number).name)
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # by which the loader watches its workers
    raise KeyboardInterrupt(received())

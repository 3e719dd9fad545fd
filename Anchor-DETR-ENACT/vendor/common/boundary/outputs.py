"""What a run writes: folders, whole files, and one run at a time in a folder."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

HALF = ".enact-half-"  # what half-written files begin with
_held: set[int] = set()  # the locks of :func:`only_run_in`


def make_folder(folder: Path) -> None:
    """Creates a folder, if it is not there; UserError where it cannot be, or cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--output_dir {folder} cannot be written ({reason}): choose another folder") from error


def half_of(path: Path) -> Path:
    """A name beside that no file had before, of the same kind, for a file that is not whole yet."""
    return path.with_name(f"{HALF}{uuid.uuid4().hex}{path.suffix}")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is at ``path`` once it is written, and not before: whatever happens, ``path`` holds a whole file or the former.

    What is written has a name of its own until then, which no file had before, and is on the disk before it is renamed.

    Raises:
        UserError: it cannot be written.
    """
    half = half_of(path)
    try:
        with open(half, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        reason = getattr(error, "strerror", None) or error  # without the half-written file's name
        raise UserError(f"{path} cannot be written ({reason}): free space or choose another folder") from error
    finally:
        half.unlink(missing_ok=True)  # what an error or an interrupt left of it


def check_target(path: Path, option: str) -> None:
    """UserError where a file of the user would be lost, or there is no folder to write it to."""
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: the folder {path.parent} does not exist: make it or choose another")
    if path.exists() or path.is_symlink():
        raise UserError(f"{option} {path} exists already: choose another name or remove it")


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """While the context lasts, or until the process ends in whatever way, no other run may write to the folder.

    Raises:
        UserError: another does.
    """
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if descriptor is not None:
            _held.add(descriptor)
            _lock(descriptor, folder)
        for left in folder.glob(f"{HALF}*"):  # by runs that were killed
            left.unlink(missing_ok=True)
        yield
    finally:
        if descriptor is not None:
            _held.discard(descriptor)
            os.close(descriptor)


def _leave_to_the_parent() -> None:
    """In a forked process, such as one that loads data: it may live some seconds longer than a run that was killed."""
    while _held:
        os.close(_held.pop())


if fcntl:
    os.register_at_fork(after_in_child=_leave_to_the_parent)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another run writes to {folder} at this moment: wait for it or choose another --output_dir") from error
    except OSError:
        pass  # a file system without locks

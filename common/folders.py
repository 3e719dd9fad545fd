"""Folders that a run writes to."""

from pathlib import Path

from .errors import UserError


def make_folder(folder: Path) -> None:
    """Creates a folder, if it is not there; UserError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created ({error.strerror}): choose another --output_dir") from error

"""Files of the user's, at a path or an https URL."""

import hashlib
import http.client
import re
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch

from ..errors import UserError, quoted

TIMEOUT = 30  # seconds without an answer
HASH = re.compile(r"-([a-f0-9]{8,})\.")  # in the name of a checkpoint


def locate(source: str) -> Path:
    """The file of a checkpoint; one at an https URL is downloaded once, see :func:`download`.

    A hash in the name of a download, as in ``detr-r50-e632da11.pth``, is checked.

    Raises:
        UserError: no such file, an unsafe or unreachable URL, or another hash.
    """
    if not is_url(source):
        return _file(source)
    found = HASH.search(cached(source).name)
    return download(source, found and found[1])


def is_url(source: object) -> bool:
    """Whether a text is a URL, of whatever kind, and no path."""
    return isinstance(source, str) and "://" in source


def cached(url: str) -> Path:
    """Where the download of a URL is kept, in torch hub's cache; UserError where it is no https URL of a file."""
    name = _checked_name(url)
    # Two sites may have files of one name.
    return Path(torch.hub.get_dir(), "checkpoints", hashlib.sha256(url.encode()).hexdigest()[:8], name)


def download(url: str, expected_hash: str | None = None) -> Path:
    """The file at an https URL, which is downloaded once, to :func:`cached`. What breaks off leaves nothing and is started anew by
    the next call.

    Raises:
        UserError: an unsafe or unreachable URL, or another SHA-256 than one that begins with ``expected_hash``.
    """
    path = cached(url)
    if path.exists():
        return path
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), expected_hash)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:  # another hash is a RuntimeError
        reason = quoted(error) or type(error).__name__
        advice = "check the URL and the network, or pass a file"
        raise UserError(f"{quoted(url)} could not be downloaded ({reason}): {advice}") from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def _file(source: str) -> Path:
    try:
        if Path(source).is_file():
            return Path(source)
    except (OSError, ValueError):  # a name that is too long or holds NUL
        pass
    raise UserError(f"the checkpoint {quoted(source)} does not exist: check the path")


def _checked_name(source: str) -> str:
    """The name of the file at a URL; UserError where that is none."""
    if not source.startswith("https://"):
        raise UserError(f"{quoted(source)} is not an https URL: pass one, or the path of a file")
    try:
        parts = urlsplit(source)
        valid = bool(parts.hostname) and parts.port != 0 and source.isascii() and source.isprintable() and " " not in source
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"{quoted(source)} is not a valid URL: write unusual characters as %XX, and a port from 1 to 65535")
    name = Path(unquote(parts.path)).name
    if name in ("", "..") or not name.isprintable() or len(name) > 200:
        raise UserError(f"{quoted(source)} ends with no file name: pass the URL of a file")
    return name

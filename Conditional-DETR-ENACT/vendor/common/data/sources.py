"""What is given to predict on, as images and videos: files, folders, patterns, https URLs, and a camera."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..boundary.downloads import cached, download, is_url
from ..errors import UserError, quoted
from .images import SUFFIXES as IMAGE_SUFFIXES
from .images import is_image, read_image
from .videos import Video

SUFFIXES = IMAGE_SUFFIXES | {".gif", ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}
ADVICE = "pass images, videos, folders or https URLs to --predict"


@dataclass(frozen=True)
class Source:
    """An image, a video or a camera; nothing of it is read yet.

    Attributes:
        path: of the file; of a URL, where its download is kept; of a camera, what it is called.
        url: where it is downloaded from; "" without.
        camera: its index; None of a file.
    """

    path: Path
    url: str = ""
    camera: int | None = None

    def read(self) -> Image.Image | Video:
        """An image, RGB, or a video; which of them it is, its content tells. Of an animated GIF, its first image.

        Raises:
            UserError: it is neither, is damaged, or cannot be downloaded.
        """
        if self.camera is not None:
            return Video(self.camera)
        path = download(self.url) if self.url else self.path
        return read_image(path) if is_image(path) else Video(path)


def find_sources(given: Iterable[str | Path], left_out: Iterable[Path] = ()) -> list[Source]:
    """The files, URLs and cameras that are given, and the images and videos in folders and below, in their order, each once.

    A name of a file or folder goes before the same text as a pattern (``photos/**/*.jpg``) or as the index of a camera (``0``). In
    folders, names that begin with a dot are left out, and files that neither their suffix nor, of one without, their content shows
    to be an image or a video. ``**`` does not follow links, as in ``pathlib``.

    Args:
        left_out: folders such as those of the pictures of earlier runs, which are left out where they are below a given one.

    Raises:
        UserError: something given does not exist, or holds nothing to predict on; a camera is not alone.
    """
    given, left_out = list(map(str, given)), [folder.resolve() for folder in left_out]
    found: dict[str | Path, Source] = {}
    for text in given:
        if is_url(text):
            sources: Iterable[Source] = [Source(cached(text), url=text)]
        elif camera := _camera(text):
            if len(given) > 1:
                raise UserError(f"the camera {text} is watched until Ctrl-C: pass it to --predict alone")
            return [camera]
        else:
            sources = map(Source, _files(text, left_out))
        for source in sources:
            found.setdefault(source.url or source.path.resolve(), source)
    return list(found.values())


def picture_names(sources: Sequence[Source]) -> list[str]:
    """What the pictures of sources are called, without a suffix, no two alike: as the files; where several share a name, all as
    their paths below the folder that they have in common, downloads below their cache; and where that is not enough, with the
    suffixes of the files.
    """
    pairs = zip(sources, titles(sources))
    paths = [f"{source.path.parent.name}/{source.path.name}" if source.url else title for source, title in pairs]
    shorter = ([Path(path).stem for path in paths], [Path(path).with_suffix("").as_posix() for path in paths])
    return next((names for names in shorter if len({name.casefold() for name in names}) == len(names)), paths)


def titles(sources: Sequence[Source]) -> list[str]:
    """What sources are called, no two alike: files by their paths below the folder that they have in common, or by their URLs."""
    paths = [Path(os.path.abspath(source.path)) for source in sources]
    local = [path.parent for path, source in zip(paths, sources) if not source.url]
    common = os.path.commonpath(local) if local else ""
    return [source.url or path.relative_to(common).as_posix() for path, source in zip(paths, sources)]


def _camera(text: str) -> Source | None:
    """The camera of an index."""
    if not (text.isascii() and text.isdigit() and len(text) < 4) or os.path.lexists(text):
        return None
    return Source(Path(f"camera{int(text)}.mp4"), camera=int(text))


def _files(text: str, left_out: Sequence[Path]) -> list[Path]:
    """The files that a path or a pattern stands for; UserError where there are none."""
    path, verb = Path(text), "holds"
    try:
        text.encode()
        if path.is_dir():
            files = list(_below(path, left_out))
        elif path.is_file():
            files = [path]
        elif any(map(_is_pattern, path.parts)) and not path.exists():
            files, verb = list(_matches(path, left_out)), "matches"
        else:
            raise UserError(f"{quoted(text)} does not exist or is no file: {ADVICE}")
    except UnicodeEncodeError as error:
        raise UserError(f"{quoted(text)} has a name that is not UTF-8: rename it") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{quoted(text)} cannot be read ({quoted(error)}): {ADVICE}") from error
    if not files:
        raise UserError(f"{quoted(text)} {verb} no images and no videos: {ADVICE}")
    return files


def _is_pattern(part: str) -> bool:
    return any(c in part for c in "*?[")


def _matches(pattern: Path, left_out: Sequence[Path]) -> Iterator[Path]:
    """The files that match a pattern, and what is to be found in folders that do."""
    first = next(i for i, part in enumerate(pattern.parts) if _is_pattern(part))
    root, rest = Path(*pattern.parts[:first]), Path(*pattern.parts[first:])
    left_out = [folder for folder in left_out if not _is_inside(root, [folder])]
    dots = any(_is_hidden(part) for part in rest.parts)
    for path in sorted(root.glob(str(rest))):
        if _is_inside(path, left_out) or not dots and any(map(_is_hidden, path.relative_to(root).parts)):
            continue
        if path.is_dir():
            yield from _below(path, left_out)
        elif path.is_file():
            yield path


def _below(folder: Path, left_out: Sequence[Path]) -> Iterator[Path]:
    """The images and videos in a folder and in those below it, sorted folder by folder. Links are followed, and each folder is
    visited once, so that links in a circle end.
    """
    visited = set()
    for place, folders, files in os.walk(folder, onerror=_fail, followlinks=True):
        resolved = Path(place).resolve()
        if resolved in visited or resolved in left_out and place != str(folder):
            folders.clear()
            continue
        visited.add(resolved)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for path in (Path(place) / name for name in sorted(files) if not _is_hidden(name)):
            # A pipe would be waited for.
            if path.is_file() and (path.suffix.lower() in SUFFIXES or not path.suffix and is_image(path)):
                yield path


def _fail(error: OSError) -> None:
    raise error


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_inside(path: Path, folders: Sequence[Path]) -> bool:
    """Whether it is one of the folders or below one."""
    resolved = path.resolve()
    return any(folder in (resolved, *resolved.parents) for folder in folders)

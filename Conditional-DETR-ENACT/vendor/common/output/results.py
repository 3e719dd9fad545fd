"""What a model finds, in COCO's results format."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from ..boundary.outputs import whole_file
from ..evaluation.coco import coco_results
from ..evaluation.masks import run_lengths

IN_MEMORY = 2**24  # bytes; more, as of a long video, waits in a temporary file


class CocoResults:
    """Collects the detections of images that have no annotations, and writes them as a list that ``COCO.loadRes`` takes, with the
    dataset whose method that is.

    Args:
        folder: where they are written.
        names: category id -> name. An id without one is its own name.

    Attributes:
        count: of the images.
    """

    def __init__(self, folder: Path, names: Mapping[int, str]):
        self.folder, self.names, self.count = folder, dict(names), 0
        self._images, self._results = _Rows(), _Rows()

    def add(self, file_name: str, size: tuple[int, int], found: dict[str, Any]) -> None:
        """Those of another image; ``size``: its width and height, ``found``: as ``Predictor`` returns it."""
        self.count += 1
        self._images.add({"id": self.count, "file_name": file_name, "width": size[0], "height": size[1]})
        rows = coco_results([self.count], [found])
        if "masks" in found:
            rows = [row | {"segmentation": mask} for row, mask in zip(rows, run_lengths(found["masks"]))]
        for row in rows:
            self._results.add(row)
            self.names.setdefault(row["category_id"], str(row["category_id"]))

    def write(self) -> None:
        """Writes ``predictions.json``, the detections, and ``images.json``, the images and categories; UserError where it fails."""
        with whole_file(self.folder / "predictions.json") as file:
            self._results.copy(file)
        categories = [{"id": c, "name": name} for c, name in sorted(self.names.items())]
        with whole_file(self.folder / "images.json") as file:
            file.write(b'{"images": ')
            self._images.copy(file)
            file.write(f', "annotations": [], "categories": {json.dumps(categories)}}}'.encode())


class _Rows:
    """A JSON list that grows."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=IN_MEMORY)

    def add(self, row: dict[str, Any]) -> None:
        self._file.write(b",\n" if self._file.tell() else b"")
        self._file.write(json.dumps(row).encode())

    def copy(self, file: Any) -> None:
        file.write(b"[")
        self._file.seek(0)
        shutil.copyfileobj(self._file, file)
        file.write(b"]")

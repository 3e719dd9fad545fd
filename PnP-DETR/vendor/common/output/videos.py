"""Writing videos."""

import os
from pathlib import Path

import cv2
import numpy as np

from ..boundary.outputs import half_of
from ..errors import UserError

CODEC = "mp4v"  # MPEG-4 part 2: of those in every build of OpenCV, the one that every player knows
MOST_SIDE = 8190  # px, of this codec
SUFFIX = ".mp4"


class VideoFile:
    """A video that is at its path once it is closed, with the frames that it has got until then, and not before. Without a frame
    there is none.

    Args:
        path: ends with ``SUFFIX``.
        fps: frames per second.
    """

    def __init__(self, path: Path, fps: float):
        self.path, self.fps, self.written = path, fps, 0
        self._half = half_of(path)
        self._writer: cv2.VideoWriter | None = None
        self._last: np.ndarray | None = None
        self._size = 0, 0

    def write(self, frame: np.ndarray, number: int) -> None:
        """Adds a frame (H, W, 3) uint8 RGB at its place in the video; the one before is shown until then.

        All have the size of the first. One whose sides are too long for the codec is scaled, and an odd side loses a pixel.

        Raises:
            UserError: the video cannot be written.
        """
        if self._writer is None:
            height, width = frame.shape[:2]
            scale = min(1, MOST_SIDE / max(height, width))
            self._size = int(scale * width), int(scale * height)
            self._writer = cv2.VideoWriter(
                str(self._half.absolute()), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*CODEC), self.fps, self._size
            )
            if not self._writer.isOpened():
                self._fail()
        if (frame.shape[1], frame.shape[0]) != self._size:
            frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA)
        while self._last is not None and self.written < number:
            self._add(self._last)
        self._last = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        self._add(self._last)

    def _add(self, frame: np.ndarray) -> None:
        self._writer.write(frame)
        self.written += 1

    def close(self) -> None:
        """Ends the video, after an interrupt or an error, too; UserError where it is not whole, as on a full disk."""
        if self._writer is None:
            return
        self._writer.release()  # which says nothing where it fails
        self._writer = None
        check = cv2.VideoCapture(str(self._half.absolute()), cv2.CAP_FFMPEG)
        whole = check.isOpened() and check.get(cv2.CAP_PROP_FRAME_COUNT) == self.written
        check.release()
        try:
            if not whole:
                self._fail()
            os.replace(self._half, self.path)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error}): choose another --output_dir") from error
        finally:
            self._half.unlink(missing_ok=True)

    def _fail(self) -> None:
        raise UserError(f"the video {self.path} cannot be written: free space or choose another --output_dir")

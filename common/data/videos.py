"""Videos and cameras, as the frames that they show one after the other."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
from PIL import Image

from ..errors import UserError

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read with the first video: what is wrong is told here, in one sentence
_set_log_level = getattr(cv2.utils, "logging", cv2).setLogLevel  # of OpenCV 5, or of 4
SILENT = 0

USUAL_FPS = 25.0  # of a source that does not tell its own
MOST_FPS = 1000
HEAD = 4096  # bytes, in which every container of videos has a zero, and no text
MISSING = 0.1  # share of the frames; containers only estimate their number, by a sound that may go on for longer


class Video:
    """The frames of a video file, or of a camera until it stops, which are read when they are asked for. It is iterated over once.

    Args:
        source: a file, or the index of a camera.

    Attributes:
        fps: frames per second.
        count: about how many frames a file has; None of a camera, or where a file does not tell.
        problem: once it is read, why it ended before its end, as a sentence; "" where it did not.

    Raises:
        UserError: not a video, or no such camera.
    """

    def __init__(self, source: Path | int):
        self.source, self.problem = source, ""
        level = _set_log_level(SILENT)
        try:
            self._capture = self._open()
        finally:
            _set_log_level(level)
        self._first = self._capture.read()[1] if self._capture is not None else None
        if self._first is None:
            if isinstance(source, int):
                raise UserError(f"the camera {source} cannot be opened: check that it is plugged in and not in use")
            raise UserError(f"{source} is neither an image nor a video that can be read: repair it or leave it out")
        fps, count = (self._capture.get(name) for name in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.fps: float = fps if 0 < fps <= MOST_FPS else USUAL_FPS
        self.count: int | None = int(count) if count > 0 and not isinstance(source, int) else None

    def _open(self) -> cv2.VideoCapture | None:
        if isinstance(self.source, int):
            camera = cv2.VideoCapture(self.source)
            camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # what is seen now, and not what was seen while the last frame was drawn
            return camera
        try:
            with open(self.source, "rb") as file:
                if b"\0" not in file.read(HEAD):  # FFmpeg would show a text, and follow a playlist
                    return None
        except OSError as error:
            raise UserError(f"{self.source} cannot be read ({error.strerror}): repair it or leave it out") from error
        return cv2.VideoCapture(os.path.abspath(self.source), cv2.CAP_FFMPEG)  # absolute, as FFmpeg takes a: for a protocol

    def __iter__(self) -> Iterator[tuple[int, Image.Image]]:
        """The number of each frame, from 0, and itself, RGB. A camera's are numbered by the time at which they are read, so that
        numbers are left out where frames are asked for more slowly than the camera takes them.
        """
        frame, number, read, start = self._first, 0, 0, time.monotonic()
        while frame is not None:
            yield number, Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            frame, read, number = self._capture.read()[1], read + 1, number + 1
            if isinstance(self.source, int):
                number = max(number, round((time.monotonic() - start) * self.fps))
        if isinstance(self.source, int):
            self.problem = f"the camera {self.source} has stopped after {read} frames: check that it is still plugged in"
        elif self.count and read < (1 - MISSING) * self.count:
            self.problem = f"{self.source} breaks off after {read} of about {self.count} frames: repair it or leave it out"

    def close(self) -> None:
        """Releases the file or the camera."""
        self._capture.release()

"""Videos of a few frames, each of one grey, and a camera that shows such."""

from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT, FPS = 64, 48, 12.5


def grey(number: int) -> np.ndarray:
    """A frame; the greys of neighbours are far enough apart for a codec that loses some."""
    return np.full((HEIGHT, WIDTH, 3), 20 + 20 * (number % 10), dtype=np.uint8)


def write_video(path: Path, frames: int, codec: str = "mp4v") -> Path:
    """A video, whose name must end as its container does."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), FPS, (WIDTH, HEIGHT))
    for number in range(frames):
        writer.write(grey(number))
    writer.release()
    return path


def read_video(path: Path) -> tuple[float, list[np.ndarray]]:
    """Frames per second, and the frames."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (frame := capture.read()[1]) is not None:
        frames.append(frame)
    return capture.get(cv2.CAP_PROP_FPS), frames


class Camera:
    """Stands in for ``cv2.VideoCapture``: index 0 shows ``frames`` frames, then calls ``at_end``; there is no other camera."""

    frames, at_end = 3, staticmethod(lambda: None)

    def __init__(self, index: int):
        self.opened, self.read_frames = index == 0, 0

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return self.opened

    def get(self, name: int) -> float:
        return {cv2.CAP_PROP_FPS: FPS}.get(name, -1.0)

    def set(self, name: int, value: float) -> bool:
        return False

    def read(self) -> tuple[bool, np.ndarray | None]:
        if not self.opened or self.read_frames == self.frames:
            if self.opened:
                self.at_end()
            return False, None
        self.read_frames += 1
        return True, grey(self.read_frames - 1)

    def release(self) -> None:
        self.opened = False

"""Videos that are written: whole, at their speed, or not at all."""

import resource

import numpy as np
import pytest

from common.errors import UserError
from common.output.videos import MOST_SIDE, VideoFile
from tests.small_videos import FPS, HEIGHT, WIDTH, grey, read_video


def test_a_video_shows_every_frame_at_its_time(tmp_path):
    """Where numbers are left out, the frame before stays; there is no file before the end, and none of no frames."""
    path = tmp_path / "a.mp4"
    file, empty = VideoFile(path, FPS), VideoFile(tmp_path / "b.mp4", FPS)
    for number in (0, 1, 4):
        file.write(grey(number), number)
    assert not path.exists()
    file.close()
    empty.close()
    fps, frames = read_video(path)
    assert fps == FPS and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert [round(float(frame.mean()) / 20) - 1 for frame in frames] == [0, 1, 1, 1, 4]


def test_frames_of_any_size(tmp_path):
    """Too wide for the codec: scaled; another size than the first: as the first."""
    file = VideoFile(tmp_path / "a.mp4", FPS)
    file.write(np.zeros((20, 2 * MOST_SIDE, 3), np.uint8), 0)
    file.write(np.zeros((HEIGHT, WIDTH, 3), np.uint8), 1)
    file.close()
    assert [frame.shape for frame in read_video(tmp_path / "a.mp4")[1]] == [(10, MOST_SIDE, 3)] * 2


def test_a_video_that_is_not_whole_is_said(tmp_path):
    """A folder that has gone, and a disk that is full, of which OpenCV says nothing."""
    with pytest.raises(UserError, match="cannot be written"):
        VideoFile(tmp_path / "nowhere" / "a.mp4", FPS).write(grey(0), 0)
    noise = np.random.default_rng(0).integers(0, 256, (4, 480, 640, 3), dtype=np.uint8)
    file = VideoFile(tmp_path / "a.mp4", FPS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for number, frame in enumerate(noise):
            file.write(frame, number)
        with pytest.raises(UserError, match=r"a\.mp4 cannot be written: free space"):
            file.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())

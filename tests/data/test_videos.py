"""Frames of videos and cameras."""

import time

import numpy as np

from common.data.videos import Video
from tests.reliability.said import said_by
from tests.small_videos import FPS, Camera, grey, write_video


def test_frames_come_in_order(tmp_path):
    """As RGB images, with the video's own speed."""
    video = Video(write_video(tmp_path / "film.mp4", 7))
    assert (video.fps, video.count) == (FPS, 7)
    frames = [(number, np.asarray(frame)) for number, frame in video]
    assert [number for number, _ in frames] == [*range(7)] and not video.problem
    assert all(np.abs(frame.astype(int) - grey(number)).mean() < 5 for number, frame in frames)


def test_a_video_that_breaks_off_is_read_until_there(tmp_path):
    """And says so at its end; one whose index is missing is none."""
    whole = write_video(tmp_path / "film.avi", 40, "MJPG").read_bytes()
    cut, no_index = tmp_path / "cut.avi", tmp_path / "no_index.mp4"
    cut.write_bytes(whole[: len(whole) // 2])
    no_index.write_bytes(write_video(tmp_path / "film.mp4", 40).read_bytes()[:2000])
    video = Video(cut)
    assert 5 < len(list(video)) < 30
    assert video.problem.startswith(f"{cut} breaks off after ") and "of about 40 frames" in video.problem
    assert "neither an image nor a video" in said_by(Video, no_index)


def test_a_camera_is_shown_as_fast_as_it_was(monkeypatch):
    """A frame's number is that of its time, however long the ones before were looked at; a camera that stops says so."""
    monkeypatch.setattr("cv2.VideoCapture", Camera)
    now = iter((0.0, 0.01, 2.0, 9.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    camera = Video(0)
    assert [number for number, _ in camera] == [0, 1, round(2 * FPS)] and camera.count is None
    assert camera.problem.startswith("the camera 0 has stopped after 3 frames")
    assert said_by(Video, 1).startswith("the camera 1 cannot be opened")

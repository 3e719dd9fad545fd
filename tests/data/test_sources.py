"""What is given to predict on: which images and videos it stands for, and what they are called."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.sources import Source, find_sources, picture_names, titles
from common.data.videos import Video
from common.predictor import as_image
from tests.reliability.said import said_by
from tests.small_videos import write_video


def write_image(path: Path, format: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), 99, np.uint8)).save(path, format)
    return path


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """The working folder: images and a video in folders, and among them what is neither."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.JPG", "a.png", "sub/a.png", "sub/deep/c.jpg", ".hidden/x.png", "._a.png"):
        write_image(tmp_path / "photos" / name)
    write_image(tmp_path / "photos" / "bare", "PNG")
    write_video(tmp_path / "photos" / "film.avi", 3, "MJPG")
    for name in ("notes.txt", "README", "labels.json"):
        (tmp_path / "photos" / name).write_text("text\n" * 100)
    return Path("photos")


def found(*given, **options) -> list[str]:
    return [source.path.as_posix() for source in find_sources(given, **options)]


BELOW = ["photos/a.png", "photos/b.JPG", "photos/bare", "photos/film.avi", "photos/sub/a.png", "photos/sub/deep/c.jpg"]


def test_folders_are_searched_below(photos):
    """All images and videos, sorted, each once; hidden files and other ones are left out."""
    assert found(photos) == BELOW
    assert found("photos/b.JPG", "./photos/sub/../a.png", photos) == ["photos/b.JPG", "photos/sub/../a.png", *BELOW[2:]]


def test_links_in_circles_end(photos):
    """Two of them in a folder would lead to 2^40 paths."""
    for name in ("back", "again"):
        (photos / "sub" / name).symlink_to(photos.absolute())
        (photos / "sub" / "deep" / name).symlink_to(photos.absolute() / "sub")
    assert found(photos) == BELOW
    assert found("photos/**/*.png") == ["photos/a.png", "photos/sub/a.png"]
    elsewhere = write_image(Path("elsewhere/e.png"))
    (photos / "sub" / "link").symlink_to(elsewhere.parent.absolute())
    assert found(photos)[-1] == "photos/sub/link/e.png"


def test_patterns_that_the_shell_left(photos, tmp_path):
    """At any depth, relative and absolute; folders that match are searched; a file of that very name goes first."""
    assert found("photos/*.png") == ["photos/a.png"]
    assert found(str(tmp_path / "photos" / "**" / "[ac].*"))[1:] == [f"{tmp_path}/{name}" for name in (BELOW[4], BELOW[5])]
    assert found("*/su?") == BELOW[4:]
    write_image(Path("photos/[1].png"))
    assert found("photos/[1].png") == ["photos/[1].png"]
    assert "matches no images and no videos" in said_by(find_sources, ["photos/**/*.bmp"])


def test_earlier_pictures_are_left_out_of_a_search(photos):
    """Or each prediction on a folder would find those of the one before; given themselves, they are taken."""
    out = Path("photos/out")
    write_image(out / "p.png")
    assert found("photos", "photos/**/*.png", left_out=[out]) == BELOW
    assert found(out, left_out=[out]) == found("photos/out/*", left_out=[out]) == ["photos/out/p.png"]


def test_content_tells_what_a_file_is(photos, tmp_path):
    """Not its name; what is neither an image nor a video is said, text that FFmpeg would show as a video, too."""
    image, video = shutil.copy(photos / "a.png", "image.mp4"), shutil.copy(photos / "film.avi", "video.png")
    [first, second] = find_sources([image, video])
    assert first.read().size == (6, 4) and isinstance(second.read(), Video)
    for name in ("notes.txt", "labels.json"):
        [source] = find_sources([photos / name])
        assert f"{name} is neither an image nor a video" in said_by(source.read)
    (tmp_path / "cut.png").write_bytes((photos / "a.png").read_bytes()[:50])
    assert "is not a readable image" in said_by(Source(tmp_path / "cut.png").read)


def test_a_camera_is_a_number_that_no_file_has(photos):
    """It is alone, as it never ends."""
    assert find_sources(["0"]) == [Source(Path("camera0.mp4"), camera=0)]
    assert "pass it to --predict alone" in said_by(find_sources, ["photos", "0"])
    write_image(Path("0/x.png"))
    assert found("0") == ["0/x.png"]


def test_urls_are_downloaded_once(photos, tmp_path, monkeypatch):
    """When they are read, to the cache of the checkpoints, and from Python, too; what looks like a hash in a name is none."""
    asked = []

    def answer(url: str, path: str, expected_hash: str | None) -> None:
        asked.append((url, expected_hash))
        shutil.copy(photos / "a.png", path)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", answer)
    url = "https://x.org/photo-1506744038136.jpg?w=8"
    [source] = find_sources([url, url])
    assert asked == [] and source.read().size == as_image(url).size == (6, 4)
    assert asked == [(url, None)] and tmp_path in source.path.parents
    for refused in ("http://x.org/a.jpg", "rtsp://x.org/a"):
        assert "is not an https URL" in said_by(find_sources, [refused]) == said_by(as_image, refused)
    assert "ends with no file name" in said_by(find_sources, ["https://x.org/a/.."])


def test_names_tell_all_sources_apart(photos):
    """Files of several folders and kinds, and downloads of one name: no two outputs are one."""
    assert picture_names(find_sources([photos / "sub"])) == ["a", "c"]
    assert picture_names(find_sources([photos])) == ["a", "b", "bare", "film", "sub/a", "sub/deep/c"]
    write_image(photos / "film.png")
    urls = [f"https://{host}.org/a.png" for host in "xy"]
    sources = find_sources([photos, *urls])
    names = picture_names(sources)
    assert len(set(names)) == len(names) == 9 and {"film.avi", "film.png", "sub/a.png"} < set(names)
    assert not any(Path(name).is_absolute() or ".." in Path(name).parts for name in names)
    assert titles(sources)[-3:] == ["sub/deep/c.jpg", *urls]

"""What comes from outside and is wrong, by boundary: each case ends with one sentence that names what and says what to do."""

import json
import math
import multiprocessing
import os
import ssl
import time
from pathlib import Path
from urllib.error import URLError

import pytest

from common.boundary.annotations import read_annotations
from common.boundary.downloads import locate
from common.boundary.logs import append_record, read_log
from common.boundary.outputs import check_target, only_run_in, whole_file
from common.data.sources import Source, find_sources, picture_names
from common.errors import MOST_SAID, UserError, quoted
from tests.detector_runs import EXAMPLE, run_here
from tests.reliability.said import said_by
from tests.small_datasets import content
from tests.tiny_checkpoints import tiny_checkpoint

# --- annotation files


def with_entry(part: str, **changes) -> dict:
    changed = content([([1, 2, 3, 4], {"segmentation": [[1, 1, 4, 1, 4, 4]]})])
    changed[part][0] |= changes
    return changed


ANNOTATIONS = {
    "area null": (with_entry("annotations", area=None), "annotations[0].area should be a valid number"),
    "area text": (with_entry("annotations", area="big"), "annotations[0].area should be a valid number"),
    "area list": (with_entry("annotations", area=[1]), "annotations[0].area"),
    "area of 400 digits": (with_entry("annotations", area=10**400), "annotations[0].area"),
    "iscrowd null": (with_entry("annotations", iscrowd=None), "annotations[0].iscrowd"),
    "iscrowd text": (with_entry("annotations", iscrowd="no"), "annotations[0].iscrowd"),
    "box of 400 digits": (with_entry("annotations", bbox=[10**400, 1, 1, 1]), "annotations[0].bbox[0]"),
    "box far away": (with_entry("annotations", bbox=[1e300, 1, 1, 1]), "annotations[0].bbox[0]"),
    "infinite box": (with_entry("annotations", bbox=[math.inf, 1, 1, 1]), "annotations[0].bbox[0]"),
    "id list": (with_entry("annotations", id=[1]), "annotations[0].id"),
    "huge id": (with_entry("images", id=2**63), "images[0].id"),
    "category null": (with_entry("annotations", category_id=None), "annotations[0].category_id"),
    "file name null": (with_entry("images", file_name=None), "images[0].file_name"),
    "file name with NUL": (with_entry("images", file_name="a\0b"), "images[0].file_name"),
    "long file name": (with_entry("images", file_name="x" * 5000), "images[0].file_name"),
    "an image twice": (with_entry("images", id=1), "the image id 1 twice"),
    "images null": (content() | {"images": None}, "images should be a valid list"),
    "an image that is a number": (content() | {"images": [3]}, "images[0]"),
}


@pytest.mark.parametrize(("broken", "said"), ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_annotations(broken, said, tmp_path):
    """The place is named as in Python."""
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(broken))
    sentence = said_by(read_annotations, path)
    assert sentence.startswith(str(path)) and said in sentence, sentence


@pytest.mark.parametrize("junk", [b"[" * 100_000, b"\xff" * 10_000_000, b'{"images": ' + b"[" * 5000, b""], ids=range(4))
def test_junk_is_not_quoted_at_length(junk, tmp_path):
    """Nested or binary files of any size: a sentence of a screen's width or two."""
    path = tmp_path / "annotations.json"
    path.write_bytes(junk)
    assert len(said_by(read_annotations, path)) < 500


def test_areas_that_the_evaluation_would_leave_out_are_mended(tmp_path):
    """An area below 0 or beyond COCO's largest is reckoned from the box, and counted; ``iscrowd`` is yes or no."""
    rows = [([1, 2, 3, 4], {"area": area}) for area in (-5, 1e20, 0, 5.0)] + [([1, 2, 3, 4], {"iscrowd": 2})]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content(rows)))
    coco = read_annotations(path)
    assert [a["area"] for a in coco.dataset["annotations"]] == [12, 12, 0, 5, 1] and coco.repaired == 2
    assert coco.anns[5]["iscrowd"] == 1


# --- logs

LOGS = {
    "blank line": (b'{"epoch": 0}\n\n{"epoch": 1}\n', "line 2"),
    "half a line": (b'{"epoch": 0, "tr\n{"epoch": 1}\n', "line 1"),
    "nested": (b"[" * 100_000 + b"\n", "line 1"),
    "no epoch": (b'{"loss": 0}\n', "lacks 'epoch'"),
    "epoch NaN": (b'{"epoch": NaN}\n', "epoch"),
    "epoch of 400 digits": (b'{"epoch": 1' + b"0" * 400 + b"}\n", "epoch"),
    "binary": (b"\xff\xfe\n", "line 1"),
}


@pytest.mark.parametrize(("lines", "said"), LOGS.values(), ids=LOGS)
def test_logs(lines, said, tmp_path):
    """The line is named."""
    path = tmp_path / "log.txt"
    path.write_bytes(lines)
    sentence = said_by(read_log, path)
    assert str(path) in sentence and said in sentence, sentence


def test_the_last_line_of_a_killed_run_is_dropped(tmp_path):
    """By whoever reads, and by the run that goes on."""
    path = tmp_path / "log.txt"
    path.write_bytes(b'{"epoch": 0}\n{"epoch": 1, "lo')
    assert [*read_log(path)] == [0]
    append_record(path, {"epoch": 1})
    assert path.read_bytes() == b'{"epoch": 0}\n{"epoch": 1}\n' and "cannot be read" in said_by(read_log, tmp_path)
    path.unlink()
    path.mkdir()
    assert "cannot be written" in said_by(append_record, path, {"epoch": 1})


# --- downloads

URLS = (
    *("http://x.org/a.pth", "ftp://x.org/a.pth", "https://", "https://x.org", "https://x.org/", "https://x.org:0/a.pth"),
    *(
        "https://x.org:99999/a.pth",
        "https://x.org:port/a.pth",
        "https://x.org/a b.pth",
        "https://x.org/ü.pth",
        "https://x.org/a\n.pth",
    ),
    *("https://[::1/a.pth", "https://x.org/" + "a" * 300 + ".pth", "a" * 5000, "a\0b", "https://x.org/%0a.pth"),
)


@pytest.mark.parametrize("url", URLS, ids=lambda url: repr(url[:30]))
def test_urls(url):
    """Refused before anything is asked for."""
    assert quoted(url)[:20] in said_by(locate, url)


@pytest.mark.parametrize(
    "error",
    [
        URLError("no route"),
        TimeoutError("timed out"),
        ConnectionResetError(104, "reset"),
        ssl.SSLError(1, "no"),
        ValueError("what"),
    ],
    ids=repr,
)
def test_answers_that_break_off(error, tmp_path, monkeypatch):
    """A server that is slow, closes the connection or answers nonsense."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("urllib.request.urlopen", fail)
    monkeypatch.setattr("torch.hub.urlopen", fail)
    assert "could not be downloaded" in said_by(locate, "https://x.org/a.pth")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_server_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    """Each wait has an end, which the process's other connections do not get."""
    import socket

    waits = []
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *args: waits.append(socket.getdefaulttimeout()))
    locate("https://x.org/a.pth")
    assert waits == [30] and socket.getdefaulttimeout() is None


# --- outputs


def test_files_of_the_user_stay(tmp_path):
    """Neither a link with the name of a temporary file nor a file in its place is followed or removed."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("checkpoint.pth.tmp", ".writable", "eval.json.tmp"):
        (out / name).symlink_to(precious)
    with whole_file(out / "checkpoint.pth") as file:
        file.write(b"whole")
    assert (out / "checkpoint.pth").read_bytes() == b"whole" and precious.read_text() == "mine"
    assert sorted(path.name for path in out.iterdir()) == [".writable", "checkpoint.pth", "checkpoint.pth.tmp", "eval.json.tmp"]


def test_one_run_in_a_folder(tmp_path):
    """The second is refused while the first goes on, whose half-written files of earlier kills it removes."""
    (tmp_path / ".enact-half-1").touch()
    with only_run_in(tmp_path):
        assert not list(tmp_path.iterdir())
        assert "another run writes to" in said_by(lambda: only_run_in(tmp_path).__enter__())
    with only_run_in(tmp_path):
        pass


def test_a_process_that_loads_data_does_not_hold_the_folder(tmp_path):
    """Protects a run that starts again after a kill, while processes of the killed one still live for some seconds."""
    fork = multiprocessing.get_context("fork")
    started = fork.Event()
    with only_run_in(tmp_path):
        worker = fork.Process(target=lambda: started.set() or time.sleep(60))
        worker.start()
        started.wait()
    try:
        with only_run_in(tmp_path):
            assert worker.is_alive()
    finally:
        worker.terminate()
        worker.join()


def test_exports_and_fresh_runs_overwrite_nothing(tmp_path, dataset, capsys):
    """An export onto any file, and a run beside a log of another."""
    source = tiny_checkpoint(tmp_path / "x.pth", EXAMPLE, 0)
    before = source.read_bytes()
    assert run_here(EXAMPLE, "--resume", source, "--export", source) == 2 and source.read_bytes() == before
    assert "exists already" in capsys.readouterr().err
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert "exists already" in said_by(check_target, link, "--export")
    assert f"the folder {tmp_path / 'no'} does not exist" in said_by(check_target, tmp_path / "no" / "x.pth", "--export")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.txt").write_text('{"epoch": 0}\n')
    argv = ("--coco_path", dataset, "--output_dir", tmp_path / "out", "--finetune", source, "--batch_size", 8, "--device", "cpu")
    assert run_here(EXAMPLE, *argv, "--num_workers", 0, "--epochs", 1) == 2 and "holds a run already" in capsys.readouterr().err
    assert (tmp_path / "out" / "log.txt").read_text() == '{"epoch": 0}\n'


# --- images to predict on


def test_no_two_pictures_have_one_name(tmp_path):
    """Images of one name in several folders, and those that differ in suffix alone, keep what tells them apart."""
    a, b = tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg"

    def names(*paths):
        return picture_names([Source(path) for path in paths])

    assert names(a, tmp_path / "2.png") == ["1", "2"]
    assert names(a, b) == ["a/1", "b/1"]
    assert names(a, a.with_suffix(".png")) == ["1.jpg", "1.png"]
    assert len(set(names(a, b, a.with_suffix(".png"), tmp_path / "a" / "1.jpg.png"))) == 4


def test_predictions_spare_their_images(tmp_path, dataset, capsys):
    """Inputs in the folder that is written to are not overwritten; two of one name give two pictures."""
    source = tiny_checkpoint(tmp_path / "x.pth", EXAMPLE, 0)
    folders = [tmp_path / "predictions", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "1.png").write_bytes((dataset / "val2017" / "000000000001.jpg").read_bytes())
    before = (folders[0] / "1.png").read_bytes()
    argv = ("--resume", source, "--device", "cpu", "--predict")
    assert run_here(EXAMPLE, *argv, folders[0], "--output_dir", tmp_path) == 2
    assert "would be overwritten" in capsys.readouterr().err and (folders[0] / "1.png").read_bytes() == before
    assert run_here(EXAMPLE, *argv, *folders, "--output_dir", tmp_path / "out") == 0
    assert len(list((tmp_path / "out" / "predictions").rglob("*.png"))) == 2


def test_strange_inputs(tmp_path):
    """A pipe, which would be waited for; names that are no UTF-8, too long, or hold NUL."""
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "holds no images" in said_by(find_sources, [tmp_path])
    assert "is no file" in said_by(find_sources, [tmp_path / "pipe.jpg"])
    assert "not UTF-8" in said_by(find_sources, [Path(os.fsdecode(b"\xff.jpg"))])
    for name in ("x" * 5000, "a\0b"):
        assert said_by(find_sources, [Path(name)])


def test_an_error_is_one_short_line():
    """Control characters are escaped, lone surrogates, too; what is quoted is cut."""
    assert str(UserError("a\x1b[31m\n\udc80b")) == "a\\x1b[31m\\n\\udc80b"
    assert len(quoted("x" * 10**6)) == 200 and len(str(UserError("y" * 10**6))) == MOST_SAID

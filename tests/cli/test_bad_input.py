"""Mistakes of the user: one sentence that names the file or the option, exit code 2, and nothing half-written."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from tests.detector_runs import EXAMPLE, run_here, tiny

ARGV = ("--epochs", 2, "--batch_size", 8)
TRAIN, VAL = "annotations/instances_train2017.json", "annotations/instances_val2017.json"
IMAGE = "train2017/000000000007.jpg"


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The output folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    assert run_here(EXAMPLE, *tiny(EXAMPLE), *ARGV, "--coco_path", dataset, "--output_dir", folder, "--epochs", 1) == 0
    yield folder
    shutil.rmtree(folder)


@dataclass
class Place:
    """Where a mistake is made; its methods make it and return the options that lead to it.

    Attributes:
        data: a copy of the dataset.
        out: the output folder, unless the options say otherwise.
        last: the checkpoint of a finished run, which must stay as it is.
    """

    data: Path
    out: Path
    last: Path

    def write(self, name: str, content: str | bytes) -> tuple:
        """A file of the dataset with another content."""
        (self.data / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return ()

    def truncate(self, name: str) -> tuple:
        return self.write(name, (self.data / name).read_bytes()[:500])

    def edit(self, name: str, change: Callable[[dict], Any]) -> tuple:
        """An annotation file with a changed content."""
        content = json.loads((self.data / name).read_text())
        change(content)
        return self.write(name, json.dumps(content))

    def remove(self, *names: str) -> tuple:
        for name in names:
            path = self.data / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return ()

    def save(self, content: Any, option: str = "--resume") -> tuple:
        """A file of weights."""
        torch.save(content, self.data / "weights.pth")
        return (option, self.data / "weights.pth")

    def checkpoint(self, change: Callable[[dict], Any]) -> tuple:
        """A checkpoint with a changed content."""
        content = torch.load(self.last, weights_only=True)
        change(content)
        return self.save(content)


@pytest.fixture
def place(finished: Path, dataset: Path, tmp_path: Path) -> Place:
    return Place(Path(shutil.copytree(dataset, tmp_path / "data")), tmp_path / "out", finished / "checkpoint.pth")


# What the user does wrong, and what the sentence must say. Every kind of broken annotation is tested with the code that reads them.
DATASETS = {
    "missing folder": (lambda p: ("--coco_path", p.data / "nowhere"), ["data/nowhere is no folder", "train2017/"]),
    "empty folder": (lambda p: p.remove("train2017", "val2017", "annotations"), ["holds no dataset", "data.yaml"]),
    "no annotation file": (lambda p: p.remove(TRAIN), [TRAIN, "does not exist"]),
    "half an annotation file": (lambda p: p.truncate(VAL), [VAL, "JSON"]),
    "another JSON": (lambda p: p.write(TRAIN, '{"shapes": []}'), [TRAIN, "COCO"]),
    "no bbox": (lambda p: p.edit(TRAIN, lambda c: c["annotations"][0].pop("bbox")), [TRAIN, "bbox"]),
    "unlisted category": (lambda p: p.edit(VAL, lambda c: c["annotations"][0].update(category_id=77)), [VAL, "77"]),
    "category of validation alone": (
        lambda p: p.edit(VAL, lambda c: c["categories"].append({"id": 88, "name": "new"})),
        ["val2017", "[88]", "train2017"],
    ),
    "missing image": (lambda p: p.remove(IMAGE), [Path(IMAGE).name, TRAIN]),
    "truncated image": (lambda p: p.truncate(IMAGE), [IMAGE]),
    "text for an image": (lambda p: p.write(IMAGE, "text"), [IMAGE]),
}
# Of the options, those that nothing but a run can refuse, and one of each kind of rule that is tested with the code that parses.
OPTIONS = {
    "--learning_rate 1": ["--learning_rate"],
    "--lr nan": ["--lr", "'nan'"],
    "--nheads 3": ["--nheads 3", "--hidden_dim"],
    "--eval": ["--eval", "--resume"],
    "--amp fp16": ["--amp fp16", "bf16"],
    "--batch_size 25": ["24 images", "--batch_size"],
    "--resume x.pth": ["x.pth", "does not exist"],
    "--backbone_weights x.pth": ["--backbone_weights x.pth"],
    "--backbone_weights default": ["--backbone_weights", "resnet10"],
}
OUTPUTS = {
    "below a file": (lambda p: (*p.write("x", ""), "--output_dir", p.data / "x" / "out"), ["--output_dir", "data/x/out"]),
    "a file": (lambda p: (*p.write("x", ""), "--output_dir", p.data / "x"), ["--output_dir", "data/x"]),
    "of another run": (lambda p: ("--output_dir", p.last.parent), ["holds a run", "--resume", "--output_dir"]),
}
CHECKPOINTS = {
    "folder": (lambda p: ("--resume", p.last.parent), ["finished"]),
    "text": (lambda p: (*p.write("x.pth", "text"), "--resume", p.data / "x.pth"), ["x.pth", "not a checkpoint"]),
    "picture": (lambda p: ("--resume", p.data / IMAGE), [IMAGE, "not a checkpoint"]),
    "list": (lambda p: p.save([1, 2]), ["weights.pth", "not a checkpoint"]),
    "no weights": (lambda p: p.save({"epoch": 3}), ["weights.pth", "'model'"]),
    "code": (lambda p: p.save(nn.Linear(1, 1)), ["weights.pth", "weights_only"]),
    "other keys": (
        lambda p: p.checkpoint(lambda c: c["model"].update(other=c["model"].popitem()[1])),
        ["weights.pth", "missing: ", "unknown: other"],
    ),
    "other keys, fine-tuned": (
        lambda p: p.save({"other": torch.zeros(2)}, "--finetune"),
        ["weights.pth", EXAMPLE, "missing"],
    ),
    "another shape": (
        lambda p: p.checkpoint(lambda c: c["model"].update({k: v[:, :5] for k, v in c["model"].items() if "linear2.weight" in k})),
        ["weights.pth", "of another shape: ", "linear2.weight"],
    ),
    "another size than it says": (
        lambda p: ("--resume", p.last, "--dec_layers", 3),
        ["--dec_layers 3", "checkpoint.pth", "dec_layers 2"],
    ),
    "finished": (lambda p: ("--resume", p.last, "--epochs", 1), ["checkpoint.pth", "--epochs"]),
    "backbone of another network": (
        lambda p: p.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "--backbone_weights"),
        ["--backbone_weights", "weights.pth", "resnet10"],
    ),
}
PREDICTIONS = {
    "empty folder": (lambda p: ("--resume", p.last, "--predict", p.data / "annotations"), ["annotations", "no images"]),
    "missing image": (lambda p: ("--resume", p.last, "--predict", p.data / "x.jpg"), ["x.jpg", "does not exist"]),
    "text": (lambda p: ("--resume", p.last, "--predict", p.data / TRAIN), [TRAIN, "image"]),
}
TABLES = {"dataset": DATASETS, "output": OUTPUTS, "checkpoint": CHECKPOINTS, "prediction": PREDICTIONS}
CASES = [pytest.param(*case, id=f"{table}: {name}") for table, cases in TABLES.items() for name, case in cases.items()]
CASES += [pytest.param(lambda p, text=text: tuple(text.split()), words, id=text) for text, words in OPTIONS.items()]


@pytest.mark.parametrize(("mistake", "words"), CASES)
def test_a_mistake_ends_with_one_sentence(place, mistake, words, capsys):
    """The sentence stands alone on stderr and says what and where; the exit code is 2; what was written is whole."""
    options = mistake(place)
    before = place.last.stat().st_mtime_ns
    capsys.readouterr()
    code = run_here(EXAMPLE, *tiny(EXAMPLE), *ARGV, "--coco_path", place.data, "--output_dir", place.out, *options)
    message = sentence(capsys.readouterr().err)
    assert code == 2
    assert [word for word in words if word not in message] == [], message
    assert_nothing_half_written(place.out)
    assert place.last.stat().st_mtime_ns == before


def sentence(err: str) -> str:
    """What a run says on stderr at its end, behind the progress bars that it has wiped away: one line."""
    message = err.split("\r")[-1]
    assert err.count("\n") == 1 and message.endswith("\n") and message.startswith(f"{EXAMPLE}: "), err
    return message


def assert_nothing_half_written(out: Path) -> None:
    """An output folder holds nothing, or a run that can be resumed at its start and its events."""
    names = {path.name for path in out.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert names <= {"checkpoint.pth"}
    if names:
        checkpoint = torch.load(out / "checkpoint.pth", weights_only=True)
        assert checkpoint["epoch"] == -1
        assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_a_loss_that_is_not_finite_stops_the_run(place, capsys):
    """The images of the batch are named, and the last good checkpoint stays."""
    code = run_here(EXAMPLE, *tiny(EXAMPLE), *ARGV, "--coco_path", place.data, "--output_dir", place.out, "--lr", 1e30)
    message = sentence(capsys.readouterr().err)
    assert code == 2
    assert "is not finite in epoch 0" in message
    assert sum(path.name in message for path in (place.data / "train2017").iterdir()) == 8
    assert_nothing_half_written(place.out)
    assert (place.out / "checkpoint.pth").exists()


def test_repairable_input_trains(place, capsys):
    """Images of any mode and annotations that are of no use are no reason to stop; what is skipped is counted on one line."""
    images = sorted((place.data / "train2017").iterdir())
    for path, mode in zip(images, ("L", "P", "RGBA", "CMYK", "1", "I;16")):
        Image.open(path).convert("L" if mode == "I;16" else mode).convert(mode).save(path, "JPEG" if mode == "CMYK" else "PNG")
    rotated = Image.open(images[6])
    exif = rotated.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    rotated.save(images[6], exif=exif)

    def change(content: dict) -> None:
        content["annotations"] = [a | {"iscrowd": 0} for a in content["annotations"] if a["image_id"] > 3]
        useless = ([5, 5, 0, 9], [5, 5, 9, 0], [-20, 5, 10, 9], [500, 5, 9, 9], [9, 9, -4, 5])
        for i, bbox in enumerate(useless, start=1001):
            content["annotations"].append({"id": i, "image_id": 4, "category_id": 1, "bbox": bbox, "area": 1, "iscrowd": 0})
        content["annotations"].append({"id": 2001, "image_id": 4, "category_id": 1, "bbox": [-9, -9, 40, 40]})
        content["annotations"].append({"id": 2002, "image_id": 5, "category_id": 1, "bbox": [5, 5, 9, 9], "iscrowd": 1})

    place.edit(TRAIN, change)
    code = run_here(EXAMPLE, *tiny(EXAMPLE), *ARGV, "--coco_path", place.data, "--output_dir", place.out, "--epochs", 1)
    out = capsys.readouterr().out
    assert code == 0
    [line] = [line for line in out.splitlines() if line.startswith("train2017:")]
    assert "24 images" in line and "5 boxes without area" in line and "1 crowd annotations" in line
    assert "images without annotations" in line

from pathlib import Path

import pytest
import torch

from benchmarks.lib.demos import Demo, train_all
from common.errors import UserError


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Two datasets and two checkpoints, and what keeps a finished run with the options that it was trained with."""
    monkeypatch.chdir(tmp_path)
    for name in ("shapes", "other"):
        Path(name).mkdir()
        Path(f"{name}.pth").touch()
    Path("link").symlink_to("shapes")
    Path("link.pth").symlink_to("shapes.pth")

    def keep(**options) -> Path:
        folder = Path("run")
        folder.mkdir()
        torch.save({"model": {"weight": torch.zeros(1)}, "args": options}, folder / "checkpoint.pth")
        (folder / "log.txt").write_text('{"epoch": 0, "test_coco_eval_bbox": [0.5]}\n')
        return folder

    return keep


@pytest.mark.parametrize(
    ("options", "finetune", "said"),
    [
        ({"coco_path": "other"}, None, "holds a run on other, not on shapes"),
        ({"coco_path": "shapes", "finetune": "other.pth"}, "shapes.pth", "holds a run from other.pth, not from shapes.pth"),
        ({"finetune": "https://a/x.pth"}, "https://b/x.pth", "holds a run from https://a/x.pth"),
        ({"finetune": None, "resume": None}, "shapes.pth", "holds a run from random weights"),
        ({"finetune": "gone.pth"}, None, "not from random weights"),
    ],
)
def test_a_run_of_something_else_is_not_taken_for_this_one(options, finetune, said, kept):
    """Else its precision would be reported as that of other data or another start."""
    with pytest.raises(UserError, match="pass another --runs") as error:
        train_all([Demo("DETR-ENACT", (), 1, kept(**options), finetune)], 1, "cpu", Path("shapes"))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("options", "finetune"),
    [
        ({}, "shapes.pth"),
        ({"coco_path": None}, None),
        ({"coco_path": "link", "finetune": "link.pth"}, "shapes.pth"),
        ({"coco_path": "/gone/shapes", "finetune": "/gone/shapes.pth"}, "shapes.pth"),
        ({"finetune": "https://a/x.pth"}, "https://a/x.pth"),
        ({"finetune": None, "resume": "run/checkpoint.pth"}, "shapes.pth"),
    ],
)
def test_a_run_of_the_same_stays_usable(options, finetune, kept, monkeypatch):
    """From another checkout, which may be gone by now; and where the run does not tell, as when it was continued."""
    monkeypatch.setattr(Demo, "train", lambda *_: pytest.fail("trained again"))
    demo = Demo("DETR-ENACT", (), 1, kept(**options), finetune)
    for path in (Path("shapes"), Path("shapes").absolute()):
        train_all([demo], 1, "cpu", path)


def test_a_run_remembers_the_places_behind_links(tmp_path, kept, monkeypatch):
    """So that it still tells what it was trained on when the checkout that had the link is gone."""
    commands = []
    monkeypatch.setattr("benchmarks.lib.demos.run_quietly", lambda command, what: commands.append(command))
    with pytest.raises(UserError):
        Demo("DETR-ENACT", (), 1, tmp_path / "new", "link.pth").train("cpu", Path("link"))
    [command] = commands
    assert {str(tmp_path / "shapes"), str(tmp_path / "shapes.pth")} < {*command} and "--resume" not in command

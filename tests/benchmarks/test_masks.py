import json

from benchmarks.lib.cli import main
from benchmarks.speed import masks


def test_both_forms_are_measured_and_agree(tmp_path, capsys):
    """A row per part and form; losses and masks were compared; fewer masks at once need less memory."""
    argv = ["--device", "cpu", "--image", "128x128", "--repeats", "1", "--objects", "3", "--detector", "PnP-DETR"]
    assert main(masks.NAME, masks.run, [*argv, "--output", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "masks-cpu.json").read_text())
    rows = {(r["task"], r["part"], r["masks"]): r for r in content["results"]}
    parts = (("training", "head"), ("training", "step"), ("evaluation", "head"), ("evaluation", "inference"))
    assert [*rows] == [(*part, form) for part in parts for form in (masks.ALL, masks.ASKED)]
    assert all(rows[(*part, masks.ASKED)]["ratios"]["memory"] < 1 for part in parts[::2])
    assert "evaluation, inference" in capsys.readouterr().out

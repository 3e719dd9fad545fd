"""What is particular to PnP-DETR: its ratios, its warm start, its pictures."""

import json
import re

import cv2
import pytest
import torch

from common.cli.restore import restore
from pnp_detr.recipe import DETECTOR
from tests.detector_runs import run_here, tiny
from tests.tiny_checkpoints import tiny_checkpoint
from tests.tiny_models import build
from tools.detectors import options

NAME = "PnP-DETR"
RATIOS = ("0.333", "0.5", "0.65", "0.8")


def test_a_step_draws_its_ratio_from_seed_and_number():
    """Equal in all processes and in a resumed run, another in every step, and all over the range."""
    model, _ = build(NAME)
    ratios = []
    for step in range(200):
        model.set_step(42, step)
        ratios.append(model.step_ratio)
    assert 1 / 3 <= min(ratios) < 0.36 and 0.77 < max(ratios) <= 0.8 and len(set(ratios)) == 200
    again, _ = build(NAME)
    again.set_step(42, 77)
    other = again.step_ratio
    assert other == ratios[77]
    again.set_step(43, 77)
    assert again.step_ratio != other


def test_training_and_evaluation_have_ratios_of_their_own():
    """One set of weights, any ratio: the lengths of what the transformer sees at 800 x 1066 in C5 and DC5."""
    model, _ = build(NAME, "--sample_topk_ratio", "0.5", "--unsample_abstract_number", "30")
    lengths = []
    model.transformer.encoder.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    with torch.no_grad():
        for height, width in ((25, 34), (50, 67)):
            src, mask = torch.randn(1, 32, height, width), torch.zeros(1, height, width, dtype=torch.bool)
            for ratio in (1 / 3, 0.5, 0.8):
                model.sample_topk_ratio = ratio
                model.eval().detect(src, mask)
    assert lengths == [n + 30 for n in (283, 425, 680, 1116, 1675, 2680)]
    model.sample_topk_ratio, model.step_ratio = 0.5, 0.8
    with torch.no_grad():
        for training, count in ((True, 680), (False, 425)):
            outputs = model.train(training).detect(torch.randn(1, 32, 25, 34), torch.zeros(1, 25, 34, dtype=torch.bool))
            assert outputs["kept"].sum() == count and ("mean_scores" in outputs) == training


@pytest.mark.parametrize(("argv", "pooled"), [((), 30), (("--dilation",), 100), (("--unsample_abstract_number", "7"), 7)])
def test_how_many_vectors_are_pooled(argv, pooled):
    """30 by default, 100 of the larger map of DC5."""
    args = options(NAME, [*tiny(NAME), "--unsample_abstract_number", "0", *argv])
    assert len(DETECTOR.build_model(args, 7, False).transformer.sampler.k_proj.weight) == pooled


def test_the_price_of_scores_is_a_part_of_the_total():
    """Its weight, its names in the log, and its mean over the images of a step; evaluation has none."""
    model, criterion = build(NAME, "--sample_reg_loss", "0.5")
    src, mask = torch.randn(2, 32, 6, 8), torch.zeros(2, 6, 8, dtype=torch.bool)
    mask[1, :, 4:] = True
    targets = [{"labels": torch.tensor([1]), "boxes": torch.rand(1, 4)} for _ in range(2)]
    outputs = model.train().detect(src, mask)
    total, log = criterion(outputs, targets, criterion.count(targets))
    means = [outputs["scores"][i][outputs["tokens"][i][outputs["kept"][i]]].mean() for i in range(2)]
    torch.testing.assert_close(log["sample_reg_loss_unscaled"], sum(means) / 2)
    torch.testing.assert_close(log["sample_reg_loss"], sum(means) / 4)
    rest = [value for name, value in log.items() if name.startswith("loss") and not name.endswith("unscaled")]
    torch.testing.assert_close(total, sum(rest) + log["sample_reg_loss"])
    with_others = criterion(outputs, targets, 2 * criterion.count(targets))[1]
    torch.testing.assert_close(with_others["sample_reg_loss"], log["sample_reg_loss"] / 2)
    assert "sample_reg_loss" not in criterion(model.eval().detect(src, mask), targets, criterion.count(targets))[1]


def test_several_ratios_are_evaluated_in_one_run(dataset, tmp_path):
    """A row each, in ``eval.json`` and in the log of a training run, the first under the usual names, too."""
    path, out = tiny_checkpoint(tmp_path / "x.pth", NAME, 0), tmp_path / "out"
    evaluation = ("--eval", "--coco_path", dataset, "--output_dir", out, "--device", "cpu", "--num_workers", "0")
    assert run_here(NAME, *evaluation, "--resume", path, "--eval_ratios", *RATIOS) == 0
    several = json.loads((out / "eval.json").read_text())
    rows = several["evaluations"]
    assert [*rows] == [f"ratio_{ratio}" for ratio in RATIOS]
    assert rows["ratio_0.333"] == {name: several[name] for name in ("coco_eval_bbox", "coco_eval_bbox_per_class", "losses")}
    assert len({row["losses"]["loss_ce"] for row in rows.values()}) == len(RATIOS)
    assert run_here(NAME, *evaluation, "--resume", path, "--sample_topk_ratio", "0.8") == 0
    single = json.loads((out / "eval.json").read_text())
    assert {name: single[name] for name in ("coco_eval_bbox", "coco_eval_bbox_per_class", "losses")} == rows[
        "ratio_0.8"
    ] and single["sample_topk_ratio"] == 0.8

    training = (*tiny(NAME), "--coco_path", dataset, "--epochs", "1", "--batch_size", "24", "--output_dir", tmp_path / "run")
    assert run_here(NAME, *training, "--eval_ratios", "0.5", "0.8") == 0
    [line] = (tmp_path / "run" / "log.txt").read_text().splitlines()
    log = json.loads(line)
    assert log["test_loss"] == log["test_ratio_0.5_loss"] != log["test_ratio_0.8_loss"]
    assert log["test_coco_eval_bbox"] == log["test_ratio_0.5_coco_eval_bbox"] and "train_sample_reg_loss" in log


@pytest.mark.parametrize("argv", [("--clustering", "none"), ("--clustering", "region")], ids=lambda argv: argv[1])
def test_a_detr_is_a_start(argv, dataset, tmp_path, capsys):
    """The sampler alone is new, and reported; ENACT's weights come along."""
    path, out = tiny_checkpoint(tmp_path / "detr.pth", "DETR-ENACT", 0, *argv), tmp_path / "out"
    start = ("--coco_path", dataset, "--finetune", path, "--epochs", 1, "--lr", 0, "--lr_backbone", 0, "--weight_decay", 0)
    machine = ("--output_dir", out, "--device", "cpu", "--num_workers", "0", "--batch_size", 24, "--unsample_abstract_number", 3)
    assert run_here(NAME, *start, *machine) == 0
    new = re.search(r"all weights loaded but (.*), which start anew", capsys.readouterr().out)[1].split(", ")
    assert len(new) == 8 and all(name.startswith("transformer.sampler.") for name in new)
    before, after = (torch.load(x, weights_only=True) for x in (path, out / "checkpoint.pth"))
    assert after["args"]["sampling"] == "pnp" and after["args"]["clustering"] == argv[1]
    kept = [name for name in before["model"] if "running_" not in name and "tracked" not in name]
    assert all(torch.equal(before["model"][name], after["model"][name]) for name in kept)


def test_weights_tell_whether_they_sample(dataset, tmp_path, capsys):
    """A DETR is used as it is, which is said; that its untrained sampler is used is not possible."""
    detr, pnp = tiny_checkpoint(tmp_path / "detr.pth", "DETR-ENACT", 0, "--clustering", "none"), tmp_path / "pnp.pth"
    restored = restore(DETECTOR, detr)
    assert restored.messages == [f"{detr} was trained with --sampling none, and is used so"]
    assert restored.model.transformer.sampler is None
    tiny_checkpoint(pnp, NAME, 0)
    for path, other in ((detr, "pnp"), (pnp, "none")):
        argv = ("--eval", "--coco_path", dataset, "--resume", path, "--sampling", other, "--output_dir", tmp_path / "out")
        assert run_here(NAME, *argv, "--device", "cpu") == 2
        assert f"--sampling {other} contradicts the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--sample_topk_ratio", "1"), "above 0 and below 1"),
        (("--eval_ratios", "0.5", "0"), "above 0"),
        (("--sample_ratio_lower_bound", "0.9"), "is above --sample_ratio_higher_bound"),
        (("--sampling", "none", "--eval_ratios", "0.5"), "leave one of them out"),
        (("--clustering", "region+"), "pass --scan raster"),
        (("--clustering", "region", "--scan", "band"), "pass --scan raster"),
    ],
)
def test_ratios_that_cannot_be(argv, said, dataset, tmp_path, capsys):
    """One sentence, before anything is written."""
    assert run_here(NAME, *tiny(NAME), "--coco_path", dataset, "--output_dir", tmp_path / "out", *argv) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.pth"))


@pytest.mark.parametrize(
    "argv", [(), ("--clustering", "region"), ("--sampling", "none")], ids=lambda argv: "".join(argv[1:]) or "pnp"
)
def test_information_shows_what_was_polled(argv, dataset, tmp_path):
    """Scores and polled pixels; with ENACT their self-information; without a sampler nothing beside the detections."""
    path = tiny_checkpoint(tmp_path / "x.pth", NAME, 0, *argv)
    restored = restore(DETECTOR, path)
    with torch.no_grad(), DETECTOR.record(restored.model) as records:
        outputs = restored.model(torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool))
    maps = DETECTOR.pictures(records, outputs)
    captions = {(): 2, ("--clustering", "region"): 3, ("--sampling", "none"): 0}[argv]
    assert len(maps) == captions and {tuple(x.shape) for x in maps.values()} <= {(8, 12)}
    if maps:
        assert maps["Polled: 32 of 96"].sum() == 32 and 0 < maps["Scores"].min() and maps["Scores"].max() < 1
        least_polled = maps["Scores"][maps["Polled: 32 of 96"]].min()
        assert least_polled >= maps["Scores"][~maps["Polled: 32 of 96"]].max()
    if "Self-information" in maps:
        assert (maps["Self-information"] > 0).sum() == 32
    images = sorted((dataset / "val2017").iterdir())[:1]
    argv = ("--predict", *images, "--information", "--resume", path, "--output_dir", tmp_path, "--device", "cpu")
    assert run_here(NAME, *argv) == 0
    assert cv2.imread(str(tmp_path / "predictions" / f"{images[0].stem}.png")) is not None

"""One step is the same, however its images are distributed over processes and accumulated batches."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision.models.resnet import BasicBlock, ResNet

from tests.detector_runs import EXAMPLE, VARIANTS, read_checkpoint, run_command, run_here, tiny
from tests.equal_sizes import equal_sizes

SCRIPT = Path(equal_sizes.__code__.co_filename)
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT)
LR = 1e-4


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of backbone weights, which are random."""
    path = tmp_path_factory.mktemp("backbone") / "resnet10.pth"
    torch.manual_seed(0)
    torch.save(ResNet(BasicBlock, [1, 1, 1, 1]).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def recipe(dataset: Path, weights: Path) -> tuple:
    """A run of 24 / 4 = 6 steps in which images do not see each other: batch norm is frozen, and there is no dropout."""
    lr = ("--lr", LR, "--lr_backbone", LR, "--dropout", 0)
    return ("--backbone_weights", weights, "--coco_path", dataset, "--epochs", 1, *lr)


@pytest.fixture(scope="module")
def options(recipe: tuple) -> tuple:
    return (*tiny(EXAMPLE), *recipe)


@pytest.fixture(scope="module")
def one(options: tuple, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The output folder of one process with batches of 4."""
    folder = tmp_path_factory.mktemp("one")
    with equal_sizes():
        assert run_here(EXAMPLE, *options, "--batch_size", 4, "--output_dir", folder) == 0
    yield folder
    shutil.rmtree(folder)


def assert_trained_alike(a: Path, b: Path, outliers: float = 0.0, furthest: float = LR, rel: float = 1e-5) -> None:
    """Equal weights to 1e-5, but for a share of outliers less than ``furthest`` apart, and losses equal to ``rel``.

    Errors are means over batches and may differ.
    """
    ours, theirs = (read_checkpoint(folder / "checkpoint.pth")["model"] for folder in (a, b))
    assert ours.keys() == theirs.keys()
    apart = torch.cat([(ours[name] - theirs[name]).abs().flatten() for name in ours])
    assert (apart > 1e-5).float().mean() <= outliers and apart.max() < furthest
    log, other = (json.loads((folder / "log.txt").read_text()) for folder in (a, b))
    losses = {name: value for name, value in log.items() if name.startswith("train") and "loss" in name}
    assert losses == pytest.approx({name: other[name] for name in losses}, rel=rel)
    assert log["test_coco_eval_bbox"] == pytest.approx(other["test_coco_eval_bbox"], abs=5e-3 if outliers else 1e-5)


def test_one_process_moves_the_weights(one, weights):
    """The steps that are compared are much larger than the difference that they may have."""
    before = torch.load(weights, weights_only=True)["layer4.0.conv2.weight"]
    after = read_checkpoint(one / "checkpoint.pth")["model"]
    [moved] = [value - before for name, value in after.items() if name.endswith("layer4.0.conv2.weight")]
    assert moved.abs().median() > 1e-4


def test_two_processes_train_as_one(one, options, tmp_path):
    """Two processes with batches of 2 take the steps of one process with batches of 4.

    They start from the same weights and draw different random numbers from then on.
    """
    run_command(*TWO_PROCESSES, EXAMPLE, *options, "--batch_size", 2, "--output_dir", tmp_path)
    assert_trained_alike(tmp_path, one)
    first, second = (state["cpu"] for state in read_checkpoint(tmp_path / "checkpoint.pth")["random_states"])
    assert not torch.equal(first, second), "they drop out differently"


@pytest.mark.parametrize(
    ("detector", "argv", "bounds"),
    [
        ("Sparse-DETR", VARIANTS["Sparse-DETR"]["sparse"], {}),
        ("DAC-DETR", ("--no-cdn",), {"furthest": 2.01 * LR, "rel": 1e-4}),
        ("PnP-DETR", ("--masks",), {}),
    ],
    ids=["Sparse-DETR", "DAC-DETR", "PnP-DETR with masks"],
)
def test_losses_of_other_branches_are_shared_out_as_well(detector, argv, bounds, recipe, tmp_path):
    """Those of proposals, scores, one-to-many pairs and masks are divided by objects and images of the whole step, too; and
    a step polls one share of the pixels.

    The steps move a weight by some 3e-4 in all; a few weights with gradients near zero amplify the rounding. AdamW steps by the
    sign of such a gradient: of DAC-DETR's weights one may step the other way, which moves the losses a little.
    """
    options = (*tiny(detector), *argv, *recipe)
    run_command(*TWO_PROCESSES, detector, *options, "--batch_size", 2, "--output_dir", tmp_path / "two")
    with equal_sizes():
        assert run_here(detector, *options, "--batch_size", 4, "--output_dir", tmp_path / "one") == 0
    assert_trained_alike(tmp_path / "two", tmp_path / "one", outliers=5e-4, **bounds)


def test_accumulated_batches_train_as_one_large_batch(one, options, tmp_path):
    """``--batch_size 2 --accumulate 2`` takes the steps of ``--batch_size 4``."""
    with equal_sizes():
        assert run_here(EXAMPLE, *options, "--batch_size", 2, "--accumulate", 2, "--output_dir", tmp_path) == 0
    assert_trained_alike(tmp_path, one)


def test_two_processes_evaluate_every_image_once(one, options, tmp_path):
    """Five images do not divide by two: each one's detections are there once, and the precision is that of one process."""
    argv = (*options, "--eval", "--resume", one / "checkpoint.pth", "--batch_size", 2, "--output_dir")
    run_command(*TWO_PROCESSES, EXAMPLE, *argv, tmp_path / "two")
    with equal_sizes():
        assert run_here(EXAMPLE, *argv, tmp_path / "one") == 0
    two, alone = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("two", "one"))
    assert [(r["image_id"], r["category_id"]) for r in two] == [(r["image_id"], r["category_id"]) for r in alone]
    assert [r["score"] for r in two] == pytest.approx([r["score"] for r in alone], abs=1e-5)
    assert {r["image_id"] for r in two} == {1, 2, 3, 4, 5}
    evaluated = [json.loads((tmp_path / name / "eval.json").read_text()) for name in ("two", "one")]
    assert evaluated[0]["images"] == 5
    assert evaluated[0]["coco_eval_bbox"] == evaluated[1]["coco_eval_bbox"]


def test_two_processes_evaluate_panoptic_maps(dataset, tmp_path):
    """Each image's map is written and counted once: the quality is that of one process."""
    panoptic = ("--coco_path", dataset, "--dataset_file", "coco_panoptic", "--panoptic_threshold", "0", "--device", "cpu")
    trained = ("--masks", "--epochs", 1, "--batch_size", 8, "--output_dir", tmp_path)
    assert run_here(EXAMPLE, *tiny(EXAMPLE), *panoptic, *trained) == 0
    argv = (*panoptic, "--eval", "--resume", tmp_path / "checkpoint.pth", "--batch_size", 2, "--num_workers", 0, "--output_dir")
    run_command(*TWO_PROCESSES, EXAMPLE, *argv, tmp_path / "two")
    with equal_sizes():
        assert run_here(EXAMPLE, *argv, tmp_path / "one") == 0
    two, one = (json.loads((tmp_path / name / "panoptic.json").read_text()) for name in ("two", "one"))
    assert two == one and [entry["image_id"] for entry in one["annotations"]] == [1, 2, 3, 4, 5]
    assert {path.name for path in (tmp_path / "two" / "panoptic").iterdir()} == {f"{i:012d}.png" for i in range(1, 6)}
    evaluated = [json.loads((tmp_path / name / "eval.json").read_text()) for name in ("two", "one")]
    assert evaluated[0]["PQ_all"] == evaluated[1]["PQ_all"] and evaluated[0]["PQ_st"]["n"] > 0

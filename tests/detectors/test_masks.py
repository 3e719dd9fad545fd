"""The detectors with a mask head, from annotations to masks."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.nn import functional as F
from torchvision.ops import box_convert, masks_to_boxes

from common.cli.inherited import follow_checkpoint
from common.cli.options import parse
from common.data.coco_names import known_categories
from common.data.loading import build_dataset
from common.data.panoptic import read_panoptic
from common.evaluation.masks import image_masks
from common.evaluation.panoptic_quality import add, compare, panoptic_quality
from common.models.mask_head import AttentionMaps, MaskHead
from tests.detector_runs import read_checkpoint, run_here, tiny
from tests.tiny_checkpoints import tiny_checkpoint
from tests.tiny_models import batch_of, build
from tools.detectors import DETECTORS, options

SEGMENTERS = ("DETR-ENACT", "PnP-DETR")
both = pytest.mark.parametrize("detector", SEGMENTERS)


def run_of(detector: str, dataset: Path, folder: Path, *argv: str) -> tuple:
    recipe = ("--epochs", "1", "--batch_size", "8", "--coco_path", dataset, "--output_dir", folder)
    return (*tiny(detector), *recipe, *argv)


@both
def test_masks_are_trained_evaluated_and_drawn(detector, dataset, tmp_path):
    """Losses and precision of masks in the log; the same from the checkpoint; COCO's results hold both, as pycocotools counts."""
    assert run_here(detector, *run_of(detector, dataset, tmp_path, "--masks")) == 0
    [log] = map(json.loads, (tmp_path / "log.txt").read_text().splitlines())
    assert {"train_loss_mask", "train_loss_dice", "test_loss_mask"} <= log.keys() and len(log["test_coco_eval_masks"]) == 12
    machine = ("--output_dir", tmp_path / "eval", "--device", "cpu", "--num_workers", "0", "--resume", tmp_path / "checkpoint.pth")
    assert run_here(detector, "--eval", "--coco_path", dataset, *machine) == 0
    content = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert content["coco_eval_masks"] == pytest.approx(log["test_coco_eval_masks"], abs=1e-6)

    truth = COCO(str(dataset / "annotations" / "instances_val2017.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "eval" / "predictions.json")), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert content["coco_eval_masks"] == pytest.approx(evaluation.stats.tolist(), abs=1e-9)

    image = sorted((dataset / "val2017").iterdir())[0]
    assert run_here(detector, "--predict", image, "--score_threshold", "0", *machine) == 0
    with_masks = cv2.imread(str(tmp_path / "eval" / "predictions" / f"{image.stem}.png"))
    assert with_masks is not None and with_masks.shape == cv2.imread(str(image)).shape


@both
def test_panoptic_maps_are_evaluated_written_and_drawn(detector, dataset, tmp_path):
    """The quality in the log, the same from the checkpoint, and from the PNGs and the JSON that it writes; pictures of the maps.

    Every class is sure enough here, for maps that have something in them.
    """
    panoptic = ("--dataset_file", "coco_panoptic", "--panoptic_threshold", "0")
    assert run_here(detector, *run_of(detector, dataset, tmp_path, "--masks", *panoptic)) == 0
    [log] = map(json.loads, (tmp_path / "log.txt").read_text().splitlines())
    assert len(log["test_coco_eval_masks"]) == 12 and read_checkpoint(tmp_path / "checkpoint.pth")["stuff"] == [7, 8]
    machine = ("--output_dir", tmp_path / "eval", "--device", "cpu", "--num_workers", "0", "--resume", tmp_path / "checkpoint.pth")
    link = tmp_path / "elsewhere"  # where the panoptic annotations are
    link.symlink_to(dataset)
    data = ("--coco_path", dataset, "--dataset_file", "coco_panoptic", "--coco_panoptic_path", link)
    assert run_here(detector, "--eval", *data, *machine) == 0
    found = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert found["PQ_all"] == pytest.approx(log["test_PQ_all"], abs=1e-6) and found["panoptic_threshold"] == 0
    assert set(found["PQ_all"]) == {"pq", "sq", "rq", "n"} and found["PQ_st"]["n"] <= 2
    truth = read_panoptic(dataset / "annotations" / "panoptic_val2017.json")
    written = json.loads((tmp_path / "eval" / "panoptic.json").read_text())
    assert [entry["image_id"] for entry in written["annotations"]] == [1, 2, 3, 4, 5]
    counts = []
    for entry in written["annotations"]:
        ids, true_ids = (
            cv2.imread(str(folder / entry["file_name"]))[..., ::-1].astype(int) @ [1, 256, 65536]
            for folder in (tmp_path / "eval" / "panoptic", dataset / "panoptic_val2017")
        )
        assert {s["id"]: s["area"] for s in entry["segments_info"]} == dict(zip(*map(list, np.unique(ids, return_counts=True))))
        counts.append(compare(true_ids, truth.imgToAnns[entry["image_id"]], ids, entry["segments_info"]))
    assert panoptic_quality(add(counts), truth.cats) == found["PQ_all"]

    image = sorted((dataset / "val2017").iterdir())[0]
    assert run_here(detector, "--predict", image, "--score_threshold", "1", *machine) == 0
    plain, drawn = (tmp_path / "eval" / f"predictions{end}" / f"{image.stem}.png" for end in ("", "_panoptic"))
    assert (cv2.imread(str(drawn)) != cv2.imread(str(plain))).mean() > 0.5
    exported = tmp_path / "exported.pth"
    assert run_here(detector, "--export", exported, "--resume", tmp_path / "checkpoint.pth") == 0
    assert read_checkpoint(exported)["stuff"] == [7, 8]


def test_a_panoptic_detector_is_trained_on_boxes_and_its_masks_alone(dataset, tmp_path):
    """DETR's two steps: boxes of things and stuff, then the head; the classes stay."""
    panoptic = ("--dataset_file", "coco_panoptic")
    assert run_here("DETR-ENACT", *run_of("DETR-ENACT", dataset, tmp_path / "boxes", *panoptic)) == 0
    first = tmp_path / "boxes" / "checkpoint.pth"
    [log] = map(json.loads, (tmp_path / "boxes" / "log.txt").read_text().splitlines())
    assert read_checkpoint(first)["num_classes"] == 8 and not any("PQ" in name or "masks" in name for name in log)
    second = run_of("DETR-ENACT", dataset, tmp_path / "masks", *panoptic, "--masks", "--frozen_weights", first)
    assert run_here("DETR-ENACT", *second) == 0
    assert read_checkpoint(tmp_path / "masks" / "checkpoint.pth")["num_classes"] == 8


def test_the_demo_with_masks_is_panoptic():
    """Unless the user says otherwise."""
    both_ways = [parse(DETECTORS["PnP-DETR"], ["--demo", "--masks", *argv])[0] for argv in ((), ("--dataset_file", "coco"))]
    assert [args.dataset_file for args in both_ways] == ["coco_panoptic", "coco"] and both_ways[0].panoptic_threshold == 0.5
    assert parse(DETECTORS["PnP-DETR"], ["--demo"])[0].dataset_file == "coco"


def test_masks_in_mixed_precision(dataset, tmp_path):
    """The head is called by the losses, where autocast has ended."""
    assert run_here("PnP-DETR", *run_of("PnP-DETR", dataset, tmp_path, "--masks", "--amp", "bf16")) == 0
    [log] = map(json.loads, (tmp_path / "log.txt").read_text().splitlines())
    assert 0 < log["train_loss_dice"] < 10


@both
def test_a_mask_head_is_trained_alone(detector, dataset, tmp_path, capsys):
    """``--frozen_weights``: the detector is strictly the given one and stays so; epochs and drop are the published recipe's."""
    plain, out = tiny_checkpoint(tmp_path / "plain.pth", detector, 0), tmp_path / "out"
    argv = [x for x in run_of(detector, dataset, out, "--masks", "--frozen_weights", plain) if x not in ("--epochs", "1")]
    assert run_here(detector, *argv, "--eval_every", "25", "--epochs", "2") == 0
    before, after = read_checkpoint(plain)["model"], read_checkpoint(out / "checkpoint.pth")
    assert after["args"]["lr_drop"] == 15 and "which start anew" in capsys.readouterr().out
    same = [name for name in before if not any(part in name for part in ("running_", "tracked"))]
    assert all(torch.equal(before[name], after["model"][f"detr.{name}"]) for name in same)
    start = after["model"]["mask_head.lay1.weight"]
    continued = ("--coco_path", dataset, "--output_dir", out, "--epochs", "3", "--resume", out / "checkpoint.pth")
    assert run_here(detector, *continued, "--device", "cpu", "--num_workers", "0") == 0
    last = read_checkpoint(out / "checkpoint.pth")
    assert all(torch.equal(before[name], last["model"][f"detr.{name}"]) for name in same)
    assert not torch.equal(start, last["model"]["mask_head.lay1.weight"])


def test_published_panoptic_checkpoints_load():
    """DETR's names under ``detr.`` and the head's beside them, 250 classes: every key is consumed, and exported again."""
    shapes = json.loads((Path(__file__).parents[1] / "published" / "detr_r50.json").read_text())
    with torch.device("meta"):
        parts = {"mask_head": MaskHead(256, 8, (1024, 512, 256)), "bbox_attention": AttentionMaps(256, 8)}
        weights = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
        weights |= {f"detr.{name}": torch.empty(shape) for name, shape in shapes.items()}
        weights |= {"detr.class_embed.weight": torch.empty(251, 256), "detr.class_embed.bias": torch.empty(251)}
        args, detector = options("DETR-ENACT"), DETECTORS["DETR-ENACT"]
        assert follow_checkpoint(detector, args, set(), checkpoint := {"model": weights}, "x.pth") == []
        model = detector.build_model(args, checkpoint["num_classes"], False)
    assert args.masks and args.backbone == "resnet50" and checkpoint["num_classes"] == 250
    own = {name: value.shape for name, value in model.state_dict().items()}
    adapted = detector.adapt(weights, args.nheads)
    assert {name: value.shape for name, value in adapted.items()} == own
    assert detector.export(adapted, args.nheads).keys() == weights.keys()


@both
def test_a_detector_is_a_start_for_both_together(detector, dataset, tmp_path, capsys):
    """``--finetune`` with ``--masks``: the head is new, and everything is trained."""
    plain = tiny_checkpoint(tmp_path / "plain.pth", detector, 0)
    assert run_here(detector, *run_of(detector, dataset, tmp_path / "out", "--masks", "--finetune", plain)) == 0
    assert "mask_head" in capsys.readouterr().out
    exported = tmp_path / "exported.pth"
    assert run_here(detector, "--export", exported, "--resume", tmp_path / "out" / "checkpoint.pth") == 0
    names = read_checkpoint(exported)["model"].keys()
    assert {name.split(".")[0] for name in names} == {"detr", "bbox_attention", "mask_head"}


@torch.no_grad()
def test_masks_come_back_to_the_original_image(dataset):
    """Enlarged, cut off, cropped to the image, resized; in chunks as at once."""
    model = build("DETR-ENACT", "--masks")[0].eval()
    batch = batch_of(dataset)
    outputs = model(batch.images, batch.mask)
    queries, padded = torch.arange(10), batch.images.shape[-2:]
    height, width = batch.targets[1]["size"].tolist()
    found = image_masks(outputs["masks"], 1, queries, padded, (height, width), (33, 47))
    logits = outputs["masks"](torch.ones(10, dtype=torch.long), queries)
    probability = F.interpolate(logits[:, None], padded, mode="bilinear").sigmoid()[:, :, :height, :width]
    expected = F.interpolate((probability > 0.5).float(), (33, 47))[:, 0] > 0
    assert torch.equal(found, expected) and 0 < found.float().mean() < 1
    assert torch.equal(image_masks(outputs["masks"], 1, queries, padded, (height, width), (33, 47), chunk=3), expected)


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_follow_their_image(split, dataset):
    """Through every transform a mask stays inside its box; without crops, which may cut off a corner, it fills it."""
    images = build_dataset(dataset, split, 64, 0, masks=True)
    for index in range(len(images)):
        image, target = images[3, index]
        assert target["masks"].shape == (len(target["labels"]), *image.shape[1:]) and target["masks"].dtype == torch.bool
        size = torch.tensor(image.shape[:0:-1]).repeat(2)
        boxes = box_convert(target["boxes"], "cxcywh", "xyxy") * size
        seen = target["masks"].flatten(1).any(1)
        edges = masks_to_boxes(target["masks"][seen]) + torch.tensor([0, 0, 1, 1])
        inside = torch.tensor([1, 1, -1, -1]) * (edges - boxes[seen])
        assert (inside > -3).all() and (split == "train" or (inside < 2.5).all())
    assert "masks" not in build_dataset(dataset, split, 64, 0)[0][1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("segmentation"), "has no segmentation"),
        (lambda a: a.update(segmentation=[[1.0, 2.0]]), "neither polygons nor run lengths"),
        (lambda a: a.update(segmentation={"size": [3, 3], "counts": [9]}), "neither polygons nor run lengths"),
        (lambda a: a.update(segmentation="none"), "neither polygons nor run lengths"),
    ],
    ids=["none", "two numbers", "another size", "text"],
)
def test_bad_masks_end_with_one_sentence(change, said, dataset, tmp_path, capsys):
    """The annotation is named."""
    data = tmp_path / "data"
    (data / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (data / split).symlink_to(dataset / split)
        content = json.loads((dataset / "annotations" / f"instances_{split}.json").read_text())
        [change(a) for a in content["annotations"] if not a["iscrowd"]]
        (data / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    assert run_here("DETR-ENACT", *run_of("DETR-ENACT", data, tmp_path / "out", "--masks")) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert said in message and "annotation" in message and "--masks" in message


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--frozen_weights", "x.pth"), "pass --masks, too"),
        (("--masks", "--frozen_weights", "x.pth", "--finetune", "y.pth"), "choose one"),
        (("--masks", "--frozen_weights", "none.pth"), "none.pth"),
    ],
)
def test_contradictions(argv, said, dataset, tmp_path, capsys):
    """One sentence, and nothing is written."""
    assert run_here("DETR-ENACT", *run_of("DETR-ENACT", dataset, tmp_path / "out", *argv)) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1 and not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("detector", sorted(DETECTORS.keys() - SEGMENTERS))
def test_the_others_have_no_mask_head(detector, capsys):
    """One sentence instead of an unknown option."""
    assert run_here(detector, "--demo", "--masks") == 2
    message = capsys.readouterr().err
    assert f"{detector} has no mask head" in message and message.count("\n") == 1


def test_coco_knows_its_panoptic_categories():
    """A published panoptic file names none: its 250 classes tell things, up to 90, and stuff."""
    known = known_categories({"num_classes": 250})
    assert len(known["stuff"]) == 53 and min(known["stuff"]) > 90 and known["category_names"][187] == "sky-other-merged"
    assert known["category_names"][18] == "dog" and "stuff" not in known_categories({"num_classes": 91})


def test_weights_of_another_detector_cannot_be_frozen(dataset, tmp_path, capsys):
    """Its keys are named."""
    other = tiny_checkpoint(tmp_path / "other.pth", "Conditional-DETR-ENACT", 0)
    argv = run_of("DETR-ENACT", dataset, tmp_path / "out", "--masks", "--frozen_weights", str(other))
    assert run_here("DETR-ENACT", *argv) == 2
    assert "is one of Conditional-DETR-ENACT, and not a checkpoint of DETR-ENACT" in capsys.readouterr().err

"""COCO's average precision."""

from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO as EvaluatedCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools import mask
from pycocotools.coco import COCO
from torch import Tensor
from torchvision.ops import box_convert

# What the 12 numbers of ``coco_eval_bbox`` are.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def coco_results(image_ids: list[int], detections: list[dict[str, Tensor]]) -> list[dict[str, Any]]:
    """Detections (``scores`` (k,), ``labels`` (k,), ``boxes`` (k, 4) xyxy pixels, per image) in COCO's results format.

    They leave the device in one transfer.
    """
    boxes, labels, scores = (torch.cat([d[name] for d in detections]).double() for name in ("boxes", "labels", "scores"))
    rows = torch.cat((box_convert(boxes, "xyxy", "xywh"), labels[:, None], scores[:, None]), dim=1).tolist()
    ids = [image_id for image_id, d in zip(image_ids, detections, strict=True) for _ in range(len(d["scores"]))]
    return [{"image_id": i, "category_id": int(c), "bbox": box, "score": s} for i, (*box, c, s) in zip(ids, rows, strict=True)]


def coco_evaluation(truth: COCO, results: list[dict[str, Any]], kind: str = "bbox") -> COCOeval_faster:
    """COCO's evaluation, by faster-coco-eval, whose numbers are those of pycocotools but for the rounding of a mean.

    Args:
        truth: the annotations.
        results: detections in COCO's results format, of any subset of its images.
        kind: "bbox", or "segm" for masks.
    """
    if kind == "segm":
        areas = [mask.area(r["segmentation"]) for r in results]  # one by one: of a list, pycocotools 2.0.11 takes 255 at most
    else:
        areas = [r["bbox"][2] * r["bbox"][3] for r in results]
    area = [{"area": float(a), "iscrowd": 0, "id": i} for i, a in enumerate(areas, start=1)]
    found = truth.dataset | {"annotations": [r | extra for r, extra in zip(results, area)]}
    copied = truth.dataset | {"annotations": [dict(a) for a in truth.dataset["annotations"]]}  # the evaluation notes things in them
    evaluation = COCOeval_faster(EvaluatedCOCO(copied), EvaluatedCOCO(found), iouType=kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def coco_evaluate(truth: COCO, results: list[dict[str, Any]], kind: str = "bbox") -> list[float]:
    """The 12 numbers of COCO's evaluation (:data:`METRICS`); -1 where the ground truth has nothing to find."""
    return numbers_of(coco_evaluation(truth, results, kind))


def numbers_of(evaluation: COCOeval_faster) -> list[float]:
    """The 12 numbers of an evaluation."""
    return [float(x) for x in evaluation.stats[: len(METRICS)]]


def class_precisions(evaluation: COCOeval_faster) -> dict[int, list[float]]:
    """Category id -> AP, AP50, AP75, as in the 12 numbers; -1 where there is none to find."""
    precision = evaluation.eval["precision"]  # IoUs, recalls, categories, areas, most detections
    thresholds, found = evaluation.params.iouThrs, {}
    for k, category in enumerate(evaluation.params.catIds):
        of_class = precision[:, :, k, 0, -1]
        rows = (of_class, *(of_class[np.isclose(thresholds, iou)] for iou in (0.5, 0.75)))
        found[int(category)] = [float(row[row > -1].mean()) if (row > -1).any() else -1.0 for row in rows]
    return found

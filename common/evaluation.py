"""One pass over a dataset, and COCO's average precision, by pycocotools."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.ops import box_convert
from tqdm import tqdm

from .losses import Counts, SetCriterion
from .meter import Meter

# What the 12 numbers of ``coco_eval_bbox`` are.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    criterion: SetCriterion,
    postprocess: Callable,
    loader: DataLoader,
    accelerator: Accelerator,
) -> tuple[list[float], dict[str, float], list[dict[str, Any]]]:
    """Evaluates every image of the loader's dataset once.

    Three device synchronisations per batch beside the model's own: the matching, the losses and the detections.

    Returns:
        On the main process the 12 numbers of COCO's evaluation, the mean of every loss, and all detections in COCO's results
        format, in the order of the image ids. On the others the first and the last are empty.
    """
    model = accelerator.unwrap_model(model).eval()  # processes may have different numbers of batches: nothing is exchanged
    meter, results = Meter(), []
    for batch in tqdm(loader, desc="evaluation", disable=not accelerator.is_local_main_process, leave=False):
        batch = batch.to(accelerator.device)
        outputs = model(batch.images, batch.mask)
        seen = Counts.of(batch.targets, model.num_queries).to(accelerator.device, non_blocking=True)
        loss, log = criterion(outputs, batch.targets, Counts.normalised(seen, 1))
        log = {"loss": loss} | log
        meter.add(dict(zip(log, torch.stack(list(log.values())).tolist(), strict=True)), len(batch.targets))
        detections = postprocess(outputs, torch.stack([t["orig_size"] for t in batch.targets]))
        results += coco_results([t["image_id"] for t in batch.targets], detections)
    losses = meter.means(accelerator)
    results = gather_object(results)
    if not accelerator.is_main_process:
        return [], losses, []
    results.sort(key=lambda r: r["image_id"])  # stable: the detections of an image keep their order
    return coco_evaluate(loader.dataset.coco, results), losses, results


def coco_results(image_ids: list[int], detections: list[dict[str, Tensor]]) -> list[dict[str, Any]]:
    """Detections (``scores`` (k,), ``labels`` (k,), ``boxes`` (k, 4) xyxy pixels, per image) in COCO's results format.

    They leave the device in one transfer.
    """
    boxes, labels, scores = (torch.cat([d[name] for d in detections]).double() for name in ("boxes", "labels", "scores"))
    rows = torch.cat((box_convert(boxes, "xyxy", "xywh"), labels[:, None], scores[:, None]), dim=1).tolist()
    ids = [image_id for image_id, d in zip(image_ids, detections, strict=True) for _ in range(len(d["scores"]))]
    return [{"image_id": i, "category_id": int(c), "bbox": box, "score": s} for i, (*box, c, s) in zip(ids, rows, strict=True)]


def coco_evaluate(truth: COCO, results: list[dict[str, Any]]) -> list[float]:
    """The 12 numbers of COCO's box evaluation (:data:`METRICS`); -1 where the ground truth has nothing to find.

    Args:
        truth: the annotations.
        results: detections in COCO's results format, of any subset of its images.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, _index(truth, results), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(x) for x in evaluation.stats]


def _index(truth: COCO, results: list[dict[str, Any]]) -> COCO:
    """The results as pycocotools wants them; its own ``loadRes`` fails where there are none and writes into what it gets."""
    detections = COCO()
    area = [{"area": r["bbox"][2] * r["bbox"][3], "iscrowd": 0, "id": i} for i, r in enumerate(results, start=1)]
    detections.dataset = truth.dataset | {"annotations": [r | extra for r, extra in zip(results, area)]}
    detections.createIndex()
    return detections

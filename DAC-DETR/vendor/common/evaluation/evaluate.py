"""One pass over a dataset."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..detector import Detector
from ..losses.criterion import Criterion
from ..models.model import DetectionModel
from ..output.meter import Meter
from .coco import coco_evaluate, coco_results
from .postprocess import PostProcess


class Evaluation(NamedTuple):
    """What an evaluation found; on other processes than the main one ``stats`` and ``results`` are empty.

    Attributes:
        stats: the 12 numbers of COCO's evaluation.
        losses: the mean of every loss.
        results: all detections in COCO's results format, in the order of the image ids.
    """

    stats: list[float]
    losses: dict[str, float]
    results: list[dict[str, Any]]


def evaluate_all(
    detector: Detector, args: Namespace, model: DetectionModel, criterion: Criterion, loader: DataLoader, accelerator: Accelerator
) -> dict[str, Evaluation]:
    """All evaluations of a detector by their names, see ``Detector.evaluations``; the first is the one that counts."""
    postprocess, found = detector.build_postprocess(args), {}
    for name, attributes in detector.evaluations(args).items():
        with _changed(accelerator.unwrap_model(model), attributes):
            found[name] = evaluate(model, criterion, postprocess, loader, accelerator)
    return found


@contextmanager
def _changed(model: DetectionModel, attributes: Mapping[str, Any]) -> Iterator[None]:
    before = {name: getattr(model, name) for name in attributes}
    vars(model).update(attributes)
    try:
        yield
    finally:
        vars(model).update(before)


@torch.no_grad()
def evaluate(
    model: DetectionModel, criterion: Criterion, postprocess: PostProcess, loader: DataLoader, accelerator: Accelerator
) -> Evaluation:
    """Evaluates every image of the loader's dataset once.

    Three device synchronisations per batch beside the model's own: the matching, the losses and the detections.
    """
    model = accelerator.unwrap_model(model).eval()  # processes may have different numbers of batches: nothing is exchanged
    meter, results = Meter(), []
    for batch in tqdm(loader, desc="evaluation", disable=not accelerator.is_local_main_process, leave=False):
        batch = batch.to(accelerator.device)
        outputs = model(batch.images, batch.mask)
        count = criterion.count(batch.targets).to(accelerator.device, non_blocking=True)
        loss, log = criterion(outputs, batch.targets, count)
        log = {"loss": loss} | log
        meter.add(dict(zip(log, torch.stack(list(log.values())).tolist(), strict=True)), len(batch.targets))
        detections = postprocess(outputs, torch.stack([t["orig_size"] for t in batch.targets]))
        results += coco_results([t["image_id"] for t in batch.targets], detections)
    losses = meter.means(accelerator)
    results = gather_object(results)
    if not accelerator.is_main_process:
        return Evaluation([], losses, [])
    results.sort(key=lambda r: r["image_id"])  # stable: the detections of an image keep their order
    return Evaluation(coco_evaluate(loader.dataset.coco, results), losses, results)

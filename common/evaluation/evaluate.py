"""One pass over a dataset."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.loading import Batch
from ..data.panoptic import CocoPanoptic
from ..detector import Detector
from ..losses.criterion import Criterion
from ..models.mask_head import QueryMasks
from ..models.model import DetectionModel
from ..output.meter import Meter
from .coco import class_precisions, coco_evaluation, coco_results, numbers_of
from .masks import Sizes, image_masks, run_lengths, sizes_of
from .panoptic import PanopticEvaluation
from .postprocess import PostProcess, with_category_ids


class Evaluation(NamedTuple):
    """What an evaluation found; on other processes than the main one ``stats`` and ``results`` are empty.

    Attributes:
        stats: by DETR's names, the 12 numbers of COCO's evaluation of boxes (``coco_eval_bbox``) and, where there are any, of masks
            (``coco_eval_masks``); of panoptic segmentation the quality (``PQ_all``, ``PQ_th``, ``PQ_st``).
        losses: the mean of every loss.
        results: all detections in COCO's results format, in the order of the image ids.
        panoptic: all panoptic maps in COCO's format; empty without.
        per_class: of boxes and masks, by the names of ``stats``: category id -> AP, AP50, AP75.
    """

    stats: dict[str, list[float]]
    losses: dict[str, float]
    results: list[dict[str, Any]]
    panoptic: dict[str, Any]
    per_class: dict[str, dict[int, list[float]]]


def evaluate_all(
    detector: Detector,
    args: Namespace,
    model: DetectionModel,
    criterion: Criterion,
    loader: DataLoader,
    accelerator: Accelerator,
    folder: Path | None = None,
) -> dict[str, Evaluation]:
    """All evaluations of a detector by their names, see ``Detector.evaluations``; the first is the one that counts, whose panoptic
    maps are written to a folder where one is given.
    """
    ids, found = loader.dataset.category_ids, {}
    postprocess = with_category_ids(detector.build_postprocess(args), ids, accelerator.device)
    for name, attributes in detector.evaluations(args).items():
        panoptic = None
        if isinstance(loader.dataset, CocoPanoptic) and loader.dataset.masks:
            panoptic = PanopticEvaluation(loader.dataset, args.panoptic_threshold, None if found else folder)
        with _changed(accelerator.unwrap_model(model).detector, attributes):
            found[name] = evaluate(model, criterion, postprocess, loader, accelerator, panoptic)
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
    model: DetectionModel,
    criterion: Criterion,
    postprocess: PostProcess,
    loader: DataLoader,
    accelerator: Accelerator,
    panoptic: PanopticEvaluation | None = None,
) -> Evaluation:
    """Evaluates every image of the loader's dataset once, and its panoptic map where asked.

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
        orig_sizes = torch.stack([t["orig_size"] for t in batch.targets])
        found = coco_results([t["image_id"] for t in batch.targets], postprocess(outputs, orig_sizes))
        if "masks" in outputs:
            sizes = sizes_of(batch)
            for result, mask in zip(found, _all_masks(outputs["masks"], batch, sizes), strict=True):
                result["segmentation"] = mask
            if panoptic:
                panoptic.add(outputs, batch, sizes)
        results += found
    losses = meter.means(accelerator)
    results = gather_object(results)
    quality, maps = panoptic.finish(accelerator) if panoptic else ({}, {})
    if not accelerator.is_main_process:
        return Evaluation({}, losses, [], {}, {})
    results.sort(key=lambda r: r["image_id"])  # stable: the detections of an image keep their order
    kinds = {"bbox": "bbox"} | ({"masks": "segm"} if results and "segmentation" in results[0] else {})
    found = {f"coco_eval_{name}": coco_evaluation(loader.dataset.truth, results, kind) for name, kind in kinds.items()}
    stats = {name: numbers_of(evaluation) for name, evaluation in found.items()}
    per_class = {name: class_precisions(evaluation) for name, evaluation in found.items()}
    return Evaluation(stats | quality, losses, results, maps, per_class)


def _all_masks(masks: QueryMasks, batch: Batch, sizes: Sizes) -> list[dict[str, Any]]:
    """COCO's run lengths of every query, image after image."""
    queries = torch.arange(masks.hs.shape[1], device=masks.hs.device)
    found = []
    for i, (size, orig_size) in enumerate(sizes):
        found += run_lengths(image_masks(masks, i, queries, batch.images.shape[-2:], size, orig_size))
    return found

"""One pass over a dataset."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..losses.criterion import Criterion
from ..models.model import DetectionModel
from ..output.meter import Meter
from .coco import coco_evaluate, coco_results
from .postprocess import PostProcess


@torch.no_grad()
def evaluate(
    model: DetectionModel, criterion: Criterion, postprocess: PostProcess, loader: DataLoader, accelerator: Accelerator
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
        count = criterion.count(batch.targets).to(accelerator.device, non_blocking=True)
        loss, log = criterion(outputs, batch.targets, count)
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

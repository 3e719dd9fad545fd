"""From a model's outputs to panoptic maps and their quality.

Shapes: B images, Q queries, C classes, K queries that are kept, H x W pixels of the padded batch.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..boundary.outputs import make_folder
from ..data.annotations import stuff_of
from ..data.loading import Batch
from ..data.panoptic import CocoPanoptic, digits_of
from ..models.mask_head import QueryMasks
from .masks import CHUNK, Sizes, enlarged
from .panoptic_quality import add, compare, panoptic_quality

SMALL = 4  # pixels of a segment that is dropped


def panoptic_map(
    outputs: dict[str, Any],
    image: int,
    padded: tuple[int, int],
    size: tuple[int, int],
    orig_size: tuple[int, int],
    *,
    category_ids: Sequence[int],
    stuff: Collection[int],
    threshold: float,
    chunk: int = CHUNK,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The segment of every pixel of an image (DETR, section 4.4): the strongest mask among the queries that are sure of their
    class, those of one stuff class together.

    Args:
        outputs: of a model with masks whose last class is "no object".
        image, padded, size, orig_size: as for :func:`image_masks`.
        category_ids: the id of each class number.
        stuff: ids of categories whose segments are merged.
        threshold: least probability of a query's class.
        chunk: how many masks are computed at once.

    Returns:
        (h, w) int64 ids from 1 of the original image's pixels, all 0 where no query is sure, and COCO's ``segments_info``.
    """
    scores, labels = outputs["pred_logits"][-1, image].float().softmax(-1).max(-1)
    queries = ((labels < outputs["pred_logits"].shape[-1] - 1) & (scores > threshold)).nonzero()[:, 0]
    categories = [category_ids[c] for c in labels[queries].tolist()]
    first: dict[int, int] = {}
    merged = [first.setdefault(c, k) if c in stuff else k for k, c in enumerate(categories)]
    while len(queries):
        strongest = torch.tensor(merged, device=queries.device)[_strongest(outputs["masks"], image, queries, padded, size, chunk)]
        found = F.interpolate(strongest[None, None].float(), orig_size, mode="nearest-exact")[0, 0].long()
        areas = found.flatten().bincount(minlength=len(queries))
        large = areas > SMALL
        if large.all():
            rows = zip(categories, areas.tolist())
            info = [{"id": k, "category_id": c, "area": area} for k, (c, area) in enumerate(rows, start=1)]
            return (found + 1).cpu().numpy(), info
        queries, categories = queries[large], [c for c, kept in zip(categories, large.tolist()) if kept]
        merged = list(range(len(queries)))  # what was merged has no pixels of its own, and is gone
    return np.zeros(orig_size, dtype=np.int64), []


def _strongest(
    masks: QueryMasks, image: int, queries: Tensor, padded: tuple[int, int], size: tuple[int, int], chunk: int
) -> Tensor:
    """Which of the queries (K,) has the largest logit at each pixel of the image as the model sees it: (h, w)."""
    best = index = None
    before = 0
    for logits in enlarged(masks, image, queries, padded, size, chunk):
        value, found = logits.max(0)
        if best is None:
            best, index = value, found
        else:
            index, best = torch.where(value > best, found + before, index), torch.maximum(value, best)
        before += len(logits)
    return index


class PanopticEvaluation:
    """Panoptic maps of a dataset, written where asked, and their quality.

    Args:
        dataset: what is evaluated.
        threshold: least probability of a query's class.
        folder: to write ``panoptic/`` to, a PNG per image in COCO's format; None for the quality alone.
    """

    def __init__(self, dataset: CocoPanoptic, threshold: float, folder: Path | None = None):
        self.dataset, self.threshold, self.folder = dataset, threshold, folder
        self.stuff = frozenset(stuff_of(dataset.coco))
        self.found: list[tuple[dict[str, Any], dict]] = []
        if folder:
            make_folder(folder / "panoptic")

    def add(self, outputs: dict[str, Any], batch: Batch, sizes: Sizes) -> None:
        """The images of a batch, with their sizes by :func:`sizes_of`."""
        for i, (size, orig_size) in enumerate(sizes):
            image_id = batch.targets[i]["image_id"]
            options = {"category_ids": self.dataset.category_ids, "stuff": self.stuff, "threshold": self.threshold}
            ids, segments = panoptic_map(outputs, i, batch.images.shape[-2:], size, orig_size, **options)
            counts = compare(self.dataset.segments(image_id), self.dataset.coco.imgToAnns[image_id], ids, segments)
            name = self.dataset.segment_file(image_id).name
            self.found.append(({"image_id": image_id, "file_name": name, "segments_info": segments}, counts))
            if self.folder:
                Image.fromarray(digits_of(ids)).save(self.folder / "panoptic" / name)

    def finish(self, accelerator: Accelerator) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
        """On the main process the quality of all images, DETR's names for all categories, things and stuff, and COCO's JSON."""
        found = gather_object(self.found)
        if not accelerator.is_main_process:
            return {}, {}
        found.sort(key=lambda pair: pair[0]["image_id"])
        counts, categories = add(counts for _, counts in found), self.dataset.coco.cats.keys()
        groups = {"PQ_all": categories, "PQ_th": categories - self.stuff, "PQ_st": self.stuff}
        content = {name: self.dataset.coco.dataset[name] for name in ("images", "categories")}
        quality = {name: panoptic_quality(counts, group) for name, group in groups.items()}
        return quality, content | {"annotations": [annotation for annotation, _ in found]}

"""Panoptic quality (Kirillov et al., CVPR 2019), as COCO's evaluation counts it."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..data.panoptic import VOID


class Count(NamedTuple):
    """What a category's quality follows from: its matched, wrong and missed segments, and the sum of the matched ones' IoU."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou: float = 0.0


def compare(
    truth: np.ndarray, true_segments: Iterable[Mapping[str, Any]], found: np.ndarray, found_segments: Iterable[Mapping[str, Any]]
) -> dict[int, Count]:
    """Counts of one image, by category.

    Segments of one category match where their IoU is above 0.5, which no two pairs of one segment can be. Void pixels of the truth
    belong to no union. Wrong is what lies to more than half neither on void nor on crowds of its category.

    Args:
        truth, found: (H, W) ids of segments.
        true_segments: ``segment``, ``category_id``, ``iscrowd`` of each id but :data:`VOID`.
        found_segments: ``id``, ``category_id`` of each id; what is in none is void.
    """
    both, counts = np.unique(np.stack((truth.ravel(), found.ravel())), axis=1, return_counts=True)
    overlap = {(int(t), int(f)): int(n) for (t, f), n in zip(both.T, counts)}
    true_area, found_area = Counter(), Counter()
    for (t, f), n in overlap.items():
        true_area[t] += n
        found_area[f] += n
    category = {s["id"]: s["category_id"] for s in found_segments}
    missed = {s["segment"]: s["category_id"] for s in true_segments if not s["iscrowd"]}
    crowds = {s["segment"]: s["category_id"] for s in true_segments if s["iscrowd"]}
    wrong, matched = dict(category), []
    for (t, f), n in overlap.items():
        iou = n / (true_area[t] + found_area[f] - overlap.get((VOID, f), 0) - n) if t != VOID else 0.0
        if iou > 0.5 and t in missed and missed[t] == category.get(f):
            matched.append((wrong.pop(f), iou))
            del missed[t]
    for f, c in list(wrong.items()):
        ignored = overlap.get((VOID, f), 0) + sum(overlap.get((t, f), 0) for t, other in crowds.items() if other == c)
        if ignored > found_area[f] / 2:
            del wrong[f]
    tp, fp, fn = Counter(c for c, _ in matched), Counter(wrong.values()), Counter(missed.values())
    ious = {c: sum(iou for other, iou in matched if other == c) for c in tp}
    return {c: Count(tp[c], fp[c], fn[c], ious.get(c, 0.0)) for c in tp.keys() | fp.keys() | fn.keys()}


def add(counts: Iterable[Mapping[int, Count]]) -> dict[int, Count]:
    """The counts of several images together."""
    total: dict[int, Count] = {}
    for of_image in counts:
        for category, count in of_image.items():
            total[category] = Count(*map(sum, zip(total.get(category, Count()), count)))
    return total


def panoptic_quality(counts: Mapping[int, Count], categories: Collection[int]) -> dict[str, float]:
    """``pq``, ``sq`` and ``rq`` in [0, 1], means over the ``n`` categories that were there or were found; 0 without any."""
    rows = []
    for category in categories:
        tp, fp, fn, iou = counts.get(category, Count())
        if tp + fp + fn:
            detected = tp / (tp + fp / 2 + fn / 2)
            rows.append((iou / tp * detected if tp else 0.0, iou / tp if tp else 0.0, detected))
    pq, sq, rq = np.mean(rows, axis=0).tolist() if rows else (0.0, 0.0, 0.0)
    return {"pq": pq, "sq": sq, "rq": rq, "n": len(rows)}

"""Panoptic quality against torchmetrics, and by hand where that counts no crowds."""

import numpy as np
import pytest
import torch
from torchmetrics.detection import PanopticQuality

from common.evaluation.panoptic_quality import Count, add, compare, panoptic_quality

THINGS, STUFF = (1, 2, 3), (7, 8)


def random_map(rng: np.random.Generator, like: np.ndarray | None = None) -> tuple[np.ndarray, list[dict]]:
    """Segments that are rectangles, the ground being one of stuff, with void between; or nearly those of another map."""
    if like is not None:
        ids = np.where(rng.random(like.shape) < 0.1, np.roll(like, 2, axis=1), like)
        ids[ids == 0] = 8  # torchmetrics takes void of the prediction out of the union, which COCO does not
    else:
        ids = np.full((24, 30), 1)
        for k in range(2, 9):
            y, x, h, w = rng.integers((0, 0, 4, 4), (20, 26, 14, 14))
            ids[y : y + h, x : x + w] = k if k < 8 else 0
    categories = {1: int(rng.choice(STUFF))} | {k: int(rng.choice(THINGS)) for k in range(2, 9)}
    present = sorted(set(np.unique(ids).tolist()) - {0})
    return ids, [{"id": k, "segment": k, "category_id": categories[k], "iscrowd": 0} for k in present]


def as_pairs(ids: np.ndarray, segments: list[dict]) -> torch.Tensor:
    """What torchmetrics takes: category and instance of every pixel, category 99 being void."""
    category = np.full_like(ids, 99)
    for segment in segments:
        category[ids == segment["id"]] = segment["category_id"]
    return torch.from_numpy(np.stack([category, ids], axis=-1))[None]


def test_it_is_that_of_torchmetrics():
    """Things, stuff, void, wrong classes, matches and misses over many images: every category's quality, to its float32."""
    rng = np.random.default_rng(0)
    reference = PanopticQuality(
        set(THINGS), set(STUFF), allow_unknown_preds_category=True, return_sq_and_rq=True, return_per_class=True
    )
    counts = []
    for _ in range(40):
        truth, segments = random_map(rng)
        found, guesses = random_map(rng, like=truth)
        right = {s["id"]: s["category_id"] for s in segments}
        guesses = [g | {"category_id": right.get(g["id"], 1)} if rng.random() < 0.8 else g for g in guesses]
        reference.update(as_pairs(found, guesses), as_pairs(truth, segments))
        counts.append(compare(truth, segments, found, guesses))
    total = add(counts)
    assert sum(c.tp for c in total.values()) > 40 and sum(c.fp for c in total.values()) > 20 and total[2].fn > 5
    expected = reference.compute().double().reshape(-1, 3)
    for category, (pq, sq, rq) in zip((*THINGS, *STUFF), expected.tolist()):
        assert panoptic_quality(total, [category]) == pytest.approx({"pq": pq, "sq": sq, "rq": rq, "n": 1}, abs=1e-6)
    mean = panoptic_quality(total, [*THINGS, *STUFF, 50])  # a category that is nowhere does not count
    assert (mean["pq"], mean["n"]) == (pytest.approx(expected[:, 0].mean().item(), abs=1e-6), 5)


def test_crowds_and_void_excuse_what_lies_on_them():
    """A segment that is mostly on a crowd of its class, or on void, is not wrong; one on a crowd of another class is."""
    truth = np.repeat([0, 1, 2, 3], 10)[None]  # void, two crowds, an object
    segments = [
        {"segment": 1, "category_id": 1, "iscrowd": 1},
        {"segment": 2, "category_id": 2, "iscrowd": 1},
        {"segment": 3, "category_id": 1, "iscrowd": 0},
    ]
    found = truth + 1
    guesses = [{"id": k, "category_id": 1} for k in (1, 2, 3, 4)]
    assert compare(truth, segments, found, guesses) == {1: Count(tp=1, fp=1, fn=0, iou=1.0)}
    assert compare(truth, segments, found, [{"id": 4, "category_id": 2}]) == {1: Count(fn=1), 2: Count(fp=1)}


def test_void_is_in_no_union():
    """Half of what was found lies on void: the IoU is that of the other half."""
    truth, found = np.array([[0, 0, 0, 1, 1, 1]]), np.ones((1, 6), dtype=int)
    segments = [{"segment": 1, "category_id": 1, "iscrowd": 0}]
    assert compare(truth, segments, found, [{"id": 1, "category_id": 1}]) == {1: Count(tp=1, iou=1.0)}


def test_nothing_has_no_quality():
    """No segments, and no images."""
    assert compare(np.zeros((2, 2), int), [], np.zeros((2, 2), int), []) == {}
    assert panoptic_quality({}, [1, 2]) == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 0}

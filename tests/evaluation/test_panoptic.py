"""Panoptic maps against the rule applied to all masks at once."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.evaluation.panoptic import panoptic_map

IDS = (10, 11, 12, 20, 5_000_000)  # of the categories with the numbers 0 to 4
STUFF, THRESHOLD = (3, 4), 0.5
PADDED, SIZE, ORIG_SIZE = (32, 40), (28, 36), (56, 72)


def outputs_of(categories: list[int], probabilities: list[float], logits: torch.Tensor) -> dict:
    """Of a model with the classes 0 to 4 and "no object", 5."""
    scores = torch.full((1, 1, len(categories), 6), 1e-9)
    for q, (category, p) in enumerate(zip(categories, probabilities)):
        scores[0, 0, q, category] = p
        scores[0, 0, q, 5 - (category == 5)] = 1 - p
    return {"pred_logits": scores.log(), "masks": lambda image, query: logits[query]}


def found_of(*example, chunk: int = 20) -> tuple[np.ndarray, list]:
    options = {"category_ids": IDS, "stuff": [IDS[c] for c in STUFF], "threshold": THRESHOLD, "chunk": chunk}
    return panoptic_map(outputs_of(*example), 0, PADDED, SIZE, ORIG_SIZE, **options)


def by_the_rule(categories: list[int], logits: torch.Tensor) -> tuple[np.ndarray, int]:
    """The category of each pixel, and how many segments there are: softmax over all queries; stuff of one class together; small
    ones go, and then all again.
    """
    large = F.interpolate(logits[None], PADDED, mode="bilinear")[0, :, : SIZE[0], : SIZE[1]]
    alive, merge = list(range(len(categories))), True
    while True:
        owner = large[alive].softmax(0).argmax(0)
        if merge:
            for category in STUFF:
                same = [i for i, q in enumerate(alive) if categories[q] == category]
                for other in same[1:]:
                    owner[owner == other] = same[0]
        owner = owner.repeat_interleave(2, 0).repeat_interleave(2, 1)
        small = [q for i, q in enumerate(alive) if (owner == i).sum() <= 4]
        if not small:
            return np.array([categories[q] for q in alive])[owner.numpy()], len(alive)
        alive, merge = [q for q in alive if q not in small], False


@pytest.mark.parametrize("chunk", [2, 20])
def test_maps_follow_the_rule(chunk):
    """Merged stuff, small segments and chunks of queries; areas and ids are those of the map."""
    for seed in range(8):
        logits = 3 * torch.randn(9, 8, 10, generator=torch.Generator().manual_seed(seed))
        logits[4] -= 4  # seen in a few pixels or none
        categories = [0, 1, 3, 3, 2, 4, 3, 5, 1]
        sure = [0.9] * 8 + [0.3]  # the last query is not sure, the one before it sees no object
        ids, segments = found_of(categories, sure, logits, chunk=chunk)
        expected, count = by_the_rule(categories[:7], logits[:7])
        of_id = {s["id"]: s["category_id"] for s in segments}
        assert ids.shape == ORIG_SIZE and len(segments) == count
        assert (np.vectorize(of_id.get)(ids) == np.take(IDS, expected)).all()
        assert {s["id"]: s["area"] for s in segments} == dict(zip(*(x.tolist() for x in np.unique(ids, return_counts=True))))
        assert sum(s["category_id"] == IDS[3] for s in segments) == 1


def test_a_small_segment_goes_and_its_pixels_to_the_next():
    """A mask of one pixel at the model's size, 4 originally."""
    logits = torch.zeros(2, *PADDED)
    logits[1] = -1
    logits[1, 5, 5] = 1
    ids, segments = found_of([0, 1], [0.9, 0.9], logits)
    assert (ids == 1).all() and segments == [{"id": 1, "category_id": IDS[0], "area": ids.size}]


def test_nobody_is_sure():
    """Void, and no segments."""
    ids, segments = found_of([0, 5], [0.4, 0.9], torch.zeros(2, 8, 10))
    assert segments == [] and ids.shape == ORIG_SIZE and not ids.any()

"""One-to-many assignment and the losses of all branches, against loops in float64."""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from common.losses.matching import pair
from dac_detr.assignment import assign_image, assignment_scores
from dac_detr.recipe import DETECTOR
from tools.detectors import options


def by_loops(scores: np.ndarray) -> list[tuple[int, int]]:
    """The pairs of one image, where not more than 75 queries are candidates."""
    queries, objects = scores.shape
    if not objects:
        return []
    candidates = {j: set() for j in range(objects)}
    favourites = {max(range(queries), key=lambda q: (scores[q, j], -q)) for j in range(objects)}
    for q in range(queries):
        best = max(range(objects), key=lambda j: (scores[q, j], -j))
        if scores[q, best] >= np.float32(0.4) or q in favourites:
            candidates[best].add(q)
    pairs = []
    for j in range(objects):
        ranked = sorted(range(queries), key=lambda q: (-scores[q, j], q))
        pairs += [(q, j) for q in ranked[: min(6, len(candidates[j]))]]
    return pairs


@pytest.mark.parametrize("seed", range(20))
def test_pairs_are_those_of_the_loop(seed):
    """Random scores, from few good ones to many, with few queries and with many."""
    generator = np.random.default_rng(seed)
    queries, objects = int(generator.integers(1, 60)), int(generator.integers(1, 8))
    scores = generator.random((queries, objects)).astype(np.float32) * generator.choice([0.3, 0.5, 1.0])
    assert list(zip(*assign_image(scores))) == by_loops(scores)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (np.zeros((4, 0)), []),
        ([[0.1], [0.3], [0.2]], [(1, 0)]),  # none is good enough: the best one all the same
        ([[0.9, 0.5], [0.1, 0.2]], [(0, 0)]),  # object 1's best query prefers object 0: it stays without
        ([[0.9, 0.8], [0.2, 0.5], [0.3, 0.1]], [(0, 0), (0, 1)]),  # both take the same query
        ([[0.5], [0.6]], [(1, 0), (0, 0)]),  # fewer queries than six
    ],
)
def test_special_cases(scores, expected):
    """What the rule leads to, as published."""
    scores = np.asarray(scores, dtype=np.float32)
    assert list(zip(*assign_image(scores))) == expected == by_loops(scores)


def test_of_more_than_75_candidates_some_are_dropped_by_the_seed():
    """Twenty objects with ten good queries each: with 75 of 200 candidates no object keeps six on average; the seed fixes which."""
    scores = np.full((200, 20), 0.1, dtype=np.float32)
    scores[np.arange(200), np.arange(200) // 10] = 0.9
    torch.manual_seed(0)
    first = assign_image(scores)
    again = assign_image(scores)
    torch.manual_seed(0)
    assert all(np.array_equal(a, b) for a, b in zip(first, assign_image(scores)))
    assert not np.array_equal(first[0], again[0])
    assert 60 <= len(first[0]) <= 75 and np.bincount(first[1]).max() <= 6


def test_scores_mix_the_boxes_of_one_decoder_with_the_classes_of_the_other():
    """0.7 IoU of the O-decoder's box and 0.3 of the C-decoder's probability, per layer and image."""
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(2, 2, 6, 5, generator=generator), torch.rand(2, 2, 6, 4, generator=generator)
    targets = [
        {"labels": torch.randint(5, (n,), generator=generator), "boxes": torch.rand(n, 4, generator=generator)} for n in (3, 0)
    ]
    scores = assignment_scores(logits, boxes, targets)
    assert scores.shape == (2, 6, 3)
    for layer in range(2):
        corners = [box_convert(x, "cxcywh", "xyxy") for x in (boxes[layer, 0], targets[0]["boxes"])]
        expected = 0.7 * box_iou(*corners) + 0.3 * logits[layer, 0].sigmoid()[:, targets[0]["labels"]]
        torch.testing.assert_close(scores[layer], expected)
    pairs = pair(scores.numpy(), targets, torch.device("cpu"), assign_image)
    assert set(pairs.layer.tolist()) == {0, 1} and set(pairs.image.tolist()) == {0}


LAYERS, QUERIES, TOKENS, CLASSES, GROUPS = 3, 14, 30, 7, 2


def predictions(sizes: list[int]) -> tuple[dict, list[dict[str, Tensor]]]:
    """Random predictions of all branches for images with as many objects as ``sizes`` says, and the objects.

    In each image one prediction in three lies near an object, as else no query would be a candidate.
    """
    generator = torch.Generator().manual_seed(1)

    def boxes(*shape: int) -> Tensor:
        corners = torch.rand(*shape, 4, generator=generator)
        return corners * 0.4 + torch.tensor([0.3, 0.3, 0.1, 0.1])

    targets = [{"labels": torch.randint(1, CLASSES, (n,), generator=generator), "boxes": boxes(n)} for n in sizes]

    def branch(layers: int, number: int) -> dict[str, Tensor]:
        logits = torch.randn(layers, len(sizes), number, CLASSES, generator=generator)
        found = boxes(layers, len(sizes), number)
        for image, target in enumerate(targets):
            for query in range(0, number if sizes[image] else 0, 3):
                found[:, image, query] = target["boxes"][query % sizes[image]] + 0.01 * found[:, image, query]
        return {"pred_logits": logits, "pred_boxes": found}

    slots = 2 * max(sizes) * GROUPS
    outputs = branch(LAYERS, QUERIES) | {"cross": branch(LAYERS, QUERIES), "proposals": branch(1, TOKENS), "groups": GROUPS}
    return outputs | {"denoising": branch(LAYERS, slots), "cross_denoising": branch(LAYERS, slots)}, targets


def corners(box: Tensor) -> Tensor:
    return box_convert(box[None], "cxcywh", "xyxy")


def one_to_one(logits: Tensor, boxes: Tensor, labels: list[int], objects: Tensor) -> list[tuple[int, int]]:
    """The pairs of one image: costs 2, 5 and 2 of class, L1 and GIoU."""

    def cost(query: int, number: int) -> float:
        p = logits[query, labels[number]].sigmoid().item()
        focal = -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)
        giou = generalized_box_iou(corners(boxes[query]), corners(objects[number])).item()
        return 2 * focal + 5 * (boxes[query] - objects[number]).abs().sum().item() - 2 * giou

    costs = [[cost(query, number) for number in range(len(labels))] for query in range(len(logits))]
    return list(zip(*linear_sum_assignment(np.array(costs).reshape(len(logits), len(labels)))))


def one_to_many(logits: Tensor, boxes: Tensor, labels: list[int], objects: Tensor) -> list[tuple[int, int]]:
    """The pairs of one image, from the classes of the C-decoder and the boxes of the O-decoder."""
    scores = np.zeros((len(logits), len(labels)), dtype=np.float32)
    for query, number in np.ndindex(*scores.shape):
        iou = box_iou(corners(boxes[query]), corners(objects[number])).item()
        scores[query, number] = 0.7 * iou + 0.3 * logits[query, labels[number]].sigmoid().item()
    return by_loops(scores)


def summed(logits: Tensor, boxes: Tensor, labels: list[int], objects: Tensor, pairs: list, aligned: bool, ranked: bool) -> dict:
    """The sums over one layer and image."""
    iou = [box_iou(corners(boxes[q]), corners(objects[j])).item() for q, j in pairs]
    p = [logits[q, labels[j]].sigmoid().item() for q, j in pairs]
    quality = [max(a**0.25 * b**0.75, 0.01) for a, b in zip(p, iou)]
    ranks = [1.0] * len(pairs)
    if ranked:
        better = [sum(v > u and k == j for v, (_, k) in zip(quality, pairs)) for u, (_, j) in zip(quality, pairs)]
        ranks = [math.exp(-number / 1.5) for number in better]
    wanted = {(q, labels[j]): u * r for (q, j), u, r in sorted(zip(pairs, quality, ranks), key=lambda x: x[0][1])}
    classes = 0.0
    for query, row in enumerate(logits.sigmoid().tolist()):
        for label, p in enumerate(row):
            w = wanted.get((query, label))
            if aligned:
                classes -= p**2 * math.log(1 - p) if w is None else w * math.log(p) + (1 - w) * math.log(1 - p)
            else:
                classes -= 0.75 * p**2 * math.log(1 - p) if w is None else 0.25 * (1 - p) ** 2 * math.log(p)
    distance = sum(r * (boxes[q] - objects[j]).abs().sum().item() for (q, j), r in zip(pairs, ranks))
    giou = sum(r * (1 - generalized_box_iou(corners(boxes[q]), corners(objects[j])).item()) for (q, j), r in zip(pairs, ranks))
    return {"loss_ce": classes, "loss_bbox": distance, "loss_giou": giou}


def direct(outputs: dict, targets: list[dict[str, Tensor]], ice: bool) -> dict[str, float]:
    """Every loss without its weight, one layer and image at a time, in float64."""
    targets = [{"labels": t["labels"], "boxes": t["boxes"].double()} for t in targets]
    numbers = [list(range(len(t["labels"]))) for t in targets]
    count, most = sum(map(len, numbers)), max(map(len, numbers))
    slots = [[(g * 2 * most + j, j) for g in range(GROUPS) for j in own] for own in numbers]
    branches = {  # predictions, suffix, what the sums are divided by
        "o": (outputs, "{}_one2one", count),
        "c": (outputs["cross"], "{}", 3 * count),
        "o denoising": (outputs["denoising"], "_dn{}_one2one", count * GROUPS),
        "c denoising": (outputs["cross_denoising"], "_dn{}", count * GROUPS),
        "proposals": (outputs["proposals"], "_enc", count),
    }
    losses = {}
    for branch, (found, suffix, divisor) in branches.items():
        for layer, (logits, boxes) in enumerate(zip(found["pred_logits"].double(), found["pred_boxes"].double())):
            end = suffix.format("" if layer == len(found["pred_logits"]) - 1 else f"_{layer}")
            for image, target in enumerate(targets):
                labels = [0] * len(numbers[image]) if branch == "proposals" else target["labels"].tolist()
                own = (logits[image], boxes[image], labels, target["boxes"])
                if branch == "c":
                    pairs = one_to_many(logits[image], outputs["pred_boxes"][layer, image].double(), labels, target["boxes"])
                else:
                    pairs = slots[image] if "denoising" in branch else one_to_one(*own)
                sums = summed(*own, pairs, ice and branch != "proposals", ice and branch == "c")
                for name, value in sums.items():
                    losses[f"{name}{end}"] = losses.get(f"{name}{end}", 0.0) + value / max(divisor, 1)
    return losses


@pytest.mark.parametrize("ice", [True, False], ids=["IoU-aware", "focal"])
@pytest.mark.parametrize("sizes", [[3, 0, 1], [4, 2], [0, 0]], ids=str)
def test_losses_of_all_branches_equal_the_direct_computation(sizes, ice):
    """Protects assignment, rank weights, divisors, weights and names of every loss together."""
    outputs, targets = predictions(sizes)
    args: Namespace = options("DAC-DETR", [] if ice else ["--no-ice"])
    criterion = DETECTOR.build_criterion(args, CLASSES)
    total, log = criterion(outputs, targets, criterion.count(targets))
    expected = direct(outputs, targets, ice)
    found = {name.removesuffix("_unscaled"): value.item() for name, value in log.items() if name.endswith("_unscaled")}
    found.pop("cardinality_error")
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    weights = {"bbox": 5, "giou": 2}
    weighted = {name: weights.get(name.split("_")[1], 1 if ice and "_enc" not in name else 2) * x for name, x in expected.items()}
    assert {name: log[name].item() for name in expected} == pytest.approx(weighted, rel=1e-4, abs=1e-6)
    assert total.item() == pytest.approx(sum(weighted.values()), rel=1e-4)

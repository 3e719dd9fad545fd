"""The matching and the set losses against a direct computation in plain Python: layer by layer, image by image, pair by pair."""

import math
from collections import Counter
from itertools import permutations

import pytest
import torch

from common.losses.criterion import SetCriterion
from common.losses.matching import HungarianMatcher, PredictedSet
from common.losses.set_losses import CrossEntropy, FocalLoss
from tests.synchronisations import Synchronisations

COSTS = {"cost_class": 1.5, "cost_bbox": 4.0, "cost_giou": 2.5}
WEIGHTS = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 3.0}
CLASSES, QUERIES, EOS = 4, 4, 0.1
FAMILIES = pytest.mark.parametrize("focal", [False, True], ids=["softmax", "sigmoid"])


def criterion_of(focal, eos=EOS):
    class_loss = FocalLoss() if focal else CrossEntropy(eos)
    return SetCriterion(HungarianMatcher(**COSTS, focal=focal), class_loss, WEIGHTS, QUERIES)


def random_boxes(*shape, generator):
    """Boxes (..., 4) that overlap now and then."""
    return torch.rand(*shape, 4, generator=generator) * 0.4 + torch.tensor([0.3, 0.3, 0.1, 0.1])


def example(focal, sizes, layers=3, seed=0):
    """Predictions for images with as many objects as ``sizes`` says."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(layers, len(sizes), QUERIES, CLASSES + (not focal), generator=generator)
    boxes = random_boxes(layers, len(sizes), QUERIES, generator=generator)
    targets = [
        {"labels": torch.randint(CLASSES, (n,), generator=generator), "boxes": random_boxes(n, generator=generator)} for n in sizes
    ]
    return {"pred_logits": logits, "pred_boxes": boxes}, targets


def l1(a, b):
    return sum(abs(x - y) for x, y in zip(a, b))


def giou(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    left, right = sorted([ax - aw / 2, bx - bw / 2]), sorted([ax + aw / 2, bx + bw / 2])
    top, bottom = sorted([ay - ah / 2, by - bh / 2]), sorted([ay + ah / 2, by + bh / 2])
    intersection = max(right[0] - left[1], 0) * max(bottom[0] - top[1], 0)
    union = aw * ah + bw * bh - intersection
    hull = (right[1] - left[0]) * (bottom[1] - top[0])
    return intersection / union - (hull - union) / hull


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def log_softmax(logits):
    return [x - math.log(sum(map(math.exp, logits))) for x in logits]


def focal_terms(logit):
    """The focal loss of a logit as a positive and as a negative."""
    p = sigmoid(logit)
    return -0.25 * (1 - p) ** 2 * math.log(p), -0.75 * p**2 * math.log(1 - p)


def direct_pairs(logits, boxes, labels, target_boxes, focal):
    """The (query, object) pairs of one image and layer: the cheapest of all assignments, tried one after another."""

    def cost(query, target):
        label = labels[target]
        if focal:
            positive, negative = focal_terms(logits[query][label])
            class_cost = positive - negative
        else:
            class_cost = -math.exp(log_softmax(logits[query])[label])
        a, b = boxes[query], target_boxes[target]
        return COSTS["cost_class"] * class_cost + COSTS["cost_bbox"] * l1(a, b) - COSTS["cost_giou"] * giou(a, b)

    costs = [[cost(query, target) for target in range(len(labels))] for query in range(QUERIES)]
    if len(labels) <= QUERIES:
        candidates = [list(zip(p, range(len(labels)))) for p in permutations(range(QUERIES), len(labels))]
    else:
        candidates = [list(zip(range(QUERIES), p)) for p in permutations(range(len(labels)), QUERIES)]
    return min(candidates, key=lambda pairs: sum(costs[query][target] for query, target in pairs))


def direct(outputs, targets, focal):
    """Per layer the unweighted losses, as DETR and its sigmoid successors define them for one process, and all matched pairs."""
    losses, matched = [], []
    num_boxes = max(sum(len(t["labels"]) for t in targets), 1)
    for layer, (all_logits, all_boxes) in enumerate(zip(outputs["pred_logits"].tolist(), outputs["pred_boxes"].tolist())):
        classification = normaliser = distance = overlap = 0.0
        first = 0
        for image, (logits, boxes, target) in enumerate(zip(all_logits, all_boxes, targets)):
            labels, target_boxes = target["labels"].tolist(), target["boxes"].tolist()
            pairs = direct_pairs(logits, boxes, labels, target_boxes, focal)
            matched += [(layer, image, query, first + i) for query, i in pairs]
            first += len(labels)
            distance += sum(l1(boxes[query], target_boxes[i]) for query, i in pairs)
            overlap += sum(1 - giou(boxes[query], target_boxes[i]) for query, i in pairs)
            label_of = {query: labels[i] for query, i in pairs}
            for query in range(QUERIES):
                if focal:
                    terms = [focal_terms(logit) for logit in logits[query]]
                    classification += sum(terms[c][0 if c == label_of.get(query) else 1] for c in range(CLASSES))
                else:
                    weight = 1.0 if query in label_of else EOS
                    classification -= weight * log_softmax(logits[query])[label_of.get(query, CLASSES)]
                    normaliser += weight
        ce = classification / (num_boxes if focal else normaliser)
        losses.append({"loss_ce": ce, "loss_bbox": distance / num_boxes, "loss_giou": overlap / num_boxes})
    return losses, sorted(matched)


def direct_errors(outputs, targets, matched, focal):
    """What is logged of the last layer beside the losses."""
    logits = outputs["pred_logits"].tolist()
    labels = [label for t in targets for label in t["labels"].tolist()]
    last = [(image, query, labels[i]) for layer, image, query, i in matched if layer == len(logits) - 1]
    wrong = sum(max(range(len(row)), key=row.__getitem__) != c for row, c in [(logits[-1][i][q], c) for i, q, c in last])
    if focal:
        found = [sum(max(map(sigmoid, row)) > 0.5 for row in rows) for rows in logits[-1]]
    else:
        found = [sum(max(row) != row[CLASSES] for row in rows) for rows in logits[-1]]
    misses = [abs(n - len(t["labels"])) for n, t in zip(found, targets)]
    return {
        "class_error": 100 * wrong / len(last) if last else 100,
        "cardinality_error_unscaled": sum(misses) / len(misses),
    }


@pytest.mark.parametrize("sizes", [(2, 0, 3), (0, 0), (6, 1, 4)], ids=["some empty", "all empty", "more objects than queries"])
@FAMILIES
def test_matching_and_losses_equal_the_direct_computation(focal, sizes):
    """Protects the published losses, their normalisation and their names in the log, layer by layer."""
    outputs, targets = example(focal, sizes)
    criterion = criterion_of(focal)
    [matching] = criterion.matcher.match([PredictedSet.of(outputs, targets)])
    losses, matched = direct(outputs, targets, focal)
    assert sorted(zip(*(index.tolist() for index in matching))) == matched

    total, log = criterion(outputs, targets, criterion.count(targets))
    expected = direct_errors(outputs, targets, matched, focal)
    for layer, values in enumerate(losses):
        suffix = "" if layer == len(losses) - 1 else f"_{layer}"
        expected |= {f"{name}{suffix}_unscaled": value for name, value in values.items()}
        expected |= {f"{name}{suffix}": WEIGHTS[name] * value for name, value in values.items()}
    assert {name: value.item() for name, value in log.items()} == pytest.approx(expected, rel=2e-5, abs=1e-6)
    assert total.item() == pytest.approx(sum(WEIGHTS[name] * v for values in losses for name, v in values.items()), rel=2e-5)


@pytest.mark.parametrize("layers", [1, 6])
@FAMILIES
def test_one_transfer_from_the_device_whatever_the_number_of_layers(focal, layers):
    """Protects the speed of a step: six decoder layers must not mean six waits."""
    outputs, targets = example(focal, (2, 0, 3), layers)
    criterion = criterion_of(focal)
    count = criterion.count(targets)
    with Synchronisations() as counted:
        criterion(outputs, targets, count)
    assert +counted.found == Counter(cpu=1)


@FAMILIES
def test_a_step_is_the_same_however_its_images_are_distributed(focal):
    """Protects gradient accumulation (the sum over halves) and several processes (the mean over them): both are exact."""
    outputs, targets = example(focal, (2, 0, 6, 1))
    criterion = criterion_of(focal)
    whole, _ = criterion(outputs, targets, criterion.count(targets))
    halves = [({name: x[:, part] for name, x in outputs.items()}, targets[part]) for part in (slice(0, 2), slice(2, 4))]
    count = sum(criterion.count(part) for _, part in halves)
    accumulated = [criterion(*half, count)[0] for half in halves]
    distributed = [criterion(*half, count, num_processes=2)[0] for half in halves]
    torch.testing.assert_close(sum(accumulated), whole)
    torch.testing.assert_close(sum(distributed) / 2, whole)


@pytest.mark.parametrize("name", ["pred_logits", "pred_boxes"])
@FAMILIES
def test_a_diverged_model_gives_a_nan_loss(focal, name):
    """Protects the message that names the batch: an exception out of the assignment would come before it."""
    outputs, targets = example(focal, (2, 0, 3))
    outputs[name][:, 2] = math.nan
    criterion = criterion_of(focal)
    total, log = criterion(outputs, targets, criterion.count(targets))
    assert total.isnan() and log["loss_ce" if name == "pred_logits" else "loss_bbox"].isnan()


@pytest.mark.parametrize("sizes", [(2, 0, 3), (0, 0)], ids=["objects", "no objects"])
@FAMILIES
def test_gradients_reach_every_logit_and_the_matched_boxes_only(focal, sizes):
    """Protects training: auxiliary layers learn, unmatched boxes are left alone, and a batch without objects is no error."""
    outputs, targets = example(focal, sizes)
    leaves = {name: x.requires_grad_() for name, x in outputs.items()}
    criterion = criterion_of(focal)
    criterion(leaves, targets, criterion.count(targets))[0].backward()
    assert (leaves["pred_logits"].grad != 0).all() and all(x.grad.isfinite().all() for x in leaves.values())
    moved = leaves["pred_boxes"].grad.ne(0).any(-1).nonzero().tolist()
    assert moved == sorted(list(pair[:3]) for pair in direct(outputs, targets, focal)[1])


@FAMILIES
def test_mixed_precision_outputs_are_compared_in_single_precision(focal):
    """Protects the losses under --amp: beyond the model, nothing is rounded to half precision."""
    outputs, targets = example(focal, (2, 0, 3))
    half = {name: x.bfloat16() for name, x in outputs.items()}
    single = {name: x.float() for name, x in half.items()}
    criterion = criterion_of(focal)
    count = criterion.count(targets)
    assert torch.equal(criterion(half, targets, count)[0], criterion(single, targets, count)[0])


def test_no_weight_on_no_object_and_no_objects():
    """Protects --eos_coef 0: a step of negatives has nothing to learn, and no 0 / 0 that would stop the run."""
    outputs, targets = example(False, (0, 0))
    leaves = {name: x.requires_grad_() for name, x in outputs.items()}
    criterion = criterion_of(False, eos=0.0)
    total, log = criterion(leaves, targets, criterion.count(targets))
    total.backward()
    assert total == 0 and all(value.isfinite() for value in log.values())
    assert all(x.grad is None or not x.grad.any() for x in leaves.values())
    outputs, targets = example(False, (2, 0))
    total, log = criterion(outputs, targets, criterion.count(targets))
    assert total.isfinite() and log["loss_ce"] > 0

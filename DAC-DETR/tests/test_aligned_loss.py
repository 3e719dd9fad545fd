"""The IoU-aware classification loss, against a float64 loop."""

import math

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from common.losses.matching import Matching
from dac_detr.aligned_loss import AlignedLoss, qualities, rank_weights

LAYERS, IMAGES, QUERIES, CLASSES = 2, 2, 6, 5


def data(scale: float = 1.0) -> tuple:
    """Predictions, targets and pairs; one query has two objects of one class, and a third of another."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(LAYERS, IMAGES, QUERIES, CLASSES, dtype=torch.float64, generator=generator)
    boxes = 0.2 + 0.5 * torch.rand(LAYERS, IMAGES, QUERIES, 4, dtype=torch.float64, generator=generator)
    targets = [
        {"labels": torch.tensor([1, 1, 3]), "boxes": 0.2 + 0.5 * torch.rand(3, 4, dtype=torch.float64, generator=generator)},
        {"labels": torch.tensor([0]), "boxes": 0.2 + 0.5 * torch.rand(1, 4, dtype=torch.float64, generator=generator)},
    ]
    one = [(0, 2, 0), (0, 4, 0), (0, 2, 1), (0, 5, 2), (0, 2, 2), (1, 0, 3), (1, 3, 3)]  # image, query, object
    pairs = torch.tensor([(layer, *pair) for layer in range(LAYERS) for pair in one]).t()
    return logits.requires_grad_(), boxes, targets, Matching(*pairs)


def quality(logits, boxes, targets, layer, image, query, target) -> float:
    label = torch.cat([t["labels"] for t in targets])[target]
    pair = (boxes[layer, image, query], torch.cat([t["boxes"] for t in targets])[target])
    corners = [box_convert(x[None], "cxcywh", "xyxy") for x in pair]
    p = logits[layer, image, query, label].sigmoid().item()
    return max(p**0.25 * box_iou(*corners).item() ** 0.75, 0.01)


@pytest.mark.parametrize("ranked", [True, False])
def test_it_is_that_of_the_loop(ranked):
    """Qualities, rank weights, and the sum over all entries, where the last of two objects counts."""
    logits, boxes, targets, matching = data()
    labels = torch.cat([t["labels"] for t in targets])
    found = qualities(logits, boxes, matching, targets)
    ranks = rank_weights(found, matching)
    class_loss = AlignedLoss(found * ranks if ranked else found)
    total = class_loss(logits, matching, labels[matching.target])

    pairs = list(zip(*(x.tolist() for x in matching)))
    expected = [quality(logits, boxes, targets, *pair) for pair in pairs]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    wanted = {}
    for (layer, image, query, target), u in zip(pairs, expected):
        better = sum(v > u for (a, _, _, b), v in zip(pairs, expected) if (a, b) == (layer, target))
        r = math.exp(-better / 1.5)
        assert ranks[pairs.index((layer, image, query, target))].item() == pytest.approx(r, rel=1e-5)
        wanted[layer, image, query, labels[target].item()] = u * (r if ranked else 1.0)  # later objects overwrite
    sums = torch.zeros(LAYERS, dtype=torch.float64)
    for index in torch.cartesian_prod(*[torch.arange(n) for n in logits.shape]).tolist():
        p = logits[tuple(index)].sigmoid()
        if tuple(index) in wanted:
            w = wanted[tuple(index)]
            sums[index[0]] += (-w * p.log() - (1 - w) * (1 - p).log()).detach()
        else:
            sums[index[0]] += (-(p**2) * (1 - p).log()).detach()
    torch.testing.assert_close(total, sums, rtol=1e-5, atol=1e-6)


def test_large_logits_have_finite_losses_and_gradients():
    """At +-100 the logarithm of a rounded sigmoid would be infinite."""
    logits, boxes, targets, matching = data(scale=100.0)
    labels = torch.cat([t["labels"] for t in targets])[matching.target]
    loss = AlignedLoss(qualities(logits, boxes, matching, targets).float())(logits.float(), matching, labels)
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()


def test_qualities_pass_no_gradient():
    """The target of the class is a number, whatever the box could do to raise it."""
    logits, boxes, targets, matching = data()
    assert not qualities(logits, boxes.requires_grad_(), matching, targets).requires_grad


def test_the_ranks_of_an_object_add_up_to_little():
    """Its weights are a geometric series: even with ever more queries they count as two."""
    pairs = Matching(*(torch.zeros(50, dtype=torch.long) for _ in range(4)))
    assert rank_weights(torch.rand(50), pairs).sum() <= 2.0553


def test_without_pairs_everything_is_background():
    """An image without objects: finite, and no pair to weigh."""
    logits, boxes, _, _ = data()
    none = Matching(*(torch.zeros(0, dtype=torch.long) for _ in range(4)))
    empty = [{"labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}] * IMAGES
    found = qualities(logits, boxes, none, empty)
    assert found.shape == rank_weights(found, none).shape == (0,)
    loss = AlignedLoss(found)(logits, none, torch.zeros(0, dtype=torch.long))
    p = logits.sigmoid()
    torch.testing.assert_close(loss, (-(p**2) * (1 - p).log()).flatten(1).sum(1))

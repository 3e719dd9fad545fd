"""The losses of masks against a loop over pairs."""

import math

import pytest
import torch
from torch.nn import functional as F

from common.losses.mask_losses import mask_losses
from common.losses.matching import Matching

SIZES = ((10, 14), (12, 8))  # of two images in a batch of 12 x 14 pixels


def example(numbers: tuple[int, int], layers: int = 2) -> tuple:
    """Masks (B, Q, h, w) of all queries, targets, and a matching whose last layer counts."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(2, 6, 3, 4, generator=generator, requires_grad=True)
    targets = [{"masks": torch.rand(n, *size, generator=generator) > 0.5} for n, size in zip(numbers, SIZES)]
    rows = []
    for image, n in enumerate(numbers):
        for layer in range(layers):
            queries = torch.randperm(6, generator=generator)[:n].tolist()
            rows += [(layer, image, q, sum(numbers[:image]) + i) for i, q in enumerate(queries)]
    return table, targets, Matching(*torch.tensor(rows, dtype=torch.long).reshape(-1, 4).t())


@pytest.mark.parametrize("numbers", [(3, 2), (0, 4)], ids=str)
def test_they_are_those_of_the_loop(numbers):
    """The last layer's pairs, enlarged to the padded batch, whose padding is background."""
    table, targets, matching = example(numbers)
    losses = mask_losses(lambda image, query: table[image, query], matching, 2, targets, torch.tensor(4.0))
    focal = dice = 0.0
    truth = [mask for t in targets for mask in t["masks"]]
    for layer, image, query, target in zip(*(index.tolist() for index in matching)):
        if layer != 1:
            continue
        padded = torch.zeros(12, 14)
        h, w = truth[target].shape
        padded[:h, :w] = truth[target]
        p = F.interpolate(table[image, query][None, None], (12, 14), mode="bilinear")[0, 0].sigmoid().flatten().tolist()
        t = padded.flatten().tolist()
        terms = [-0.25 * (1 - x) ** 2 * math.log(x) if y else -0.75 * x**2 * math.log(1 - x) for x, y in zip(p, t)]
        focal += sum(terms) / len(terms) / 4
        dice += (1 - (2 * sum(x * y for x, y in zip(p, t)) + 1) / (sum(p) + sum(t) + 1)) / 4
    assert losses["loss_mask"].item() == pytest.approx(focal, rel=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(dice, rel=1e-5)


def test_without_objects_the_head_still_takes_part():
    """Zero losses with zero gradients, which several processes wait for."""
    table, targets, matching = example((0, 0))
    losses = mask_losses(lambda image, query: table[image, query], matching, 2, targets, torch.tensor(1.0))
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    assert losses["loss_mask"] == losses["loss_dice"] == 0 and not table.grad.any()

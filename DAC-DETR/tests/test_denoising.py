"""Contrastive denoising queries, against loops over slots."""

import pytest
import torch
from torch import nn
from torchvision.ops import box_convert

from dac_detr.denoising import Noise, denoising_queries, positives

NUM_CLASSES, D_MODEL, QUERIES = 9, 8, 5
STILL = Noise(label_noise_ratio=0.0, box_noise_scale=0.0)


def targets(*numbers: int) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    centre = [0.3 + 0.4 * torch.rand(n, 2, generator=generator) for n in numbers]
    size = [0.1 + 0.2 * torch.rand(n, 2, generator=generator) for n in numbers]
    labels = [torch.randint(NUM_CLASSES, (n,), generator=generator) for n in numbers]
    return [{"labels": x, "boxes": torch.cat((c, s), dim=1)} for x, c, s in zip(labels, centre, size)]


def queries(objects: list[dict], noise: Noise = STILL):
    torch.manual_seed(0)
    label_enc = nn.Embedding(NUM_CLASSES + 1, D_MODEL)
    return denoising_queries(objects, label_enc, QUERIES, NUM_CLASSES, noise), label_enc


@pytest.mark.parametrize(
    ("numbers", "groups"), [((0, 0), 1), ((1,), 100), ((3, 0, 2), 33), ((51,), 1), ((100, 1), 1), ((101,), 1), ((50, 3), 2)]
)
def test_slots_hold_the_objects_of_every_group(numbers, groups):
    """Positives, then negatives; an image with fewer objects has empty slots: no content, and a box of the size of the image."""
    objects = targets(*numbers)
    found, label_enc = queries(objects)
    most = max(numbers)
    assert found.groups == groups
    assert found.content.shape == (len(numbers), 2 * most * groups, D_MODEL) and found.reference.shape[2] == 4
    for image, target in enumerate(objects):
        for group in range(groups):
            for half in range(2):
                for j in range(most):
                    slot = 2 * most * group + most * half + j
                    if j < len(target["labels"]):
                        assert torch.equal(found.content[image, slot], label_enc.weight[target["labels"][j]])
                        torch.testing.assert_close(found.reference[image, slot].sigmoid(), target["boxes"][j])
                    else:
                        assert not found.content[image, slot].any() and not found.reference[image, slot].any()


@pytest.mark.parametrize("numbers", [(0,), (2, 1), (30, 4)])
def test_the_mask_is_that_of_the_loop(numbers):
    """Matching queries see no denoising query; these see their whole group, and every matching query."""
    found, _ = queries(targets(*numbers))
    slots = found.content.shape[1]
    per_group = 2 * max(numbers)
    for row in range(slots + QUERIES):
        for column in range(slots):
            same = row < slots and row // per_group == column // per_group
            assert found.attn_mask[row, column] == (not same)
    assert not found.attn_mask[:, slots:].any() and found.attn_mask.shape == (slots + QUERIES, slots + QUERIES)


def test_noise_moves_positives_less_than_negatives():
    """Corners of positives move by less than 0.4 of half a side, those of negatives by 0.4 to 0.8; labels change now and then."""
    objects = targets(2, 2)
    (noisy, label_enc), (clean, _) = queries(objects, Noise(number=400)), queries(objects, Noise(400, 0.0, 0.0))
    before, after = (box_convert(x.reference.sigmoid(), "cxcywh", "xyxy").view(2, 200, 2, 2, 4) for x in (clean, noisy))
    sides = clean.reference.sigmoid()[..., 2:].repeat(1, 1, 2).view(2, 200, 2, 2, 4)
    moved = (after - before).abs() / (sides / 2)
    positive, negative = moved[:, :, 0], moved[:, :, 1]
    assert positive.max() < 0.4 + 1e-3 and positive.mean() > 0.15
    assert negative.min() > 0.4 - 1e-3 and negative.max() < 0.8 + 1e-3
    changed = (noisy.content != clean.content).any(-1).float().mean()
    assert 0.15 < changed < 0.3, "a quarter is drawn anew, some of them the same"
    assert label_enc.num_embeddings == NUM_CLASSES + 1


def test_without_noise_nothing_is_drawn():
    """The random numbers of a run do not depend on queries that need none."""
    torch.manual_seed(5)
    label_enc = nn.Embedding(NUM_CLASSES + 1, D_MODEL)
    state = torch.get_rng_state()
    denoising_queries(targets(3), label_enc, QUERIES, NUM_CLASSES, STILL)
    assert torch.equal(torch.get_rng_state(), state)


def test_boxes_at_the_border_stay_inside():
    """Corners are cut off at the image, and no box is inside out."""
    objects = [{"labels": torch.zeros(1, dtype=torch.long), "boxes": torch.tensor([[0.02, 0.97, 0.04, 0.06]])}]
    found, _ = queries(objects, Noise())
    corners = box_convert(found.reference.sigmoid(), "cxcywh", "xyxy")
    assert corners.min() >= -1e-4 and corners.max() <= 1 + 1e-4 and found.reference.isfinite().all()


def test_positives_know_their_objects():
    """In every layer and group, slot j of the positives is object j; negatives have none."""
    pairs = positives([2, 0, 3], groups=2, layers=2)
    found = list(zip(*(x.tolist() for x in pairs)))
    expected = [
        (layer, image, 6 * group + j, first + j)
        for layer in range(2)
        for group in range(2)
        for image, (size, first) in enumerate(((2, 0), (0, 2), (3, 2)))
        for j in range(size)
    ]
    assert sorted(found) == sorted(expected)


def test_a_batch_without_objects_gives_the_labels_a_zero_gradient():
    """Zero, not none: several processes average the gradients."""
    found, label_enc = queries(targets(0, 0))
    found.content.sum().backward()
    assert label_enc.weight.grad is not None and not label_enc.weight.grad.any()

"""What holds for the model of every detector."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.data import Batch, build_dataset, collate
from common.losses import Counts, SetCriterion
from tests.detector_runs import tiny
from tools.detectors import load, options

LARGEST_CLASS = 6  # of the shapes dataset


def build(detector: str, *argv: str) -> tuple[nn.Module, SetCriterion]:
    """A tiny model without dropout, and its losses."""
    args = options(detector, [*tiny(detector), "--dropout", "0", *argv])
    torch.manual_seed(0)
    about = load(detector).DETECTOR
    return about.build_model(args, LARGEST_CLASS + 1, True), about.build_criterion(args, LARGEST_CLASS + 1)


def batch_of(dataset: Path, image_size: int = 64) -> Batch:
    """The first training images, of different sizes, as they are in the first epoch."""
    images = build_dataset(dataset, "train", image_size, seed=0)
    return collate([images[i] for i in range(4)])


def loss_of(model: nn.Module, criterion: SetCriterion, batch: Batch) -> Tensor:
    counts = Counts.normalised(Counts.of(batch.targets, model.num_queries), 1)
    return criterion(model(batch.images, batch.mask), batch.targets, counts)[0]


@pytest.mark.parametrize("clustering", ["region", "window", "none"])
@torch.no_grad()
def test_detections_do_not_depend_on_the_batch(detector, clustering):
    """An image's predictions are the same alone and padded into a batch with larger images.

    From its projected features onwards: backbone and projection see the border between image and padding.
    """
    model = build(detector, "--clustering", clustering)[0].eval()
    generator = torch.Generator().manual_seed(1)
    width = options(detector, tiny(detector)).hidden_dim
    levels = (1,) if hasattr(model.transformer, "num_feature_levels") else ()
    features = [torch.randn(*levels, width, h, w, generator=generator) for h, w in ((7, 12), (11, 5), (4, 4), (11, 12))]
    images, mask = zip(*(_padded(feature, 11, 12) for feature in features))
    together = model.detect(torch.stack(images), torch.stack(mask))
    for i, feature in enumerate(features):
        alone = model.detect(feature[None], torch.zeros(1, *feature.shape[-2:], dtype=torch.bool))
        for name in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(together[name][:, i], alone[name][:, 0], rtol=0, atol=1e-4)


def _padded(feature: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """feature (..., h, w) -> (..., height, width), filled up with numbers that must not matter, and its mask (height, width)."""
    *lead, h, w = feature.shape
    padded, mask = torch.full((*lead, height, width), 100.0), torch.ones(height, width, dtype=torch.bool)
    padded[..., :h, :w], mask[:h, :w] = feature, False
    return padded, mask


@pytest.mark.parametrize("clustering", ["region", "window"])
def test_gradients_reach_every_parameter(detector, clustering, dataset):
    """The loss trains all that is trainable, and above all the layer that decides about the clusters.

    The layers behind weights that are zero at first get their gradient after one step.
    """
    model, criterion = build(detector, "--clustering", clustering, "--dilation")
    batch = batch_of(dataset)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, criterion, batch).backward()
        gradient = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert [name for name, grad in gradient.items() if grad is None or not grad.isfinite().all()] == []
        scores = [name for name in gradient if name.endswith("W_prob.weight")]
        assert len(scores) == 2, "one for each encoder layer"
        assert min(gradient[name].norm() for name in scores) > 1e-5
        optimizer.step()
    # The bias of W_prob cancels in the softmax; the queries are zero when they enter the first decoder layer.
    inert = ("W_prob.bias", "decoder.layers.0.")
    assert [name for name, grad in gradient.items() if not grad.any() and not any(part in name for part in inert)] == []


@pytest.mark.parametrize("clustering", ["region", "window"])
def test_images_fall_into_several_clusters(detector, clustering, dataset):
    """Attention is over fewer clusters than pixels, and over more than one: neither extreme would be noticed in the loss."""
    model, _ = build(detector, "--clustering", clustering, "--dilation")
    batch = batch_of(dataset, image_size=160)
    with torch.no_grad(), load(detector).DETECTOR.record(model.eval()) as layers:
        height, width = model(batch.images, batch.mask)["feature_size"]
    assert len(layers) == 2
    for clusters in layers.values():
        assert clusters.information.shape == (len(batch.images), height * width)
        assert clusters.count.min() > 1
        assert clusters.size < height * width / 2


@pytest.mark.parametrize("clustering", ["region", "window"])
def test_it_learns(detector, clustering, dataset):
    """Thirty steps on one batch make the loss fall to at most 1 / 1.4 of what it was."""
    model, criterion = build(detector, "--clustering", clustering)
    batch = batch_of(dataset)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    losses = []
    for _ in range(31):
        loss = loss_of(model, criterion, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] / losses[-1] > 1.4, losses

"""What holds for the model of every detector."""

from typing import Any

import pytest
import torch
from torch import Tensor

from common.models.levels import InputProjections
from common.models.model import DetectionModel
from tests.cuda_autocast import CudaAutocast
from tests.detector_runs import is_clustered, tiny
from tests.tiny_models import batch_of, build, loss_of
from tools.detectors import DETECTORS, options


@torch.no_grad()
def test_detections_do_not_depend_on_the_batch(variant):
    """An image's predictions are the same alone and padded into a batch with larger images.

    From its projected features onwards: backbone and projection see the border between image and padding.
    """
    detector, argv = variant
    model = build(detector, *argv)[0].eval()
    generator = torch.Generator().manual_seed(1)
    width = options(detector, tiny(detector)).hidden_dim
    sizes = ((7, 12), (11, 5), (4, 4), (11, 12))
    number = len(model.input_proj) if takes_levels(model) else 1
    # Each level halves the one before.
    levels = [[torch.randn(width, -(-h // 2**n), -(-w // 2**n), generator=generator) for h, w in sizes] for n in range(number)]
    padded = [[_padded(feature, -(-11 // 2**n), -(-12 // 2**n)) for feature in level] for n, level in enumerate(levels)]
    together = detect(model, [tuple(torch.stack(x) for x in zip(*level)) for level in padded])
    for i in range(len(sizes)):
        images = [level[i][None] for level in levels]
        alone = detect(model, [(image, torch.zeros(1, *image.shape[-2:], dtype=torch.bool)) for image in images])
        for name in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(together[name][:, i], alone[name][:, 0], rtol=0, atol=1e-4)


def takes_levels(model: DetectionModel) -> bool:
    """Whether a model detects in a list of levels of different sizes."""
    return isinstance(model.input_proj, InputProjections)


def detect(model: DetectionModel, levels: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Detects in projected features: (B, d, h, w) and mask (B, h, w) of each level."""
    if takes_levels(model):
        return model.detect(levels)
    [(src, mask)] = levels
    # Anchor DETR's levels have one size, and an axis of their own.
    return model.detect(src[:, None] if hasattr(model.transformer, "num_feature_levels") else src, mask)


def _padded(feature: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """feature (d, h, w) -> (d, height, width), filled up with numbers that must not matter, and its mask (height, width)."""
    _, h, w = feature.shape
    padded, mask = torch.full((len(feature), height, width), 100.0), torch.ones(height, width, dtype=torch.bool)
    padded[:, :h, :w], mask[:h, :w] = feature, False
    return padded, mask


def test_gradients_reach_every_parameter(variant, dataset):
    """The loss trains all that is trainable, and above all the layers that decide about clusters or tokens.

    The layers behind weights that are zero at first get their gradient after one step.
    """
    detector, argv = variant
    model, criterion = build(detector, *argv, "--dilation")
    batch = batch_of(dataset)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, criterion, batch).backward()
        gradient = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert [name for name, grad in gradient.items() if grad is None or not grad.isfinite().all()] == []
        scores = [name for name in gradient if name.endswith("W_prob.weight")]
        assert len(scores) == (2 if is_clustered(argv) else 0), "one for each encoder layer"
        assert min([gradient[name].norm() for name in scores], default=1.0) > 1e-5
        optimizer.step()
    # The bias of W_prob cancels in the softmax; the queries are zero when they enter the first decoder layer.
    inert = ("W_prob.bias", "decoder.layers.0.")
    assert [name for name, grad in gradient.items() if not grad.any() and not any(part in name for part in inert)] == []


@pytest.mark.parametrize("clustering", ["region", "window"])
def test_images_fall_into_several_clusters(clustered, clustering, dataset):
    """Attention is over fewer clusters than pixels, and over more than one: neither extreme would be noticed in the loss."""
    model, _ = build(clustered, "--clustering", clustering, "--dilation")
    batch = batch_of(dataset, image_size=160)
    with torch.no_grad(), DETECTORS[clustered].record(model.eval()) as layers:
        height, width = model(batch.images, batch.mask)["feature_size"]
    assert len(layers) == 2
    for clusters in layers.values():
        assert clusters.information.shape == (len(batch.images), height * width)
        assert clusters.count.min() > 1
        assert clusters.size < height * width / 2


def test_it_learns(variant, dataset):
    """Twenty steps on one batch make the loss fall to at most 1 / 1.4 of what it was."""
    detector, argv = variant
    model, criterion = build(detector, *argv)
    batch = batch_of(dataset)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    losses = []
    for _ in range(21):
        loss = loss_of(model, criterion, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] / losses[-1] > 1.4, losses


def share_on_grid(x: Tensor) -> float:
    """How many numbers bfloat16 could hold, but for the rounding of float32."""
    return ((x - x.bfloat16().float()).abs() < 1e-6 + 1e-5 * x.abs()).float().mean().item()


def test_types_fit_under_mixed_precision(variant, dataset):
    """Protects --amp on a GPU, whose autocast returns float32 from more operators than that of a CPU, such as norms."""
    detector, argv = variant
    for masks in ((), ("--masks",))[: 1 + ("masks" in options(detector, tiny(detector)))]:
        model, criterion = build(detector, *argv, *masks)
        batch = batch_of(dataset)
        if masks:
            height, width = batch.mask.shape[1:]
            batch = batch._replace(
                targets=[t | {"masks": torch.rand(len(t["labels"]), height, width) > 0.5} for t in batch.targets]
            )
        with CudaAutocast():
            with torch.autocast("cpu", torch.bfloat16):
                outputs = model.train()(batch.images, batch.mask, batch.targets)
            total, _ = criterion(outputs, batch.targets, criterion.count(batch.targets))
            total.backward()
        assert total.isfinite() and outputs["pred_boxes"].dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_boxes_are_not_rounded_under_mixed_precision(detector, dataset, training):
    """Protects coordinates under --amp bf16: on bfloat16's grid, boxes of an image of 1333 pixels would be up to 5 pixels off."""
    model = build(detector)[0].train(training)
    for parameter in model.parameters():  # what is zero at first would hide the rounding
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    batch = batch_of(dataset)
    single = model(batch.images, batch.mask)["pred_boxes"]
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch.images, batch.mask)["pred_boxes"]
    assert half.dtype == single.dtype == torch.float32
    # Rounding may choose other proposals, which are not far from the first.
    assert torch.cdist(half, single, p=torch.inf).amin(-1).quantile(0.8) < 0.1
    # The boxes themselves; and what their sizes are the sigmoid of, which no anchor is added to.
    assert share_on_grid(half) < 0.1 and share_on_grid(half[..., 2:].logit()) < 0.1

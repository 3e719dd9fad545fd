"""The losses of a set of predictions, given which prediction is paired with which object.

Shapes: L decoder layers, B images, Q queries, C classes, T objects of the batch, K pairs of all layers.

A query may have several objects, and an object several queries: the pairs are a flat list, :class:`Matching`. A detector with
several branches calls :func:`set_losses` once for each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from .matching import Matching


class Divisors(NamedTuple):
    """What the losses are divided by, scalar tensors: ``class_loss`` and ``boxes``."""

    class_loss: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class FocalLoss:
    """Sigmoid focal loss over C logits, summed over queries and classes."""

    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, logits: Tensor, matching: Matching, labels: Tensor) -> Tensor:
        """logits (L, B, Q, C), labels (K,) of the pairs -> (L,)."""
        one_hot = torch.zeros_like(logits)
        # Not assigned as a number, which would be copied to the device while the host waits.
        one_hot.index_put_((matching.layer, matching.image, matching.query, labels), one_hot.new_ones(()))
        return sigmoid_focal_loss(logits, one_hot, alpha=self.alpha, gamma=self.gamma).flatten(1).sum(1)


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy over C + 1 logits, of which the last is "no object" with the weight ``eos_coef``; summed over queries."""

    eos_coef: float = 0.1

    def __call__(self, logits: Tensor, matching: Matching, labels: Tensor) -> Tensor:
        """logits (L, B, Q, C + 1), labels (K,) of the pairs -> (L,)."""
        no_object = logits.shape[-1] - 1
        classes = torch.full(logits.shape[:-1], no_object, dtype=torch.long, device=logits.device)
        classes[matching.layer, matching.image, matching.query] = labels
        loss = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), reduction="none").view_as(classes)
        return torch.where(classes == no_object, self.eos_coef * loss, loss).flatten(1).sum(1)


def set_losses(
    logits: Tensor,
    boxes: Tensor,
    matching: Matching,
    targets: list[dict],
    *,
    class_loss: Callable[[Tensor, Matching, Tensor], Tensor],
    divisors: Divisors,
    pair_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """``loss_ce``, ``loss_bbox`` (L1) and ``loss_giou`` (L,) of every layer.

    Args:
        logits: (L, B, Q, C or C + 1), boxes: (L, B, Q, 4) cxcywh in [0, 1].
        matching: the K pairs.
        targets: per image ``labels`` (n,) and ``boxes`` (n, 4).
        class_loss: :class:`FocalLoss`, :class:`CrossEntropy`, or what else maps logits, pairs and their labels to (L,).
        divisors: of the sums.
        pair_weights: (K,) of the pairs in the losses of boxes, where they do not count alike.
    """
    labels = torch.cat([t["labels"] for t in targets])[matching.target]
    target_boxes = torch.cat([t["boxes"] for t in targets])[matching.target]
    matched = boxes[matching.layer, matching.image, matching.query]
    l1 = F.l1_loss(matched, target_boxes, reduction="none").sum(-1)
    # Pair by pair; torchvision's own loss would make the host wait for its masks, and adds an epsilon that DETR does not have.
    corners, target_corners = (box_convert(x, "cxcywh", "xyxy")[:, None] for x in (matched, target_boxes))
    giou = torch.vmap(generalized_box_iou)(corners, target_corners).flatten()

    def per_layer(loss: Tensor) -> Tensor:
        loss = loss if pair_weights is None else pair_weights * loss
        return loss.new_zeros(len(boxes)).index_add(0, matching.layer, loss) / divisors.boxes

    return {
        "loss_ce": class_loss(logits, matching, labels) / divisors.class_loss,
        "loss_bbox": per_layer(l1),
        "loss_giou": per_layer(1 - giou),
    }


def weigh(
    losses: Mapping[str, Tensor], weights: Mapping[str, float], names: str = "{loss}{layer}"
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total, and what is logged: scalars with DETR's names.

    Args:
        losses: name -> (L,), the last layer last.
        weights: name -> weight.
        names: how a layer's loss is called: ``{loss}`` is its name, ``{index}`` the layer's number, and ``{layer}`` is "_0", "_1",
            ..., but empty for the last layer.

    Returns:
        The weighted sum; and the weighted losses of every layer, with ``_unscaled`` behind the name those without weight.
    """
    total = sum(weights[name] * loss.sum() for name, loss in losses.items())
    logs = {}
    for name, loss in losses.items():
        for index, value in enumerate(loss.detach().unbind()):
            full = names.format(loss=name, index=index, layer="" if index == len(loss) - 1 else f"_{index}")
            logs[full] = weights[name] * value
            logs[f"{full}_unscaled"] = value
    return total, logs

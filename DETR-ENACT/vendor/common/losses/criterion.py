"""The losses of the DETR family, all decoder layers at once.

Shapes: L decoder layers, B images, Q queries, C classes.
"""

from abc import abstractmethod
from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn

from .mask_losses import mask_losses
from .matching import HungarianMatcher, Matching, PredictedSet
from .set_losses import CrossEntropy, Divisors, FocalLoss, set_losses, weigh

CERTAINLY_NOT = -1000.0  # a logit whose focal loss as a negative is exactly 0, and its gradient


class Criterion(nn.Module):
    """What training and evaluation know of a detector's losses.

    A loss is divided by a number of objects that is counted over everything that one optimiser step sees (all processes, all
    accumulated batches) and divided by the number of processes, since gradients are averaged over them. That makes a step the same
    however its images are distributed.
    """

    @abstractmethod
    def count(self, targets: list[dict[str, Any]]) -> Tensor:
        """(k,) what the divisors follow from, of a batch's targets alone; to be summed over a step before its first forward."""

    @abstractmethod
    def forward(
        self, outputs: dict[str, Any], targets: list[dict[str, Any]], count: Tensor, num_processes: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and a dict of scalars to be logged under DETR's names.

        Args:
            outputs: of the model.
            targets: per image ``labels`` (n,) and ``boxes`` (n, 4) cxcywh in [0, 1].
            count: sum of :meth:`count` over the step.
            num_processes: over which it was summed.
        """


class SetCriterion(Criterion):
    """Matches the predictions of every decoder layer to the objects, one to one, and sums the losses.

    Args:
        matcher: the matching.
        class_loss: :class:`FocalLoss` over C logits, or :class:`CrossEntropy` over C + 1.
        weights: of ``loss_ce``, ``loss_bbox``, ``loss_giou``, and of ``loss_mask`` and ``loss_dice`` where there are masks.
        num_queries: Q.
    """

    def __init__(
        self, matcher: HungarianMatcher, class_loss: FocalLoss | CrossEntropy, weights: dict[str, float], num_queries: int
    ):
        super().__init__()
        self.matcher = matcher
        self.class_loss = class_loss
        self.weights = weights
        self.num_queries = num_queries

    def count(self, targets: list[dict[str, Any]]) -> Tensor:
        """(3,) objects; objects that get a query, fewer where an image has more objects than queries; queries."""
        sizes = [len(t["labels"]) for t in targets]
        matched = sum(min(size, self.num_queries) for size in sizes)
        return torch.tensor([sum(sizes), matched, len(sizes) * self.num_queries], dtype=torch.float32)

    def forward(
        self, outputs: dict[str, Any], targets: list[dict[str, Any]], count: Tensor, num_processes: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """outputs: ``pred_logits`` (L, B, Q, C or C + 1) and ``pred_boxes`` (L, B, Q, 4) cxcywh in [0, 1], the last layer last.

        With ``masks``, the masks of the queries, and those of the targets, see :func:`mask_losses`. Logged beside the losses of
        :func:`weigh`: ``class_error`` (% of matched queries with another class on top) and ``cardinality_error_unscaled``.
        """
        predicted = PredictedSet.of(outputs, targets)
        [matching] = self.matcher.match([predicted])
        divisors = self.divisors(count, num_processes)
        total, logs = self.set_loss(predicted, matching, divisors)
        if "masks" in outputs:
            losses = mask_losses(outputs["masks"], matching, len(predicted.logits), targets, divisors.boxes)
            loss, log = weigh({name: value[None] for name, value in losses.items()}, self.weights)
            total, logs = total + loss, logs | log
        return total, logs | self.errors(predicted, matching)

    def set_loss(
        self, predicted: PredictedSet, matching: Matching, divisors: Divisors, names: str = "{loss}{layer}"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted losses of one set of predictions, see :func:`weigh`. Those that are not allowed have no part in it."""
        logits, boxes, targets, allowed = predicted
        if allowed is not None:
            logits = logits.masked_fill(~allowed[None, ..., None], CERTAINLY_NOT)
        losses = set_losses(logits, boxes, matching, targets, class_loss=self.class_loss, divisors=divisors)
        return weigh(losses, self.weights, names)

    def divisors(self, count: Tensor, num_processes: int) -> Divisors:
        """What the losses of a step with this count are divided by."""
        objects, matched, queries = count.unbind()
        boxes = objects.clamp(min=1) / num_processes
        if isinstance(self.class_loss, FocalLoss):
            return Divisors(boxes, boxes)
        weight = matched + self.class_loss.eos_coef * (queries - matched)
        # Without objects and with no weight on "no object" there is no loss, and nothing to divide it by.
        return Divisors(weight.clamp(min=torch.finfo(weight.dtype).tiny) / num_processes, boxes)

    @torch.no_grad()
    def errors(self, predicted: PredictedSet, matching: Matching) -> dict[str, Tensor]:
        """What DETR logs of the last layer beside its losses. No synchronisation."""
        logits, _, targets, _ = predicted
        last = logits[-1].detach()
        labels = torch.cat([t["labels"] for t in targets])[matching.target]
        in_last = matching.layer == len(logits) - 1
        hit = last[matching.image, matching.query].argmax(-1) == labels
        right, matched = (hit & in_last).sum(), in_last.sum()
        if isinstance(self.class_loss, FocalLoss):
            found = last.sigmoid().amax(-1) > 0.5
        else:
            found = last.argmax(-1) != last.shape[-1] - 1
        sizes = torch.tensor([len(t["labels"]) for t in targets], dtype=torch.float32).to(logits.device, non_blocking=True)
        return {
            "class_error": 100 - 100 * right / matched.clamp(min=1),
            "cardinality_error_unscaled": (found.sum(1).float() - sizes).abs().mean(),
        }


def as_objects(targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The targets of predictions that tell objects, class 0, from everything else."""
    return [t | {"labels": torch.zeros_like(t["labels"])} for t in targets]


def build_criterion(
    args: Namespace,
    class_loss: FocalLoss | CrossEntropy,
    num_queries: int,
    kind: type[SetCriterion] = SetCriterion,
    **own: Any,
) -> SetCriterion:
    """The losses of either family with the weights that the options give.

    Args:
        args: the options.
        class_loss, num_queries: see :class:`SetCriterion`.
        kind: :class:`SetCriterion` or what is made of it.
        own: what it takes beside that.
    """
    matcher = HungarianMatcher(args.set_cost_class, args.set_cost_bbox, args.set_cost_giou, isinstance(class_loss, FocalLoss))
    weights = {"loss_ce": args.cls_loss_coef, "loss_bbox": args.bbox_loss_coef, "loss_giou": args.giou_loss_coef}
    if getattr(args, "masks", False):
        weights |= {"loss_mask": args.mask_loss_coef, "loss_dice": args.dice_loss_coef}
    return kind(matcher, class_loss, weights, num_queries, **own)

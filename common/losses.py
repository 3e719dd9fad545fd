"""The set losses of the DETR family, all decoder layers at once.

Shapes: L decoder layers, B images, Q queries, C classes, T objects of the batch.
"""

from argparse import Namespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from .matching import HungarianMatcher, Matching


class Counts(NamedTuple):
    """What the losses are divided by, (scalar tensors or floats).

    Counted over everything that one optimiser step sees (all processes, all accumulated batches) and divided by the number of
    processes, since gradients are averaged over them. That makes a step the same however its images are distributed.

    Attributes:
        boxes: number of objects, at least 1 in the whole step.
        matched: number of objects that get a query (fewer where an image has more objects than queries).
        queries: number of queries of all images.
    """

    boxes: Tensor
    matched: Tensor
    queries: Tensor

    @staticmethod
    def of(targets: list[dict], num_queries: int) -> Tensor:
        """(3,) the counts of some images, to be summed over a step and passed to :meth:`normalised`."""
        sizes = [len(t["labels"]) for t in targets]
        matched = sum(min(size, num_queries) for size in sizes)
        return torch.tensor([sum(sizes), matched, len(sizes) * num_queries], dtype=torch.float32)

    @classmethod
    def normalised(cls, total: Tensor, world_size: int) -> "Counts":
        boxes, matched, queries = total.unbind()
        return cls(boxes.clamp(min=1) / world_size, matched / world_size, queries / world_size)


class SetCriterion(nn.Module):
    """Matches predictions to objects and sums the losses.

    Args:
        num_classes: C without "no object"; labels are below it.
        matcher: the matching.
        weights: of ``loss_ce``, ``loss_bbox`` and ``loss_giou``.
        focal: sigmoid focal loss over C logits, instead of cross-entropy over C + 1 with the weight ``eos_coef`` on "no object".
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weights: dict[str, float],
        focal: bool,
        eos_coef: float = 0.1,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = weights
        self.focal = focal
        class_weight = torch.ones(num_classes + 1)
        class_weight[-1] = eos_coef
        self.register_buffer("class_weight", class_weight)

    def forward(self, outputs: dict[str, Tensor], targets: list[dict], counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """outputs: ``pred_logits`` (L, B, Q, C or C + 1) and ``pred_boxes`` (L, B, Q, 4) cxcywh in [0, 1], the last layer last.

        Returns:
            The total, and a dict of scalars with DETR's names: the weighted ``loss_ce``, ``loss_bbox``, ``loss_giou`` of the last
            layer, the same with ``_0``, ``_1``, ... of the layers before, their unweighted values with ``_unscaled``,
            ``class_error`` (% of matched queries with another class on top) and ``cardinality_error_unscaled``.
        """
        logits, boxes = outputs["pred_logits"].float(), outputs["pred_boxes"].float()
        matching = self.matcher(logits, boxes, targets)
        labels = torch.cat([t["labels"] for t in targets])[matching.target]
        target_boxes = torch.cat([t["boxes"] for t in targets])[matching.target]
        losses = {"loss_ce": self._loss_labels(logits, matching, labels, counts)}
        losses |= self._loss_boxes(boxes, matching, target_boxes, counts)
        total = sum(self.weights[name] * loss.sum() for name, loss in losses.items())

        logs = {}
        for name, loss in losses.items():
            for layer, value in enumerate(loss.detach().unbind()):
                suffix = "" if layer == len(loss) - 1 else f"_{layer}"
                logs[f"{name}{suffix}"] = self.weights[name] * value
                logs[f"{name}{suffix}_unscaled"] = value
        return total, logs | self._errors(logits.detach(), matching, labels, targets)

    def _loss_labels(self, logits: Tensor, matching: Matching, labels: Tensor, counts: Counts) -> Tensor:
        """(L,) classification loss of each layer."""
        where = (matching.layer, matching.image, matching.query)
        if self.focal:
            one_hot = torch.zeros_like(logits)
            one_hot[(*where, labels)] = 1.0
            return sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2.0).flatten(1).sum(1) / counts.boxes
        classes = torch.full(logits.shape[:-1], self.num_classes, dtype=torch.long, device=logits.device)
        classes[where] = labels
        loss = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), self.class_weight, reduction="none")
        weight = counts.matched + self.class_weight[-1] * (counts.queries - counts.matched)
        return loss.view(len(logits), -1).sum(1) / weight

    @staticmethod
    def _loss_boxes(boxes: Tensor, matching: Matching, target_boxes: Tensor, counts: Counts) -> dict[str, Tensor]:
        """(L,) L1 and GIoU losses of each layer."""
        matched = boxes[matching.layer, matching.image, matching.query]
        l1 = F.l1_loss(matched, target_boxes, reduction="none").sum(-1)
        # Pair by pair; torchvision's own loss would make the host wait for its masks, and adds an epsilon that DETR does not have.
        corners, target_corners = (box_convert(x, "cxcywh", "xyxy")[:, None] for x in (matched, target_boxes))
        giou = torch.vmap(generalized_box_iou)(corners, target_corners).flatten()

        def per_layer(loss: Tensor) -> Tensor:
            return loss.new_zeros(len(boxes)).index_add(0, matching.layer, loss) / counts.boxes

        return {"loss_bbox": per_layer(l1), "loss_giou": per_layer(1 - giou)}

    def _errors(self, logits: Tensor, matching: Matching, labels: Tensor, targets: list[dict]) -> dict[str, Tensor]:
        """What DETR logs of the last layer beside its losses. No gradient, and no synchronisation."""
        last = logits[-1]
        in_last = matching.layer == len(logits) - 1
        hit = last[matching.image, matching.query].argmax(-1) == labels
        right, matched = (hit & in_last).sum(), in_last.sum()
        class_error = 100 - 100 * right / matched.clamp(min=1)
        if self.focal:
            found = last.sigmoid().amax(-1) > 0.5
        else:
            found = last.argmax(-1) != self.num_classes
        sizes = torch.tensor([len(t["labels"]) for t in targets], dtype=torch.float32).to(logits.device, non_blocking=True)
        return {
            "class_error": class_error,
            "cardinality_error_unscaled": (found.sum(1).float() - sizes).abs().mean(),
        }


def build_criterion(args: Namespace, num_classes: int, focal: bool, eos_coef: float = 0.1) -> SetCriterion:
    """The losses of either family, see :class:`SetCriterion`, with the weights that the options give."""
    matcher = HungarianMatcher(args.set_cost_class, args.set_cost_bbox, args.set_cost_giou, focal)
    weights = {"loss_ce": args.cls_loss_coef, "loss_bbox": args.bbox_loss_coef, "loss_giou": args.giou_loss_coef}
    return SetCriterion(num_classes, matcher, weights, focal, eos_coef)

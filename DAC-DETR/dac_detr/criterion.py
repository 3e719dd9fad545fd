"""The losses of DAC-DETR: of both decoders, of their denoising queries, and of the proposals.

Shapes: L decoder layers, B images, T objects of the batch.
"""

from typing import Any

import torch
from torch import Tensor

from common.losses.criterion import SetCriterion, as_objects
from common.losses.matching import Matching, PredictedSet, fetch, pair
from common.losses.set_losses import Divisors, set_losses, weigh

from .aligned_loss import AlignedLoss, qualities, rank_weights
from .assignment import assign_image, assignment_scores
from .denoising import positives

# How the losses of a set of predictions are called.
O_DECODER = "{loss}{layer}_one2one"
C_DECODER = "{loss}{layer}"
O_DENOISING = "{loss}_dn{layer}_one2one"
C_DENOISING = "{loss}_dn{layer}"
PROPOSALS = "{loss}_enc"
CLASS_WEIGHT = 2.0  # of the focal loss, which the proposals have, too
MANY = 3  # the C-decoder's losses are divided by three times the objects


class DACCriterion(SetCriterion):
    """The losses of every branch.

    Args:
        ice: the IoU-aware classification loss; else the focal loss, with its own weight.
        others: as for :class:`SetCriterion`; the class loss is that of the proposals.
    """

    def __init__(self, *args: Any, ice: bool = True):
        super().__init__(*args)
        self.ice = ice
        self.weights_of_proposals = self.weights | {"loss_ce": CLASS_WEIGHT}

    def forward(
        self, outputs: dict[str, Any], targets: list[dict[str, Any]], count: Tensor, num_processes: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Criterion`; outputs as the model returns them. Costs and scores leave the device in one transfer."""
        sets = self._sets(outputs, targets)
        matchings = self._match(sets, targets, outputs.get("groups", 1))
        divisors = self.divisors(count, num_processes)
        many = (MANY * count[0]).clamp(min=1) / num_processes
        total, logs = 0.0, {}
        for names, predicted in sets.items():
            boxes = divisors.boxes
            if names == C_DECODER:
                boxes = many
            elif names in (O_DENOISING, C_DENOISING):
                boxes = boxes * outputs["groups"]
            loss, log = self._losses(names, predicted, matchings[names], Divisors(boxes, boxes))
            total, logs = total + loss, logs | log
        last = C_DECODER if C_DECODER in sets else O_DECODER
        return total, logs | self.errors(sets[last], matchings[last])

    def _sets(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> dict[str, PredictedSet]:
        """The sets of predictions, by the pattern of their losses' names."""
        branches = {
            O_DECODER: outputs,
            C_DECODER: outputs.get("cross"),
            O_DENOISING: outputs.get("denoising"),
            C_DENOISING: outputs.get("cross_denoising"),
            PROPOSALS: outputs.get("proposals"),
        }
        return {
            names: PredictedSet.of(found, as_objects(targets) if names == PROPOSALS else targets)
            for names, found in branches.items()
            if found is not None
        }

    def _match(self, sets: dict[str, PredictedSet], targets: list[dict[str, Any]], groups: int) -> dict[str, Matching]:
        """One-to-one for the O-decoder and the proposals, one-to-many for the C-decoder; denoising queries know their objects."""
        one_to_one = [names for names in (O_DECODER, PROPOSALS) if names in sets]
        numbers = [self.matcher.costs(sets[names]) for names in one_to_one]
        if C_DECODER in sets:
            numbers.append(assignment_scores(sets[C_DECODER].logits, sets[O_DECODER].boxes, targets))
        sizes, device = [len(t["labels"]) for t in targets], sets[O_DECODER].logits.device
        arrays = fetch(numbers)
        matchings = {names: self.matcher.assign(cost, targets, device) for names, cost in zip(one_to_one, arrays)}
        if C_DECODER in sets:
            matchings[C_DECODER] = pair(arrays[-1], targets, device, assign_image)
        for names in (O_DENOISING, C_DENOISING):
            if names in sets:
                pairs = positives(sizes, groups, len(sets[names].logits))
                matchings[names] = Matching(*torch.stack(pairs).to(device, non_blocking=True))
        return matchings

    def _losses(
        self, names: str, predicted: PredictedSet, matching: Matching, divisors: Divisors
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, boxes, targets, _ = predicted
        if names == PROPOSALS or not self.ice:
            losses = set_losses(logits, boxes, matching, targets, class_loss=self.class_loss, divisors=divisors)
            return weigh(losses, self.weights_of_proposals, names)
        quality = qualities(logits, boxes, matching, targets)
        ranks = rank_weights(quality, matching) if names == C_DECODER else None
        class_loss = AlignedLoss(quality if ranks is None else quality * ranks)
        losses = set_losses(logits, boxes, matching, targets, class_loss=class_loss, divisors=divisors, pair_weights=ranks)
        return weigh(losses, self.weights, names)

"""The losses of Deformable DETR and Sparse DETR: of the decoder, the proposals, the encoder's layers, and the scoring network.

Shapes: B images, N tokens, k selected ones, E encoder layers with heads.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from common.losses.criterion import SetCriterion, as_objects
from common.losses.matching import PredictedSet

from .attention_map import decoder_attention_map, most_attended, shares_attended

SET = "{loss}{layer}"
PROPOSALS = "{loss}_enc"
ENCODER = "{loss}_enc_{index}"


class SparseCriterion(SetCriterion):
    """The set losses of every branch, and the loss of the scoring network.

    Args:
        eff_specific_head: the proposals have classes; else each is an object, class 0, or none.
        mask_prediction_coef: weight of ``loss_mask_prediction``.
        others: as for :class:`SetCriterion`.
    """

    def __init__(self, *args: Any, eff_specific_head: bool, mask_prediction_coef: float):
        super().__init__(*args)
        self.eff_specific_head = eff_specific_head
        self.mask_prediction_coef = mask_prediction_coef

    def forward(
        self, outputs: dict[str, Any], targets: list[dict[str, Any]], count: Tensor, num_processes: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Criterion`; outputs as the model returns them.

        Padding and what is surplus in a batch's selections have no part in any loss. All sets are matched with one transfer.
        """
        branches = self._branches(outputs, targets)
        divisors = self.divisors(count, num_processes)
        matchings = self.matcher.match(list(branches.values()))
        total, logs = 0.0, {}
        for (names, predicted), matching in zip(branches.items(), matchings, strict=True):
            loss, log = self.set_loss(predicted, matching, divisors, names)
            total, logs = total + loss, logs | log
        logs |= self.errors(branches[SET], matchings[0])
        if "scores" in outputs and "proposals" in outputs:  # in training
            images = count[2] / self.num_queries / num_processes
            loss, shares = self._score_loss(outputs, images)
            total = total + self.mask_prediction_coef * loss
            name, value = "loss_mask_prediction", loss.detach()
            logs |= {name: self.mask_prediction_coef * value, f"{name}_unscaled": value} | shares
        return total, logs

    def _branches(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> dict[str, PredictedSet]:
        """The sets of predictions, by the pattern of their losses' names; the decoder's first."""
        branches = {SET: PredictedSet.of(outputs, targets)}
        not_padding = ~outputs["padding"]
        if "proposals" in outputs:
            objects = targets if self.eff_specific_head else as_objects(targets)
            branches[PROPOSALS] = PredictedSet.of(outputs["proposals"], objects, not_padding)
        if "encoder" in outputs:
            branches[ENCODER] = PredictedSet.of(outputs["encoder"], targets, outputs.get("kept", not_padding))
        return branches

    def _score_loss(self, outputs: dict[str, Any], images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The scores shall tell the tokens that the decoder looks at most from the others.

        Args:
            images: what the sum over images is divided by.

        Returns:
            The binary cross-entropy, a mean over the tokens of an image, then over images; and what is logged beside it.
        """
        scores, padding, kept = outputs["scores"], outputs["padding"], outputs["kept"]
        attention = decoder_attention_map(outputs["locations"], outputs["weights"], outputs["shapes"])
        target = most_attended(attention, padding, kept.sum(1), kept.shape[1])
        loss = F.binary_cross_entropy_with_logits(scores, target, reduction="none").masked_fill(padding, 0.0)
        loss = (loss.sum(1) / (~padding).sum(1)).sum() / images
        return loss, shares_attended(attention, outputs["tokens"], kept, outputs["shapes"])

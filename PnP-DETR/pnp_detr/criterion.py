"""The losses of PnP-DETR: DETR's, and a price for high scores."""

from typing import Any

from torch import Tensor

from common.losses.criterion import SetCriterion


class PnPCriterion(SetCriterion):
    """The set losses, and in training the mean score of the polled pixels, of each image and then over images.

    A score scales its pixel's features; without a price on it, it would only ever grow.

    Args:
        sample_reg_loss: weight of that mean, which is logged under this name.
        others: as for :class:`SetCriterion`.
    """

    def __init__(self, *args: Any, sample_reg_loss: float):
        super().__init__(*args)
        self.sample_reg_loss = sample_reg_loss

    def forward(
        self, outputs: dict[str, Any], targets: list[dict[str, Any]], count: Tensor, num_processes: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`SetCriterion`; ``mean_scores`` (B,) in training, with a sampler."""
        total, logs = super().forward(outputs, targets, count, num_processes)
        if "mean_scores" not in outputs:
            return total, logs
        images = count[2] / self.num_queries / num_processes
        loss = outputs["mean_scores"].sum() / images
        name, value = "sample_reg_loss", loss.detach()
        return total + self.sample_reg_loss * loss, logs | {name: self.sample_reg_loss * value, f"{name}_unscaled": value}

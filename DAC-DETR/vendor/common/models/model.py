"""What training, evaluation and prediction know of a model."""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn


class DetectionModel(nn.Module):
    """A detection transformer.

    Shapes: L decoder layers, B images, H x W pixels of the feature map, Q queries, C classes.
    """

    @abstractmethod
    def forward(self, images: Tensor, mask: Tensor, targets: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Detects objects.

        Args:
            images: (B, 3, H0, W0), normalised, padded at the right and bottom.
            mask: (B, H0, W0) bool, True = padding.
            targets: in training, the objects of each image: ``labels`` (n,) and ``boxes`` (n, 4) cxcywh in [0, 1]; for the
                detectors that make queries of them.

        Returns:
            ``pred_logits`` (L, B, Q, C), one more class where the last one is "no object"; ``pred_boxes`` (L, B, Q, 4) cxcywh in
            [0, 1]; ``feature_size`` (H, W). L is 1 in evaluation and without auxiliary losses. Beside these whatever the
            detector's own criterion and its pictures read: proposals of another length, further branches, attention maps.
        """

    @property
    def detector(self) -> nn.Module:
        """What detects, without a mask head."""
        return self

    def set_step(self, seed: int, step: int) -> None:
        """Called before each optimiser step, with numbers that are the same in all processes and in a resumed run.

        For what a model draws anew in every step, equal in all processes. What each process draws for itself, such as dropout,
        comes from torch's generator, whose state the checkpoints keep.
        """

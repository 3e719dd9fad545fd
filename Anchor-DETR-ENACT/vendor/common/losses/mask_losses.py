"""The losses of masks (DETR, section 4.4): focal loss and dice, of the pairs of the last decoder layer.

Shapes: B images, T objects of the batch, K pairs of the layer, H x W pixels of the padded batch, h x w of the masks.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from ..models.mask_head import QueryMasks
from .matching import Matching

ALPHA, GAMMA = 0.25, 2.0


def mask_losses(
    masks: QueryMasks, matching: Matching, layers: int, targets: list[dict[str, Any]], objects: Tensor
) -> dict[str, Tensor]:
    """``loss_mask`` and ``loss_dice``, scalars. The masks of matched queries alone are computed; padding is background.

    Args:
        masks: of the batch's queries.
        matching: one to one, of all layers.
        layers: how many; every one has as many pairs.
        targets: per image ``masks`` (n, H_i, W_i) bool, of the image without its padding.
        objects: scalar, what the sums over pairs are divided by.
    """
    last = matching.layer.argsort(stable=True)[len(matching.layer) - len(matching.layer) // layers :]
    image, query, target = (index[last] for index in (matching.image, matching.query, matching.target))
    if not len(image):  # the head takes part in every step all the same, which several processes rely on
        nothing = masks(image.new_zeros(1), query.new_zeros(1)).sum() * 0.0
        return {"loss_mask": nothing, "loss_dice": nothing}
    truth = pad_masks(targets)[target].float()
    logits = F.interpolate(masks(image, query)[:, None], truth.shape[1:], mode="bilinear").flatten(1)
    truth = truth.flatten(1)
    focal = sigmoid_focal_loss(logits, truth, alpha=ALPHA, gamma=GAMMA).mean(1)
    p = logits.sigmoid()
    dice = 1 - (2 * (p * truth).sum(1) + 1) / (p.sum(1) + truth.sum(1) + 1)
    return {"loss_mask": focal.sum() / objects, "loss_dice": dice.sum() / objects}


def pad_masks(targets: list[dict[str, Any]]) -> Tensor:
    """The masks of all images, one after the other, padded to the largest: (T, H, W) bool."""
    height, width = (max(t["masks"].shape[i] for t in targets) for i in (1, 2))
    return torch.cat([F.pad(t["masks"], (0, width - t["masks"].shape[2], 0, height - t["masks"].shape[1])) for t in targets])

"""Contrastive denoising queries (Zhang et al., ICLR 2023): noisy objects, some to be mended by the decoders, some to be dropped.

Shapes: B images, T objects of the batch, m objects of the image with the most, G groups, P = 2 m G slots, Q matching queries,
d features.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from common.losses.matching import Matching
from common.models.layers import inverse_sigmoid


@dataclass(frozen=True)
class Noise:
    """How much is denoised, and how noisy it is.

    Attributes:
        number: objects and their negatives in all groups: there are number // m groups, at least one.
        label_noise_ratio: half of this share of the labels is replaced.
        box_noise_scale: how far the corners of a box move, in halves of its sides; those of negatives move further.
    """

    number: int = 100
    label_noise_ratio: float = 0.5
    box_noise_scale: float = 0.4


class Denoising(NamedTuple):
    """Denoising queries, which stand before the matching queries.

    Attributes:
        content: (B, P, d).
        reference: (B, P, 4) the logits of noisy boxes; 0 in slots that an image has no object for.
        attn_mask: (P + Q, P + Q) bool, True = not seen: matching queries do not see these, nor groups each other.
        groups: G.
    """

    content: Tensor
    reference: Tensor
    attn_mask: Tensor
    groups: int


def denoising_queries(
    targets: list[dict[str, Any]], label_enc: nn.Embedding, num_queries: int, num_classes: int, noise: Noise
) -> Denoising:
    """Makes queries of the objects: in each group m positives, then m negatives, an object at the same place in every group.

    Nothing is drawn where there is no noise. Without any object there are no queries (P = 0), and ``label_enc`` still gets a
    gradient, of zeros.

    Args:
        targets: per image ``labels`` (n,) and ``boxes`` (n, 4) cxcywh in [0, 1].
        label_enc: labels to contents.
        num_queries: Q.
        num_classes: of which replaced labels are drawn.
    """
    sizes = [len(t["labels"]) for t in targets]
    most = max(sizes)
    groups = max(1, noise.number // most) if most else 1
    labels = torch.cat([t["labels"] for t in targets]).expand(groups, 2, -1)
    boxes = torch.cat([t["boxes"] for t in targets]).expand(groups, 2, -1, -1)
    device = boxes.device
    image, slot = (x.to(device, non_blocking=True) for x in _places(sizes, groups))
    content = label_enc(_flip(labels, num_classes, noise.label_noise_ratio).flatten())
    reference = inverse_sigmoid(_shift(boxes, noise.box_noise_scale)).flatten(0, 2)
    size = (len(targets), 2 * most * groups)
    return Denoising(
        content=content.new_zeros(*size, content.shape[-1]).index_put((image, slot), content),
        reference=reference.new_zeros(*size, 4).index_put((image, slot), reference),
        attn_mask=_mask(most, groups, num_queries).to(device, non_blocking=True),
        groups=groups,
    )


def positives(sizes: list[int], groups: int, layers: int) -> Matching:
    """Which slots are which objects', on the host: the positives of all groups, in every layer."""
    image, slot = (x.view(groups, 2, -1)[:, 0].flatten() for x in _places(sizes, groups))
    target = torch.arange(sum(sizes)).repeat(groups)
    layer = torch.arange(layers).repeat_interleave(len(target))
    return Matching(layer, *(x.repeat(layers) for x in (image, slot, target)))


def _places(sizes: list[int], groups: int) -> tuple[Tensor, Tensor]:
    """Image and slot of each object's positive and negative query in every group, (G * 2 * T,) each."""
    most = max(sizes)
    image = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    number = torch.cat([torch.arange(size) for size in sizes])
    first = torch.arange(groups)[:, None, None] * 2 * most + torch.arange(2)[:, None] * most
    return image.expand(groups, 2, -1).flatten(), (first + number).flatten()


def _flip(labels: Tensor, num_classes: int, ratio: float) -> Tensor:
    if not ratio:
        return labels
    replaced = torch.rand(labels.shape, device=labels.device) < ratio / 2
    return torch.where(replaced, torch.randint_like(labels, num_classes), labels)


def _shift(boxes: Tensor, scale: float) -> Tensor:
    """boxes (G, 2, T, 4) cxcywh, positives and negatives -> the same with corners that have moved, inside the image."""
    if not scale:
        return boxes
    corners = box_convert(boxes, "cxcywh", "xyxy")
    sign = torch.randint_like(corners, 2) * 2 - 1
    far = torch.arange(2, device=boxes.device)[:, None, None]
    distance = (torch.rand_like(corners) + far) * scale * boxes[..., 2:].repeat(1, 1, 1, 2) / 2
    return box_convert((corners + sign * distance).clamp(0, 1), "xyxy", "cxcywh")


def _mask(most: int, groups: int, num_queries: int) -> Tensor:
    """Who does not see whom."""
    own = torch.cat((torch.arange(groups).repeat_interleave(2 * most), torch.full((num_queries,), -1)))
    return (own[:, None] != own) & (own >= 0)

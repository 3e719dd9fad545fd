"""From a model's outputs to boxes in pixels of the original images.

Shapes: L decoder layers, B images, Q queries, C classes, k detections.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert


@dataclass(frozen=True)
class PostProcess:
    """A detector's way from its outputs to detections.

    Attributes:
        best: outputs of a model, and original sizes (B, 2), height and width in pixels -> k detections of each image:
            ``scores`` (B, k), ``labels`` (B, k), ``boxes`` (B, k, 4) xyxy in pixels.
        choose: the same of one image, (k,) and (k, 4) -> the indices of those to return; None: all.
    """

    best: Callable[[dict[str, Any], Tensor], dict[str, Tensor]]
    choose: Callable[[dict[str, Tensor]], Tensor] | None = None

    def __call__(self, outputs: dict[str, Any], orig_sizes: Tensor) -> list[dict[str, Tensor]]:
        """Per image ``scores`` (k,), ``labels`` (k,), ``boxes`` (k, 4)."""
        batched = self.best(outputs, orig_sizes)
        found = [dict(zip(batched, values)) for values in zip(*batched.values(), strict=True)]
        if self.choose is None:
            return found
        return [{name: values[kept] for name, values in f.items()} for f, kept in zip(found, map(self.choose, found))]


def softmax_detections(outputs: dict[str, Any], orig_sizes: Tensor) -> dict[str, Tensor]:
    """One detection per query: its best class that is not "no object", the last one (DETR). See :attr:`PostProcess.best`.

    Args:
        outputs: ``pred_logits`` (L, B, Q, C + 1), ``pred_boxes`` (L, B, Q, 4) cxcywh in [0, 1]; the last layer counts.
        orig_sizes: (B, 2) height and width of the original images in pixels.
    """
    scores, labels = outputs["pred_logits"][-1].float().softmax(-1)[..., :-1].max(-1)
    return _detections(scores, labels, outputs["pred_boxes"][-1].float(), orig_sizes)


def sigmoid_detections(outputs: dict[str, Any], orig_sizes: Tensor, k: int = 100) -> dict[str, Tensor]:
    """The best k of all (query, class) pairs of the sigmoid detectors; otherwise as :func:`softmax_detections`."""
    probabilities = outputs["pred_logits"][-1].float().sigmoid()
    num_classes = probabilities.shape[-1]
    scores, index = probabilities.flatten(1).topk(min(k, probabilities[0].numel()), dim=1)
    query = index.div(num_classes, rounding_mode="floor")
    boxes = outputs["pred_boxes"][-1].float().gather(1, query[..., None].expand(-1, -1, 4))
    return _detections(scores, index % num_classes, boxes, orig_sizes)


def with_category_ids(postprocess: PostProcess, category_ids: Sequence[int], device: torch.device) -> PostProcess:
    """The same with the ids of a dataset's categories for the numbers of the model's classes.

    Args:
        category_ids: the id of each class number, (C,).
        device: where the outputs are.
    """
    ids = torch.tensor(category_ids, device=device)

    def best(outputs: dict[str, Any], orig_sizes: Tensor) -> dict[str, Tensor]:
        found = postprocess.best(outputs, orig_sizes)
        return found | {"labels": ids[found["labels"]]}

    return replace(postprocess, best=best)


def _detections(scores: Tensor, labels: Tensor, boxes: Tensor, orig_sizes: Tensor) -> dict[str, Tensor]:
    height, width = orig_sizes.to(boxes).unbind(1)
    scale = torch.stack((width, height, width, height), dim=1)
    return {"scores": scores, "labels": labels, "boxes": box_convert(boxes, "cxcywh", "xyxy") * scale[:, None]}

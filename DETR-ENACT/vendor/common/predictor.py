"""A trained detector in Python: images in, detections out."""

from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .boundary.downloads import download, is_url
from .data.images import as_rgb, read_image
from .data.loading import Batch, pad_batch
from .data.transforms import boxes_of, evaluation_transforms
from .detector import Detector
from .errors import UserError
from .evaluation.masks import image_masks, sizes_of
from .evaluation.panoptic import panoptic_map
from .evaluation.postprocess import with_category_ids
from .models.model import DetectionModel

ImageLike: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Predictor:
    """Detects objects in images of any size. ``--predict`` is made of it.

    Args:
        detector: whose model it is.
        model: trained; is set to evaluation.
        args: the options that it was built with.
        categories: ``category_names`` (id -> name), ``category_ids`` (the id of each class number) and, of a panoptic model,
            ``stuff``: ids of categories without instances.
        device: where the model runs; it is moved there.

    Attributes:
        model: a plain ``nn.Module``.
        category_names: id -> name.
    """

    def __init__(
        self, detector: Detector, model: DetectionModel, args: Namespace, categories: dict[str, Any], device: torch.device
    ):
        self.detector, self.args, self.device = detector, args, device
        self.model: nn.Module = model.to(device).eval()
        self.category_names: dict[int, str] = categories["category_names"]
        self.category_ids: Sequence[int] = categories["category_ids"]
        self.stuff: Sequence[int] | None = categories.get("stuff")
        self.postprocess = with_category_ids(detector.build_postprocess(args), self.category_ids, device)

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        score_threshold: float = 0.5,
        batch_size: int = 1,
        information: bool = False,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Detects the objects of an image, or of several.

        Args:
            images: a path, an https URL, a PIL image, an array (H, W, 3) uint8 RGB, a tensor (3, H, W) uint8 or float in [0, 1]; or
                a list of such.
            score_threshold: least score of what is returned.
            batch_size: images that are computed at once. They are padded to a common size, at whose border a backbone gives
                slightly other features: with 1, the results do not depend on the neighbours.
            information: return what the detector's pictures show, such as the self-information of the last encoder layer.

        Returns:
            For each image a dict of tensors on the CPU, the surest detection first: ``boxes`` (k, 4) xyxy in pixels, ``scores``
            (k,), ``labels`` (k,) category ids; ``names``, k texts; of a model with a mask head ``masks`` (k, H, W) bool; of a
            panoptic one ``panoptic``, with ``ids`` (H, W) and ``segments``, see :func:`panoptic_map`; and, where asked,
            ``information``: caption -> map (h, w).

        Raises:
            UserError: what is given is no image.
        """
        several = isinstance(images, (list, tuple))
        given = list(images) if several else [images]
        size = 1 if information else batch_size  # the pictures are of one image
        found = []
        for start in range(0, len(given), size):
            found += self._detect([as_image(image) for image in given[start : start + size]], score_threshold, information)
        return found if several else found[0]

    @torch.no_grad()
    def _detect(self, images: list[Image.Image], score_threshold: float, information: bool) -> list[dict[str, Any]]:
        batch = batch_of(images, self.args.image_size).to(self.device)
        precision = PRECISIONS.get(self.args.amp)
        recorded = self.detector.record(self.model) if information else nullcontext({})
        with recorded as records, torch.autocast(self.device.type, precision, enabled=bool(precision)):
            outputs = self.model(batch.images, batch.mask)
        orig_sizes = torch.stack([t["orig_size"] for t in batch.targets])
        sizes, results = sizes_of(batch), []
        for i, found in enumerate(self.postprocess(outputs, orig_sizes)):
            kept = (found["scores"] >= score_threshold).nonzero()[:, 0]
            kept = kept[found["scores"][kept].argsort(descending=True, stable=True)]
            result: dict[str, Any] = {name: values[kept].cpu() for name, values in found.items()}
            result["names"] = [self.category_names.get(c, str(c)) for c in result["labels"].tolist()]
            if "masks" in outputs:
                result |= self._masks(outputs, i, kept, (batch.images.shape[-2:], *sizes[i]))
            if information:
                maps = self.detector.pictures(records, outputs)
                result["information"] = {caption: values.cpu() for caption, values in maps.items()}
            results.append(result)
        return results

    def _masks(self, outputs: dict[str, Any], image: int, kept: Tensor, shapes: tuple[tuple[int, int], ...]) -> dict[str, Any]:
        """Those of the queries that are kept, which of these models are the detections; and the panoptic map. ``shapes``: of the
        padded batch, of the image in it, and originally.
        """
        found: dict[str, Any] = {"masks": image_masks(outputs["masks"], image, kept, *shapes).cpu()}
        if self.stuff is not None:
            options = {"category_ids": self.category_ids, "stuff": self.stuff, "threshold": self.args.panoptic_threshold}
            ids, segments = panoptic_map(outputs, image, *shapes, **options)
            found["panoptic"] = {"ids": torch.from_numpy(ids), "segments": segments}
        return found


def batch_of(images: Sequence[Image.Image], image_size: int) -> Batch:
    """Images as evaluation sees them, on the CPU; ``image_size``: their shortest side."""
    samples, transforms = [], evaluation_transforms(image_size)
    for image in images:
        orig_size = torch.tensor([image.height, image.width])
        nothing = {"boxes": boxes_of(torch.zeros(0, 4), image.height, image.width), "labels": torch.zeros(0, dtype=torch.long)}
        samples.append(transforms(image, nothing | {"orig_size": orig_size}))
    pixels, targets = zip(*samples, strict=True)
    return Batch(*pad_batch(list(pixels)), list(targets))


def as_image(image: ImageLike) -> Image.Image:
    """What stands for an image, as an RGB image; UserError where it is none."""
    if is_url(image):
        return read_image(download(image))
    if isinstance(image, (str, Path)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return as_rgb(image)
    if isinstance(image, Tensor):
        if image.ndim != 3 or len(image) != 3:
            raise UserError(f"a tensor of the shape {tuple(image.shape)} is no image: pass (3, height, width)")
        if image.is_floating_point():
            image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
        image = image.permute(1, 2, 0).cpu().numpy()
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        form = f" of {image.shape} {image.dtype}" if isinstance(image, np.ndarray) else ""
        accepted = "a path, an https URL, a PIL image, an array (height, width, 3) uint8 RGB, or a tensor (3, height, width)"
        raise UserError(f"a {type(image).__name__}{form} is no image: pass {accepted}")
    return Image.fromarray(np.ascontiguousarray(image))

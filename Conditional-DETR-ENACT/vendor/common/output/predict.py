"""Drawing a detector's answers on images."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from pycocotools.coco import COCO
from torchvision.ops import box_convert
from tqdm import tqdm

from ..boundary.outputs import make_folder
from ..data.images import read_image
from ..data.loading import Batch, pad_batch
from ..data.transforms import boxes_of, evaluation_transforms
from ..detector import Detector
from ..errors import UserError, quoted
from ..evaluation.masks import image_masks
from ..evaluation.panoptic import panoptic_map
from ..evaluation.postprocess import PostProcess
from ..models.mask_head import QueryMasks
from ..models.model import DetectionModel
from .drawing import detection_panel, draw_detections, draw_panoptic, save_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_images(paths: list[Path]) -> list[Path]:
    """Files as given, and the images of folders, sorted, each once; UserError where there are none."""
    found: dict[Path, Path] = {}
    for path in paths:
        try:
            str(path).encode()
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()) if path.is_dir() else [path]
            present = path.is_dir() or path.is_file()
        except UnicodeEncodeError as error:
            raise UserError(f"{quoted(str(path))} has a name that is not UTF-8: rename it") from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"{quoted(str(path))} cannot be read ({quoted(error)}): pass image files or folders to --predict"
            ) from error
        if not present:
            raise UserError(f"{path} does not exist or is no file: pass image files or folders to --predict")
        if not inside:
            raise UserError(f"{path} holds no images: pass image files or a folder of them")
        found |= {p.resolve(): p for p in inside if p.resolve() not in found}
    return list(found.values())


def picture_names(images: list[Path]) -> list[str]:
    """What the pictures of images are called, without a suffix, no two alike: as the images; where several share a name, all as
    their paths below the folder that they have in common, with their suffixes.
    """
    names = [image.stem for image in images]
    if len({name.casefold() for name in names}) == len(names):
        return names
    paths = [Path(os.path.abspath(image)) for image in images]
    common = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(common).as_posix() for path in paths]


@torch.no_grad()
def predict(
    model: DetectionModel,
    detector: Detector,
    images: list[Path],
    folder: Path,
    *,
    postprocess: PostProcess,
    accelerator: Accelerator,
    categories: dict[str, Any],
    image_size: int,
    score_threshold: float,
    panoptic_threshold: float,
    information: bool,
    truth: COCO | None = None,
) -> None:
    """Writes a picture per image to ``folder``: its detections; beside them, where asked, the true boxes and what decided.

    Args:
        model: on the accelerator's device; runs in the accelerator's precision.
        categories: ``category_names`` (id -> name) and, of a panoptic model, ``stuff``, see ``categories.py``. Its maps are drawn,
            too, alone in a second picture of the same name in ``<folder>_panoptic``.
        image_size: shortest side that the model sees.
        score_threshold: least score of a box that is drawn.
        panoptic_threshold: least probability of a segment's class.
        information: draw the detector's own pictures beside it, such as the self-information of the last encoder layer.
        truth: the dataset that the images are from, to draw their true boxes.
    """
    model = accelerator.unwrap_model(model).eval()
    pictures = [folder / f"{name}.png" for name in picture_names(images)]
    _keep(images, pictures)
    names = categories["category_names"]
    for path, target in zip(tqdm(images, desc="pictures", leave=False), pictures):
        make_folder(target.parent)
        image = read_image(path)
        batch = batch_of(image, image_size).to(accelerator.device)
        with detector.record(model) as records, accelerator.autocast():
            outputs = model(batch.images, batch.mask)
        orig_size = torch.tensor([[image.height, image.width]], device=accelerator.device)
        scores, labels, boxes = (postprocess(outputs, orig_size)[0][k].cpu().numpy() for k in ("scores", "labels", "boxes"))
        kept = scores >= score_threshold
        scores, labels, boxes = scores[kept], labels[kept].tolist(), boxes[kept]
        pixels = np.asarray(image)
        masks = panoptic = None
        if "masks" in outputs:
            masks = _masks_of(outputs["masks"], kept, batch, (image.height, image.width))
            panoptic = _panoptic_of(outputs, batch, image, categories, panoptic_threshold)
        if not (information or truth):
            picture = draw_detections(pixels, boxes, labels, scores, names, masks)
            if panoptic:
                map_target = folder.with_name(f"{folder.name}_panoptic") / target.relative_to(folder)
                make_folder(map_target.parent)
                save_image(map_target, draw_panoptic(pixels, names=names, **panoptic))
        else:
            maps = detector.pictures(records, outputs) if information else {}
            maps = {caption: values.cpu().numpy() for caption, values in maps.items()}
            true_boxes = _true_boxes(truth, path) if truth else None
            picture = detection_panel(pixels, boxes, labels, scores, names, maps, true_boxes, masks=masks, panoptic=panoptic)
        save_image(target, picture)


def _keep(images: list[Path], pictures: list[Path]) -> None:
    """UserError where a picture would take the place of an image."""
    for lost in {image.resolve() for image in images} & {picture.resolve() for picture in pictures}:
        raise UserError(f"{lost} would be overwritten by its own picture: choose another --output_dir")


def batch_of(image: Image.Image, image_size: int) -> Batch:
    """A batch of one image as evaluation makes it."""
    no_boxes = {"boxes": boxes_of(torch.zeros(0, 4), image.height, image.width), "labels": torch.zeros(0, dtype=torch.long)}
    pixels, target = evaluation_transforms(image_size)(image, no_boxes)
    return Batch(*pad_batch([pixels]), [target])


def _masks_of(masks: QueryMasks, kept: np.ndarray, batch: Batch, orig_size: tuple[int, int]) -> np.ndarray:
    """(k, H, W) bool of the queries that are kept, of an image alone."""
    queries = torch.from_numpy(np.flatnonzero(kept)).to(masks.hs.device)
    size = batch.images.shape[-2:]
    return image_masks(masks, 0, queries, size, size, orig_size).cpu().numpy()


def _panoptic_of(
    outputs: dict[str, Any], batch: Batch, image: Image.Image, categories: dict[str, Any], threshold: float
) -> dict[str, Any] | None:
    """What :func:`draw_panoptic` draws; None of a model that knows instances alone."""
    if "stuff" not in categories:
        return None
    size, orig_size = batch.images.shape[-2:], (image.height, image.width)
    stuff = categories["stuff"]
    ids, segments = panoptic_map(outputs, 0, size, size, orig_size, stuff=stuff, threshold=threshold)
    return {"ids": ids, "segments": segments, "stuff": stuff}


def _true_boxes(truth: COCO, path: Path) -> tuple[np.ndarray, list[int]]:
    """Boxes (n, 4) xyxy in pixels and category ids of an image."""
    [image_id] = [i for i, image in truth.imgs.items() if image["file_name"] == path.name]
    annotations = [a for a in truth.imgToAnns[image_id] if not a["iscrowd"]]
    xywh = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float64).reshape(-1, 4)
    return box_convert(xywh, "xywh", "xyxy").numpy(), [a["category_id"] for a in annotations]

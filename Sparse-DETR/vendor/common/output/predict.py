"""Drawing a detector's answers on images."""

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO
from torchvision.ops import box_convert
from tqdm import tqdm

from ..boundary.outputs import make_folder
from ..data.images import read_image
from ..errors import UserError, quoted
from ..predictor import Predictor
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


def draw_predictions(
    predictor: Predictor,
    images: list[Path],
    folder: Path,
    *,
    score_threshold: float,
    information: bool,
    truth: COCO | None = None,
) -> None:
    """Writes a picture per image to ``folder``: its detections; beside them, where asked, the true boxes and what decided. The map
    of a panoptic model is drawn, too, beside them or alone in a second picture of the same name in ``<folder>_panoptic``; stuff,
    which would cover everything else, is drawn there alone.

    Args:
        score_threshold: least score of a box that is drawn.
        information: draw the detector's own pictures beside it, such as the self-information of the last encoder layer.
        truth: the dataset that the images are from, to draw their true boxes.
    """
    pictures = [folder / f"{name}.png" for name in picture_names(images)]
    beside = [folder.with_name(f"{folder.name}_panoptic") / picture.relative_to(folder) for picture in pictures]
    _keep(images, pictures)
    maps_alone = predictor.stuff is not None and not (information or truth)
    for parent in {picture.parent for picture in (*pictures, *(beside if maps_alone else ()))}:
        make_folder(parent)
    names = predictor.category_names
    for path, target, map_target in zip(tqdm(images, desc="pictures", leave=False), pictures, beside):
        image = read_image(path)
        found = predictor(image, score_threshold, information=information)
        pixels, panoptic, stuff = np.asarray(image), None, predictor.stuff or ()
        things = [k for k, label in enumerate(found["labels"].tolist()) if label not in stuff]
        drawn = (*(found[name][things].numpy() for name in ("boxes", "labels", "scores")), names)
        masks = found["masks"][things].numpy() if "masks" in found else None
        if "panoptic" in found:
            panoptic = found["panoptic"] | {"ids": found["panoptic"]["ids"].numpy(), "stuff": stuff}
        if information or truth:
            maps = {caption: values.numpy() for caption, values in found.get("information", {}).items()}
            true_boxes = _true_boxes(truth, path, stuff) if truth else None
            save_image(target, detection_panel(pixels, *drawn, maps, true_boxes, masks=masks, panoptic=panoptic))
            continue
        save_image(target, draw_detections(pixels, *drawn, masks))
        if panoptic:
            save_image(map_target, draw_panoptic(pixels, names=names, **panoptic))


def _keep(images: list[Path], pictures: list[Path]) -> None:
    """UserError where a picture would take the place of an image."""
    for lost in {image.resolve() for image in images} & {picture.resolve() for picture in pictures}:
        raise UserError(f"{lost} would be overwritten by its own picture: choose another --output_dir")


def _true_boxes(truth: COCO, path: Path, stuff: Collection[int]) -> tuple[np.ndarray, list[int]]:
    """Boxes (n, 4) xyxy in pixels and category ids of the things in an image."""
    [image_id] = [i for i, image in truth.imgs.items() if image["file_name"] == path.name]
    annotations = [a for a in truth.imgToAnns[image_id] if not a["iscrowd"] and a["category_id"] not in stuff]
    xywh = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float64).reshape(-1, 4)
    return box_convert(xywh, "xywh", "xyxy").numpy(), [a["category_id"] for a in annotations]

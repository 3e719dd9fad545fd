"""Where the images and annotations of a dataset are: the layouts that the tools of the field export.

    COCO 2017      train2017/, val2017/, annotations/instances_train2017.json, annotations/instances_val2017.json
    Roboflow       train/ and valid/, in each the images and _annotations.coco.json
    YOLO           data.yaml, images and labels, see ``yolo.py``
    one file       images and one JSON file of COCO's format, there or in annotations/; a share of the images is for validation

and any two folders of images with an annotation file each.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..boundary.annotations import INSTANCES, read_json
from ..boundary.schema import conform
from ..errors import UserError
from .yolo import read_yolo

ROBOFLOW_FILE = "_annotations.coco.json"
YAMLS = ("data.yaml", "data.yml")
EXPECTED = (
    "COCO 2017's layout (train2017/, val2017/, annotations/), Roboflow's COCO export (train/ and valid/, each with "
    "_annotations.coco.json), a YOLO dataset (data.yaml), or images and one JSON file in COCO's format; or name folders and files "
    "with --train_images, --train_annotations, --val_images and --val_annotations"
)


class Split(NamedTuple):
    """The images of training or of validation.

    Attributes:
        name: for messages.
        images: the folder that the names of files begin in.
        annotations: the file that says what is on them.
        read: that file's content in COCO's format, where it is not just that.
    """

    name: str
    images: Path
    annotations: Path
    read: Callable[[], dict[str, Any]] | None = None


class Layout(NamedTuple):
    """A dataset.

    Attributes:
        folder: that holds it.
        train, val: its parts; what is missing in them is told when they are read.
        said: what was recognised, in one line.
        panoptic: whether COCO's panoptic annotations may lie beside it.
        shared: whether validation is a share of one set, which depends on seed and size of the share.
    """

    folder: Path
    train: Split | None
    val: Split
    said: str
    panoptic: bool = False
    shared: bool = False


def recognise(folder: Path, val_share: float = 0.2, seed: int = 0) -> Layout:
    """The layout of a dataset's folder, or of a ``data.yaml``.

    Args:
        val_share: of the images that are for validation, in a folder that does not tell them apart.
        seed: which they are.

    Raises:
        UserError: it has none of the layouts, or several annotation files.
    """
    if folder.suffix in (".yaml", ".yml") and folder.is_file():
        return _yolo(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: pass one that holds {EXPECTED}")
    if any((folder / name).is_dir() for name in ("train2017", "val2017")):
        return _coco(folder)
    if any((folder / name / ROBOFLOW_FILE).is_file() for name in ("train", "valid")):
        return _roboflow(folder)
    if found := [folder / name for name in YAMLS if (folder / name).is_file()]:
        return _yolo(found[0])
    files = sorted({*folder.glob("*.json"), *folder.glob("annotations/*.json")})
    if not files:
        raise UserError(f"{folder} holds no dataset: pass a folder with {EXPECTED}")
    if len(files) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in files[:5])
        advice = "name those to use with --train_images, --train_annotations, --val_images and --val_annotations, or leave one"
        raise UserError(f"{folder} holds {len(files)} JSON files ({names}): {advice}")
    return _one_file(folder, files[0], val_share, seed)


def of_pairs(train: tuple[Path, Path] | None, val: tuple[Path, Path]) -> Layout:
    """The dataset of folders of images and annotation files that were named, for training and validation."""
    parts = [Split(name, *pair) if pair else None for name, pair in (("train", train), ("val", val))]
    said = "; ".join(f"{p.name}: {p.annotations} with the images of {p.images}" for p in parts if p)
    return Layout(val[0], *parts, f"data: {said}")


def _coco(folder: Path) -> Layout:
    train, val = (
        Split(name, folder / name, folder / "annotations" / f"instances_{name}.json") for name in ("train2017", "val2017")
    )
    return Layout(folder, train, val, f"data: {folder} in the layout of COCO 2017", panoptic=True)


def _roboflow(folder: Path) -> Layout:
    train, val = (Split(name, folder / name, folder / name / ROBOFLOW_FILE) for name in ("train", "valid"))
    return Layout(folder, train, val, f"data: {folder} in the layout of Roboflow's COCO export, validated on valid/")


def _yolo(file: Path) -> Layout:
    train, val = (Split(name, file.parent, file, partial(read_yolo, file, name)) for name in ("train", "val"))
    return Layout(file.parent, train, val, f"data: the YOLO dataset of {file}")


def _one_file(folder: Path, file: Path, val_share: float, seed: int) -> Layout:
    content = conform(INSTANCES, read_json(file, ""), file, "a COCO detection dataset")
    names = {image["file_name"] for image in content["images"]}
    if len(names) < 2:
        raise UserError(f"{file} lists {len(names)} image, of which none can be left for validation: add images")
    # By their names' digests: the same in every process and version, whatever the order of the file; one file is never in both.
    shuffled = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode(errors="surrogatepass")).digest())
    count = min(max(round(val_share * len(names)), 1), len(names) - 1)
    chosen = set(shuffled[:count])
    validated = {image["id"] for image in content["images"] if image["file_name"] in chosen}
    images = next((f for f in (folder, *sorted(folder.iterdir())) if (f / shuffled[0]).is_file()), folder)
    train, val = (
        Split(name, images, file, partial(_part, content, validated, inside))
        for name, inside in (("training share", False), ("validation share", True))
    )
    said = f"data: {file}, of whose {len(names)} images {count} are for validation (--val_share {val_share:g}, --seed {seed})"
    return Layout(folder, train, val, said, shared=True)


def _part(content: dict[str, Any], image_ids: set[int], inside: bool) -> dict[str, Any]:
    """The images with these ids, or the others, with their annotations."""
    images = [image for image in content["images"] if (image["id"] in image_ids) == inside]
    annotations = [entry for entry in content["annotations"] if (entry["image_id"] in image_ids) == inside]
    return content | {"images": images, "annotations": annotations}

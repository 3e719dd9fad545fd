"""The built-in shapes dataset: synthetic object detection on disk in the layout of COCO 2017, drawn in seconds.

    <root>/train2017/000000000001.jpg ...     <root>/annotations/instances_train2017.json
    <root>/val2017/000000000001.jpg ...       <root>/annotations/instances_val2017.json

and in that of COCO panoptic, with the same images:

    <root>/panoptic_train2017/000000000001.png ...     <root>/annotations/panoptic_train2017.json
    <root>/panoptic_val2017/000000000001.png ...       <root>/annotations/panoptic_val2017.json

Six classes, told apart by their outline alone, lie on textured backgrounds at many scales. They overlap and are
cut by the image border; about 5 % of the images are empty and about 3 % contain a crowd. Boxes and polygons are
amodal: they span the whole shape inside the image, also where another one hides it.

That is the task "outline". In the task "context" a class is told by something far away from its object, see `shapes_context.py`.
"""

import argparse
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
from tqdm import tqdm

from ..errors import UserError
from .shapes_context import PUPILS, draw_context_scene
from .shapes_drawing import CLASSES, Scene, draw_scene
from .shapes_panoptic import categories, panoptic_annotation

FORMAT = 2  # to be raised whenever the same parameters give other images or annotations
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 4096


class Task(NamedTuple):
    """What there is to learn: the dataset's folder, its description, its classes, and what draws image ``(seed, split, index,
    image_size)`` of it."""

    folder: str
    description: str
    classes: tuple[str, ...]
    draw: Callable[[int, str, int, int], Scene]


OUTLINE, CONTEXT = "outline", "context"
TASKS = {
    OUTLINE: Task("shapes", "Built-in shapes dataset", CLASSES, draw_scene),
    CONTEXT: Task("shapes_context", "Built-in shapes dataset, classes by context", tuple(PUPILS), draw_context_scene),
}


def _info(split: str, count: int, image_size: int, seed: int, task: str) -> dict:
    return {
        "description": f"{TASKS[task].description}, {split}2017",
        "format": FORMAT,
        "split": split,
        "count": count,
        "image_size": image_size,
        "seed": seed,
    }


def _image_name(index: int) -> str:
    return f"{index + 1:012d}.jpg"


def _annotation_file(root: Path, kind: str, split: str) -> Path:
    return root / "annotations" / f"{kind}_{split}2017.json"


def _write_split(root: Path, split: str, count: int, image_size: int, seed: int, task: str, progress: bool) -> None:
    classes, draw = TASKS[task].classes, TASKS[task].draw
    folder, panoptic_folder = root / f"{split}2017", root / f"panoptic_{split}2017"
    folder.mkdir()
    panoptic_folder.mkdir()
    images, annotations, panoptic = [], [], []
    for index in tqdm(range(count), desc=folder.name, unit="image", disable=not progress):
        scene, image_id = draw(seed, split, index, image_size), index + 1
        name = _image_name(index)
        (folder / name).write_bytes(cv2.imencode(".jpg", scene.pixels(), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        images.append({"id": image_id, "file_name": name, "width": scene.width, "height": scene.height})
        for annotation in scene.annotations:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
        ids, segments = panoptic_annotation(scene.owner, scene.colours[0][0], scene.annotations, len(classes))
        png = name.replace(".jpg", ".png")
        (panoptic_folder / png).write_bytes(cv2.imencode(".png", ids[..., ::-1])[1].tobytes())
        panoptic.append({"image_id": image_id, "file_name": png, "segments_info": segments})
    content = {"info": _info(split, count, image_size, seed, task), "licenses": [], "images": images}
    things = [{name: c[name] for name in ("id", "name", "supercategory")} for c in categories(classes) if c["isthing"]]
    instances = content | {"annotations": annotations, "categories": things}
    segmented = content | {"annotations": panoptic, "categories": categories(classes)}
    for kind, described in (("instances", instances), ("panoptic", segmented)):
        _annotation_file(root, kind, split).write_text(json.dumps(described, separators=(",", ":")))


def _check(train: int, val: int, image_size: int, seed: int) -> None:
    for name, value in (("train", train), ("val", val), ("seed", seed)):
        if value < 0:
            raise UserError(f"the shapes dataset cannot have {name}={value}: choose 0 or more")
    if not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE:
        raise UserError(
            f"the shapes dataset cannot have image_size={image_size}: choose {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels"
        )


@contextmanager
def _access_to(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the shapes dataset cannot be written to {root} ({error.strerror or error}): choose a folder that can be written"
        ) from error


def _occupied(root: Path) -> bool:
    return root.exists() and (not root.is_dir() or any(root.iterdir()))


def _holds(root: Path, train: int, val: int, image_size: int, seed: int, task: str) -> bool:
    return all(
        _holds_split(root, kind, folder, suffix, _info(split, count, image_size, seed, task))
        for split, count in (("train", train), ("val", val))
        for kind, folder, suffix in (("instances", f"{split}2017", ".jpg"), ("panoptic", f"panoptic_{split}2017", ".png"))
    )


def _holds_split(root: Path, kind: str, folder: str, suffix: str, info: dict) -> bool:
    try:
        content = json.loads(_annotation_file(root, kind, info["split"]).read_text())
        names = set(os.listdir(root / folder))
    except (OSError, ValueError):
        return False
    if not isinstance(content, dict) or content.get("info") != info:
        return False
    return names.issuperset(Path(_image_name(index)).with_suffix(suffix).name for index in range(info["count"]))


def write_shapes_dataset(
    root: str | os.PathLike,
    *,
    train: int = 2000,
    val: int = 250,
    image_size: int = 128,
    seed: int = 0,
    task: str = OUTLINE,
    progress: bool = True,
) -> Path:
    """Writes the dataset to `root`, which must be missing or empty, as a whole or not at all, and returns `root`.

    Args:
        train, val: number of images of each split.
        image_size: longer side of the images in pixels, 16 to 4096; the shorter side is 0.7 to 1 times as long.
        seed: image i of a split depends on (task, seed, split, i, image_size) alone, so larger datasets begin with the same.
        task: one of `TASKS`: "outline" or "context".
        progress: shows a progress bar per split.
    Raises:
        UserError: on impossible numbers, where `root` holds something already, and where it cannot be written.
    """
    root = Path(root)
    _check(train, val, image_size, seed)
    with _access_to(root):
        if _occupied(root):
            raise UserError(f"{root} is not empty: choose another folder for the shapes dataset or remove it")
        target = root.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".shapes-{uuid.uuid4().hex}")
        try:
            (temporary / "annotations").mkdir(parents=True)
            for split, count in (("train", train), ("val", val)):
                _write_split(temporary, split, count, image_size, seed, task, progress)
            if target.exists():
                target.rmdir()  # Windows cannot rename onto an empty folder
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return root


def ensure_shapes_dataset(
    root: str | os.PathLike,
    *,
    train: int = 2000,
    val: int = 250,
    image_size: int = 128,
    seed: int = 0,
    task: str = OUTLINE,
    progress: bool = True,
) -> Path:
    """Returns `root` if it holds exactly this dataset, and writes it there first if it is missing or empty.

    Arguments and errors are those of `write_shapes_dataset`; nothing that `root` holds is ever changed.
    """
    root = Path(root)
    wanted = {"train": train, "val": val, "image_size": image_size, "seed": seed, "task": task}
    _check(train, val, image_size, seed)
    with _access_to(root):
        if not _occupied(root):
            try:
                return write_shapes_dataset(root, **wanted, progress=progress)
            except UserError:
                if not _holds(root, **wanted):  # else another process was first to finish the same dataset
                    raise
        elif not _holds(root, **wanted):
            raise UserError(
                f"{root} holds something other than the shapes dataset with train={train}, val={val}, "
                f"image_size={image_size}, seed={seed}, task={task}: choose another folder or remove it"
            )
    return root


def main(arguments: list[str] | None = None) -> int:
    """Command line of the generator; returns the exit code."""
    parser = argparse.ArgumentParser(
        f"python -m {__spec__.name}",
        description="Write the built-in shapes dataset.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    where = "folder to write, left alone if it holds this dataset already (default: data/shapes, or data/shapes_context)"
    parser.add_argument("--output", default=argparse.SUPPRESS, help=where)
    parser.add_argument("--task", choices=TASKS, default=OUTLINE, help="what tells the class: the object's outline, or its context")
    parser.add_argument("--train", type=int, default=2000, help="number of training images")
    parser.add_argument("--val", type=int, default=250, help="number of validation images")
    parser.add_argument("--image_size", type=int, default=128, help="longer side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other images")
    args = parser.parse_args(arguments)
    output = getattr(args, "output", Path("data") / TASKS[args.task].folder)
    numbers = {name: getattr(args, name) for name in ("train", "val", "image_size", "seed")}
    try:
        root = ensure_shapes_dataset(output, **numbers, task=args.task)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{root}: {args.train} training and {args.val} validation images of the shapes dataset")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Writing a checkpoint for other tools."""

from argparse import Namespace
from typing import Any

import torch

from ..boundary.checkpoints import save_checkpoint
from ..boundary.outputs import check_target
from ..data.coco_names import known_categories, told_categories
from ..data.transforms import detr_size
from ..detector import Detector
from ..errors import UserError
from ..evaluation.postprocess import with_category_ids
from ..output.export import PROGRAMS, export_program
from .options import CHANGEABLE
from .restore import build_model

WEIGHTS = (".pth", ".pt")


def run_export(detector: Detector, args: Namespace, checkpoint: dict[str, Any]) -> None:
    """Writes the weights under the published names, or the detector as a program, by the file's suffix."""
    suffix = args.export.suffix
    if suffix not in (*WEIGHTS, *PROGRAMS):
        raise UserError(f"--export {args.export} has no known suffix: name a .pth file for weights, or an .onnx or .pt2 file")
    check_target(args.export, "--export")
    if suffix in PROGRAMS:
        _check_sizes(args)
    model, _ = build_model(detector, args, checkpoint, checkpoint["num_classes"])
    if suffix in WEIGHTS:
        kept = (*detector.architecture, *CHANGEABLE, *detector.changeable)
        options = {name: getattr(args, name) for name in kept if hasattr(args, name)}
        exported = {"model": detector.export(model.state_dict(), args.nheads), "args": options}
        save_checkpoint(args.export, exported | told_categories(checkpoint))
        print(f"{len(exported['model'])} weights in {args.export}")
        return
    categories = known_categories(checkpoint)
    postprocess = with_category_ids(detector.build_postprocess(args), categories["category_ids"], torch.device("cpu"))
    description = {"detector": detector.name, "image_size": args.image_size, "category_names": categories["category_names"]}
    size = detr_size(640, 480, args.image_size, None)
    free = export_program(model.eval(), postprocess, args.export, size, description)
    without = " without its mask head," if model.detector is not model else ""
    print(f"{detector.name}{without} for {free} in {args.export}")


def _check_sizes(args: Namespace) -> None:
    """UserError where the size of something follows from the contents of an image, which a program cannot have."""
    if getattr(args, "clustering", "none") != "none" and args.capacity is None:  # options of some detectors
        raise UserError(f"--export {args.export} needs a fixed number of clusters: pass --capacity auto, or how many")
    if getattr(args, "nms", False):
        raise UserError(f"--export {args.export} needs a fixed number of boxes, which --nms has not: pass --no-nms")

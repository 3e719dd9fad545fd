"""A detector's command: train, evaluate or predict."""

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from . import interrupts
from .arguments import HABITS, check, common_parser, follow_checkpoint, parse
from .checkpoint import load_checkpoint, load_model, load_model_that_fits, save_checkpoint
from .coco import CocoDetection, category_names
from .data import build_dataset, evaluation_loader, training_loader
from .detector import Detector
from .errors import UserError
from .evaluation import evaluate
from .loop import train
from .outputs import prepare_output, summary, write_json
from .predict import find_images, predict
from .shapes import ensure_shapes_dataset
from .speed import speed_up

DEMO_PICTURES = 12


def main(detector: Detector, argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code. A mistake of the user ends as one sentence and code 2."""
    interrupts.install()
    try:
        run(detector, argv)
    except UserError as error:
        print(f"{detector.name}: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Exception) as error:
        if not interrupts.received():
            raise
        message = error if isinstance(error, KeyboardInterrupt) else interrupts.received()
        print(f"{detector.name}: {message}", file=sys.stderr)
        return 130  # what shells call a run that was interrupted
    return 0


def run(detector: Detector, argv: list[str] | None = None) -> None:
    """Parses the command line and does what it says; UserError where it cannot."""
    parser = common_parser(detector.name)
    detector.add_arguments(parser)
    args, explicit = parse(parser, detector.demo, argv)
    check(args)
    accelerator = build_accelerator(args)
    checkpoint = {}
    if args.resume or args.finetune:
        with accelerator.main_process_first():  # one process downloads, the others find the file
            checkpoint = load_checkpoint(args.resume or args.finetune)
        accelerator.print(_follow(detector, args, explicit, checkpoint), end="")
        check(args)
    torch.manual_seed(args.seed)
    if args.predict:
        run_prediction(detector, args, accelerator, checkpoint)
        return
    if args.export:
        run_export(detector, args, checkpoint)
        return

    coco_path = _dataset_folder(args, accelerator)
    val = build_dataset(coco_path, "val", args.image_size, args.seed)
    training = None if args.eval else build_dataset(coco_path, "train", args.image_size, args.seed)
    prepare_output(args, accelerator)
    names = _categories(args, checkpoint, training, val)
    for split, dataset in (("train2017", training), ("val2017", val)):
        if dataset and (remarks := dataset.remarks()):
            accelerator.print(f"{split}: {len(dataset)} images, of which {'; '.join(remarks)}")
    num_classes = checkpoint["num_classes"] if args.resume else max(names) + 1
    with accelerator.main_process_first():
        model = speed_up(_build_model(detector, args, checkpoint, num_classes, accelerator.print), args, accelerator.device)
    criterion = detector.build_criterion(args, num_classes).to(accelerator.device)
    for dataset in (training, val):
        if dataset and args.cache_mode:
            dataset.keep_files(progress=accelerator.is_local_main_process)
    rank, world, pin = accelerator.process_index, accelerator.num_processes, accelerator.device.type == "cuda"
    val_loader = evaluation_loader(val, args.batch_size, args.num_workers, rank, world, pin)
    if args.eval:
        run_evaluation(detector, args, accelerator, model, criterion, val_loader)
        return

    train_loader = training_loader(training, args.batch_size, args.num_workers, args.seed, rank, world, pin, args.bucket)
    train(detector, args, accelerator, model, criterion, train_loader, val_loader, checkpoint, names)
    if args.demo and accelerator.is_main_process:
        pictures = [val.path(i) for i in val.ids[:DEMO_PICTURES]]
        folder = args.output_dir / "pictures"
        predict(accelerator.unwrap_model(model), detector, pictures, names, folder, args, information=True, truth=val.coco)
        accelerator.print(f"detections beside their self-information: {folder}")


def run_evaluation(detector, args: Namespace, accelerator: Accelerator, model, criterion, loader) -> None:
    """Writes ``eval.json`` and ``predictions.json``."""
    model = accelerator.prepare(model)
    stats, losses, results = evaluate(model, criterion, detector.postprocess, loader, accelerator)
    if accelerator.is_main_process:
        about = {"detector": detector.name, "checkpoint": args.resume, "clustering": args.clustering}
        about |= {"smoothing_sigma": args.smoothing_sigma, "images": len(loader.dataset)}
        write_json(args.output_dir / "predictions.json", results)
        write_json(args.output_dir / "eval.json", {"coco_eval_bbox": stats, "losses": losses} | about)
        print(f"{len(loader.dataset)} images: {summary(stats)}; details in {args.output_dir / 'eval.json'}")


def run_prediction(detector: Detector, args: Namespace, accelerator: Accelerator, checkpoint: dict[str, Any]) -> None:
    """Draws detections on images."""
    images = find_images(args.predict)
    prepare_output(args, accelerator)
    model = _build_model(detector, args, checkpoint, checkpoint["num_classes"], accelerator.print)
    model = speed_up(model, args, accelerator.device)
    names = checkpoint.get("category_names") or _coco_names(checkpoint["num_classes"])
    folder = args.output_dir / "predictions"
    if accelerator.is_main_process:
        predict(model.to(accelerator.device), detector, images, names, folder, args, information=args.information)
        print(f"{len(images)} pictures in {folder}")


def run_export(detector: Detector, args: Namespace, checkpoint: dict[str, Any]) -> None:
    """Writes the weights under the published names, with the options that the model was built with."""
    model = _build_model(detector, args, checkpoint, checkpoint["num_classes"], print)
    options = {name: getattr(args, name) for name in (*detector.architecture, *HABITS) if hasattr(args, name)}
    exported = {"model": detector.export(model.state_dict(), args.nheads), "args": options}
    names = {"category_names": checkpoint["category_names"]} if "category_names" in checkpoint else {}
    save_checkpoint(args.export, exported | names)
    print(f"{len(exported['model'])} weights in {args.export}")


def _follow(detector: Detector, args: Namespace, explicit: set[str], checkpoint: dict[str, Any]) -> str:
    """Takes options and number of classes over from a checkpoint; returns a line that says what may surprise."""
    path = args.resume or args.finetune
    try:
        revealed = detector.reveal(checkpoint["model"])
    except (KeyError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is not a checkpoint of {detector.name}: {error} is missing") from error
    if args.finetune and revealed.get("clustering") == "none":  # a warm start of what the user asked for
        explicit = explicit | {"clustering"}
    follow_checkpoint(args, explicit, checkpoint, revealed, path, detector.architecture)
    checkpoint["num_classes"] = revealed["num_classes"]
    if revealed.get("clustering") == "window" and "clustering" not in {*explicit, *(checkpoint.get("args") or {})}:
        return f"{path} is a released ENACT checkpoint: --clustering window, as it was trained\n"
    return ""


def build_accelerator(args: Namespace) -> Accelerator:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but no CUDA device is available: pass --device cpu")
    on_cpu = args.device == "cpu" or not torch.cuda.is_available()
    if on_cpu and args.amp == "fp16":
        raise UserError("--amp fp16 needs a GPU: pass --amp bf16 or no")
    return Accelerator(cpu=on_cpu, mixed_precision=args.amp)


def _dataset_folder(args: Namespace, accelerator: Accelerator) -> Path:
    if args.coco_path:
        return args.coco_path
    with accelerator.main_process_first():
        return ensure_shapes_dataset(Path("data") / "shapes", progress=accelerator.is_main_process)


def _categories(args: Namespace, checkpoint: dict[str, Any], training: CocoDetection | None, val: CocoDetection) -> dict[int, str]:
    """Category id -> name: those of the checkpoint in evaluation, of the training set otherwise."""
    known = checkpoint.get("category_names") if args.eval else None
    names = known or category_names((training or val).coco)
    unknown = category_names(val.coco).keys() - names.keys()
    if unknown:
        source = args.resume if known else "train2017"
        raise UserError(
            f"the annotations of val2017 have the category ids {sorted(unknown)[:10]}, which {source} does not have: "
            "give both the same categories"
        )
    if args.resume and max(names) >= checkpoint["num_classes"]:
        raise UserError(
            f"the dataset has the category id {max(names)}, but {args.resume} knows {checkpoint['num_classes']} classes: "
            "train on another dataset with --finetune"
        )
    return names


def _coco_names(num_classes: int) -> dict[int, str]:
    """The names of COCO's categories for a published checkpoint, which has 91 classes and no names."""
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return dict(enumerate(names)) if num_classes == len(names) else {}


def _build_model(
    detector: Detector, args: Namespace, checkpoint: dict[str, Any], num_classes: int, say: Callable[[str], None]
) -> nn.Module:
    path = args.resume or args.finetune
    model = detector.build_model(args, num_classes, not path)
    if not path:
        return model
    state_dict = detector.adapt(checkpoint["model"], args.nheads)
    clustered = any("W_prob" in name for name in state_dict)
    if args.finetune:
        say(load_model_that_fits(model, state_dict, path, detector.may_be_new))
    elif (args.eval or args.predict) and clustered != (args.clustering != "none"):
        say(load_model_that_fits(model, state_dict, path, ("W_prob",)))
    else:
        load_model(model, state_dict, path)
    return model

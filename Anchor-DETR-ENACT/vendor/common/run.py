"""A detector's command: train, evaluate or predict."""

import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from .arguments import check, common_parser, follow_checkpoint, parse
from .checkpoint import load_checkpoint, load_model, load_model_to_finetune
from .coco import CocoDetection, category_names
from .data import build_dataset, evaluation_loader, training_loader
from .detector import Detector
from .errors import UserError
from .evaluation import evaluate
from .loop import train
from .outputs import prepare_output, summary, write_json
from .predict import find_images, predict
from .shapes import ensure_shapes_dataset

DEMO_PICTURES = 12


def main(detector: Detector, argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code. A mistake of the user ends as one sentence and code 2."""
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), _interrupt)
    try:
        run(detector, argv)
    except UserError as error:
        print(f"{detector.name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"{detector.name}: {interrupt}", file=sys.stderr)
        return 130  # what shells call a run that was interrupted
    return 0


def _interrupt(number: int, frame: Any) -> None:
    if hasattr(signal, "SIGCHLD"):
        # A signal to the whole process group ends the loader's workers, too, which the loader would report as an error of its own.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")


def run(detector: Detector, argv: list[str] | None = None) -> None:
    """Parses the command line and does what it says; UserError where it cannot."""
    parser = common_parser(detector.name)
    detector.add_arguments(parser)
    args, explicit = parse(parser, detector.demo, argv)
    check(args)
    weights = args.resume or args.finetune
    checkpoint = load_checkpoint(weights) if weights else {}
    follow_checkpoint(args, explicit, checkpoint, weights, detector.architecture)
    check(args)
    accelerator = build_accelerator(args)
    torch.manual_seed(args.seed)
    if args.predict:
        run_prediction(detector, args, accelerator, checkpoint)
        return

    coco_path = _dataset_folder(args, accelerator)
    val = build_dataset(coco_path, "val", args.image_size, args.seed)
    training = None if args.eval else build_dataset(coco_path, "train", args.image_size, args.seed)
    prepare_output(args, accelerator)
    names = _categories(args, checkpoint, training, val)
    for split, dataset in (("train2017", training), ("val2017", val)):
        if dataset and (remarks := dataset.remarks()):
            accelerator.print(f"{split}: {len(dataset)} images, of which {'; '.join(remarks)}")
    num_classes = max(names) + 1
    with accelerator.main_process_first():  # one process downloads, the others find the file
        model = _build_model(detector, args, checkpoint, num_classes, accelerator.print)
    criterion = detector.build_criterion(args, num_classes).to(accelerator.device)
    rank, world, pin = accelerator.process_index, accelerator.num_processes, accelerator.device.type == "cuda"
    val_loader = evaluation_loader(val, args.batch_size, args.num_workers, rank, world, pin)
    if args.eval:
        run_evaluation(detector, args, accelerator, model, criterion, val_loader)
        return

    train_loader = training_loader(training, args.batch_size, args.num_workers, args.seed, rank, world, pin)
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
    if "num_classes" not in checkpoint:
        raise UserError(f"{args.resume} does not say how many classes it has: pass a checkpoint that this repository wrote")
    model = _build_model(detector, args, checkpoint, checkpoint["num_classes"], accelerator.print)
    names, folder = checkpoint["category_names"], args.output_dir / "predictions"
    if accelerator.is_main_process:
        predict(model.to(accelerator.device), detector, images, names, folder, args, information=args.information)
        print(f"{len(images)} pictures in {folder}")


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
    return names


def _build_model(
    detector: Detector, args: Namespace, checkpoint: dict[str, Any], num_classes: int, say: Callable[[str], None]
) -> nn.Module:
    path = args.resume or args.finetune
    model = detector.build_model(args, num_classes, not path)
    if path:
        state_dict = detector.adapt(checkpoint["model"])
        if args.finetune:
            say(load_model_to_finetune(model, state_dict, path, detector.may_be_new))
        else:
            load_model(model, state_dict, path)
    return model

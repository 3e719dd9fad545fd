"""A detector's command: train, evaluate, predict or export."""

import os
import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch.utils.data import DataLoader

from ..boundary.checkpoints import check_continuation, load_checkpoint
from ..boundary.outputs import only_run_in
from ..data.coco import CocoDetection
from ..data.coco_names import known_categories
from ..data.layouts import Layout, Split, of_pairs, recognise
from ..data.loading import build_dataset, evaluation_loader, training_loader
from ..data.shapes import ensure_shapes_dataset
from ..data.sources import Source, find_sources, titles
from ..detector import Detector
from ..errors import UserError, quoted
from ..evaluation.coco import METRICS
from ..evaluation.evaluate import Evaluation, evaluate_all
from ..losses.criterion import Criterion
from ..models.model import DetectionModel
from ..models.speed import set_tf32, speed_up
from ..output.files import prepare_output, summaries, write_json
from ..output.predict import Drawing, draw_predictions, folders_of, true_boxes
from ..output.results import CocoResults
from ..predictor import Predictor
from ..training import interrupts
from ..training.loop import train
from .categories import categories_of, checked, knows_all, number_for_evaluation
from .device import build_accelerator, chosen_device
from .export import run_export
from .inherited import check_share, follow_checkpoint
from .main import hang_up
from .masks import has_masks, panoptic_folder
from .options import check, check_data, check_given, pairs_given, parse, trains
from .restore import build_model, starting_weights

DEMO_PICTURES = 12


def main(detector: Detector, argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code. A mistake of the user ends as one sentence and code 2."""
    interrupts.install()
    try:
        run(detector, argv)
        sys.stdout.flush()
    except BrokenPipeError:
        return hang_up()
    except (KeyboardInterrupt, Exception) as error:
        message, code = _ending(error)
        if not message:
            raise
        print(f"{detector.name}: {message}", file=sys.stderr)
        return code
    return 0


def _ending(error: BaseException) -> tuple[str, int]:
    """What a run says at its end and its exit code; "" where it is an error of this program."""
    if interrupts.received():
        return str(error if isinstance(error, KeyboardInterrupt) else interrupts.received()), 130  # as shells call it
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, RuntimeError) and "DataLoader" in str(error):
        return "a process that loads images has died or hangs, often for lack of memory: pass a smaller --num_workers", 2
    if isinstance(error, OSError) and error.strerror:  # a full disk, a folder that has gone
        where = f"{quoted(os.fsdecode(error.filename))}: " if isinstance(error.filename, (str, bytes)) else ""
        return f"{where}{error.strerror}: mend it and start again", 2
    return "", 1


def run(detector: Detector, argv: list[str] | None = None) -> None:
    """Parses the command line and does what it says; UserError where it cannot."""
    args, explicit = parse(detector, argv)
    check(args)
    on_cpu = chosen_device(args).type == "cpu"
    checkpoint: dict[str, Any] = {}
    if source := starting_weights(args):
        state = PartialState(cpu=on_cpu)
        with state.main_process_first():  # one process downloads, the others find the file
            checkpoint = load_checkpoint(source)
        for line in follow_checkpoint(detector, args, explicit, checkpoint, source):
            state.print(line)
        check(args)
    check_given(args, explicit)
    check_data(args)
    accelerator = build_accelerator(args)  # now, as its precision may be the checkpoint's
    if not on_cpu:
        set_tf32(not (args.eval or args.predict) if args.tf32 is None else args.tf32)
    torch.manual_seed(args.seed)
    if args.predict:
        run_prediction(detector, args, accelerator, checkpoint)
    elif args.export:
        run_export(detector, args, checkpoint)
    elif args.eval:
        run_evaluation(detector, args, accelerator, checkpoint)
    else:
        run_training(detector, args, accelerator, checkpoint)


def run_training(detector: Detector, args: Namespace, accelerator: Accelerator, checkpoint: dict[str, Any]) -> None:
    """Trains; the demo also draws what it has learned to detect."""
    if args.resume:
        check_continuation(checkpoint, args.resume)
    layout = _layout(args, accelerator, checkpoint)
    val, training = _dataset(args, layout, "val"), _dataset(args, layout, "train")
    categories = checked(categories_of(training), layout.train.name, args, checkpoint, val, layout.val.name)
    for split, dataset in ((layout.train, training), (layout.val, val)):
        dataset.number_classes(categories["category_ids"])
        _print_remarks(split, dataset, accelerator)
    if both := len({*map(training.path, training.ids)} & {*map(val.path, val.ids)}):
        accelerator.print(f"{both} images are trained on and validated on: precision is not that of new images")
    model, criterion = _model_and_losses(detector, args, accelerator, checkpoint, categories)
    processes = _processes(accelerator)
    train_loader = training_loader(training, args.batch_size, args.num_workers, seed=args.seed, bucket=args.bucket, **processes)
    val_loader = evaluation_loader(val, args.batch_size, args.num_workers, **processes)
    prepare_output(args.output_dir, accelerator, starts=not args.resume, demo=args.demo)
    with only_run_in(args.output_dir) if accelerator.is_main_process else nullcontext():
        train(detector, args, accelerator, model, criterion, train_loader, val_loader, checkpoint, categories)
    if args.demo and accelerator.is_main_process:
        shown = {val.path(i): i for i in val.ids[:DEMO_PICTURES]}  # a file once, which may be listed twice
        pictures, folder = list(map(Source, shown)), args.output_dir / "pictures"
        predictor = Predictor(detector, accelerator.unwrap_model(model), args, categories, accelerator.device)
        boxes = [true_boxes(val.coco, i, predictor.stuff or ()) for i in shown.values()]
        truth = dict(zip(titles(pictures), boxes, strict=True))
        draw_predictions(Drawing(predictor, args.score_threshold, information=True, truth=truth), pictures, folder)
        print(f"detections beside their self-information: {folder}")


def run_evaluation(detector: Detector, args: Namespace, accelerator: Accelerator, checkpoint: dict[str, Any]) -> None:
    """Writes ``eval.json`` and ``predictions.json``."""
    layout = _layout(args, accelerator, checkpoint)
    val = _dataset(args, layout, "val")
    categories = number_for_evaluation(val, layout.val.name, args, checkpoint)
    names = categories["category_names"]
    _print_remarks(layout.val, val, accelerator)
    model, criterion = _model_and_losses(detector, args, accelerator, checkpoint, categories)
    prepare_output(args.output_dir, accelerator)
    loader: DataLoader = evaluation_loader(val, args.batch_size, args.num_workers, **_processes(accelerator))
    evaluations = evaluate_all(detector, args, accelerator.prepare(model), criterion, loader, accelerator, args.output_dir)
    if accelerator.is_main_process:
        options = {name: getattr(args, name) for name in detector.changeable}
        description = {"detector": detector.name, "checkpoint": args.resume} | options | {"images": len(val)}
        rows = {name: e.stats | _per_class(e, names) | {"losses": e.losses} for name, e in evaluations.items()}
        first = next(iter(rows))
        named = {"evaluations": rows} if first else {}
        write_json(args.output_dir / "predictions.json", evaluations[first].results)
        if evaluations[first].panoptic:
            write_json(args.output_dir / "panoptic.json", evaluations[first].panoptic)
        write_json(args.output_dir / "eval.json", rows[first] | description | named)
        print(f"{len(val)} images: {'; '.join(summaries(evaluations))}; details in {args.output_dir / 'eval.json'}")


def _per_class(evaluation: Evaluation, names: dict[int, str]) -> dict[str, Any]:
    """The precisions of every class, by its name."""
    return {
        f"{kind}_per_class": {names.get(c, str(c)): dict(zip(METRICS, numbers)) for c, numbers in classes.items()}
        for kind, classes in evaluation.per_class.items()
    }


def run_prediction(detector: Detector, args: Namespace, accelerator: Accelerator, checkpoint: dict[str, Any]) -> None:
    """Draws detections on images and videos, and writes them in COCO's format where asked."""
    folder = args.output_dir / "predictions"
    sources = find_sources(args.predict, left_out=folders_of(folder))
    prepare_output(args.output_dir, accelerator)
    categories = known_categories(checkpoint)
    model, _ = _model_and_losses(detector, args, accelerator, checkpoint, categories)
    if accelerator.is_main_process:
        predictor = Predictor(detector, model, args, categories, accelerator.device)
        results = CocoResults(args.output_dir, predictor.category_names) if args.save_json else None
        drawing = Drawing(predictor, args.score_threshold, information=args.information, results=results)
        written = draw_predictions(drawing, sources, folder)
        if written.pictures or written.videos:
            print(written)
        written.raise_problems()


def _processes(accelerator: Accelerator) -> dict[str, Any]:
    """What the data loaders need to know about this process and the others."""
    return {
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "pin_memory": accelerator.device.type == "cuda",
    }


def _dataset(args: Namespace, layout: Layout, split: str) -> CocoDetection:
    return build_dataset(layout, split, args.image_size, args.seed, has_masks(args), panoptic_folder(args, layout))


def _layout(args: Namespace, accelerator: Accelerator, checkpoint: dict[str, Any]) -> Layout:
    """Where the data are, which is said in a line."""
    if pairs_given(args):
        train = (args.train_images, args.train_annotations) if trains(args) else None
        layout = of_pairs(train, (args.val_images, args.val_annotations))
    elif args.coco_path:
        layout = recognise(args.coco_path, args.val_share, args.seed)
    else:
        with accelerator.main_process_first():
            layout = recognise(ensure_shapes_dataset(Path("data") / "shapes", progress=accelerator.is_main_process))
    if layout.shared and args.resume:
        check_share(args, checkpoint)
    accelerator.print(layout.said)
    return layout


def _print_remarks(split: Split, dataset: CocoDetection, accelerator: Accelerator) -> None:
    if remarks := dataset.remarks():
        accelerator.print(f"{split.name}: {len(dataset)} images, of which {'; '.join(remarks)}")


def _model_and_losses(
    detector: Detector, args: Namespace, accelerator: Accelerator, checkpoint: dict[str, Any], categories: dict[str, Any]
) -> tuple[DetectionModel, Criterion]:
    num_classes = len(categories["category_ids"])
    other_classes = bool(args.finetune) and not knows_all(checkpoint, categories["category_names"])
    with accelerator.main_process_first():
        model, messages = build_model(detector, args, checkpoint, num_classes, other_classes)
    for line in messages:
        accelerator.print(line)
    criterion = detector.build_criterion(args, num_classes).to(accelerator.device)
    return speed_up(model, detector.compiled, args, accelerator.device), criterion

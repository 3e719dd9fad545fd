"""Training: the loop over epochs and the steps of one epoch."""

import math
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..boundary.logs import read_log
from ..data.coco import CocoDetection
from ..data.loading import Batch
from ..detector import Detector
from ..errors import UserError
from ..evaluation.evaluate import Evaluation, evaluate_all
from ..losses.criterion import Criterion
from ..models.model import DetectionModel
from ..output.files import keep_best, summaries, write_log
from ..output.meter import Meter, Throughput, peak_memory
from . import interrupts
from .state import TrainingState

EPOCH_TIMES = {"train_seconds", "train_images_per_second", "train_share_waited", "train_peak_memory"}


def train(
    detector: Detector,
    args: Namespace,
    accelerator: Accelerator,
    model: DetectionModel,
    criterion: Criterion,
    train_loader: DataLoader,
    val_loader: DataLoader,
    checkpoint: dict[str, Any],
    categories: dict[str, Any],
) -> None:
    """Trains and evaluates epoch after epoch, from the one after the checkpoint's, and writes checkpoints and log.

    A checkpoint is written before its epoch is evaluated. A run that was stopped in between and goes on in its folder evaluates
    that epoch first.

    Args:
        categories: what the checkpoints say of them, see ``categories.py``.

    Raises:
        UserError: the checkpoint's is the last epoch, and evaluated; or a loss is not finite.
        KeyboardInterrupt: stopped; its message says how to go on.
    """
    description = {"detector": detector.name, "num_classes": len(categories["category_ids"])} | categories
    torch.manual_seed(args.seed + accelerator.process_index)  # the processes have equal weights now, and drop out differently
    images_per_step = args.batch_size * args.accumulate * accelerator.num_processes
    rates = detector.parameter_groups(args, images_per_step)
    state = TrainingState(model, rates, args, accelerator, description)
    start = state.restore(checkpoint) if args.resume else 0
    unlogged = _unlogged(checkpoint, args) if args.resume else {}
    if start >= args.epochs and not unlogged:
        raise UserError(f"{args.resume} has finished epoch {start - 1}: pass --epochs above {start} to train on")
    accelerator.print(_announcement(detector, state, len(train_loader.dataset), start))
    accelerator.print(_recipe(args, images_per_step, rates))
    last = args.output_dir / "checkpoint.pth"
    if start == 0:
        state.save(-1, {}, last)  # an interrupted first epoch, too, leaves something to resume
    writer = SummaryWriter(args.output_dir) if accelerator.is_main_process else None
    finished = start - 1
    try:
        if unlogged:
            finish_epoch(state, unlogged, criterion, detector, val_loader, writer)
        for epoch in range(start, args.epochs):
            train_loader.sampler.set_epoch(epoch)
            lr = state.optimizer.param_groups[0]["lr"]
            losses = train_one_epoch(
                state.model,
                criterion,
                train_loader,
                state.optimizer,
                accelerator,
                epoch=epoch,
                seed=args.seed,
                accumulate=args.accumulate,
                clip_max_norm=args.clip_max_norm,
            )
            state.lr_scheduler.step()
            log = {f"train_{k}": v for k, v in losses.items()}
            log |= {"train_lr": lr, "epoch": epoch, "n_parameters": state.n_parameters}
            keep = (epoch + 1) % args.lr_drop == 0 or (epoch + 1) % 10 == 0
            state.save(epoch, log, *([args.output_dir / f"checkpoint{epoch:04}.pth"] if keep else []), last)
            finished = epoch
            finish_epoch(state, log, criterion, detector, val_loader, writer)
    except (KeyboardInterrupt, Exception):
        if not interrupts.received():
            raise
        done = f"after epoch {finished}" if finished >= 0 else "at its start"
        message = f"{interrupts.received()}; {last} holds the run {done}: continue with --resume {last}"
        raise KeyboardInterrupt(message) from None
    finally:
        if writer:
            writer.close()


def finish_epoch(
    state: TrainingState,
    log: dict[str, Any],
    criterion: Criterion,
    detector: Detector,
    val_loader: DataLoader,
    writer: SummaryWriter | None,
) -> None:
    """Evaluates a trained epoch, every ``--eval_every`` epochs and the last, and writes its line of the log."""
    args, accelerator, epoch = state.args, state.accelerator, log["epoch"]
    evaluations, start = {}, time.perf_counter()
    if (epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs:
        evaluations = evaluate_all(detector, args, state.model, criterion, val_loader, accelerator)
        log = log | {"test_seconds": time.perf_counter() - start}
    if accelerator.is_main_process:
        rows = _rows(evaluations)
        keep_best(args.output_dir, rows)
        write_log(args.output_dir, log | rows, writer)
        parts = [f"loss {log['train_loss']:.3f}", *summaries(evaluations)]
        if EPOCH_TIMES <= log.keys():
            speed = f"{log['train_seconds']:.0f} s, {log['train_images_per_second']:.1f} images/s"
            memory = f"peak memory {log['train_peak_memory'] / 2**30:.1f} GiB"
            parts.append(f"{speed}, {log['train_share_waited']:.0%} of the time waiting for data, {memory}")
        if evaluations:
            per_image = log["test_seconds"] / len(val_loader.dataset)
            parts.append(f"evaluation {log['test_seconds']:.0f} s, {per_image:.3f} s per image")
        print(f"epoch {epoch}: {'; '.join(parts)}")


def _rows(evaluations: dict[str, Evaluation]) -> dict[str, Any]:
    """For the log: the first evaluation under DETR's names, and those with a name under it."""
    rows = dict(evaluations)
    if evaluations:
        rows[""] = next(iter(evaluations.values()))
    log = {}
    for name, evaluation in rows.items():
        prefix = f"test_{name}_" if name else "test_"
        log |= {f"{prefix}{k}": v for k, v in evaluation.losses.items()}
        log |= {f"{prefix}{kind}": numbers for kind, numbers in evaluation.stats.items()}
    return log


def train_one_epoch(
    model: nn.Module,
    criterion: Criterion,
    loader: DataLoader,
    optimizer: Optimizer,
    accelerator: Accelerator,
    *,
    epoch: int,
    seed: int,
    accumulate: int,
    clip_max_norm: float,
) -> dict[str, float]:
    """Trains one epoch; returns the mean of every logged loss, ``loss`` being their weighted total, and of ``grad_norm``; the
    images per second of all processes, the share of the time spent waiting for them, and the peak memory in bytes.

    Two device synchronisations per step beside the model's own: the matching, and the numbers for the log; in fp16 also whether
    the scaler found a gradient that overflowed.

    Raises:
        UserError: a loss or gradient is not finite. The step is not taken.
    """
    model.train()
    meter, throughput = Meter(), Throughput()
    steps = len(loader) // accumulate or 1
    progress = tqdm(total=steps, desc=f"epoch {epoch}", disable=not accelerator.is_local_main_process, leave=False)
    with progress:
        for step, batches in enumerate(throughput.watch(_groups(loader, accumulate)), start=epoch * steps):
            interrupts.stop_if_received()
            accelerator.unwrap_model(model).set_step(seed, step)
            count = sum(criterion.count(batch.targets) for batch in batches).to(accelerator.device, non_blocking=True)
            count = accelerator.reduce(count, "sum")
            logs = []
            for i, batch in enumerate(batches):
                batch = batch.to(accelerator.device)
                with accelerator.no_sync(model) if i < len(batches) - 1 else nullcontext():
                    outputs = model(batch.images, batch.mask, batch.targets)
                    loss, log = criterion(outputs, batch.targets, count, accelerator.num_processes)
                    accelerator.backward(loss)
                logs.append(torch.stack((loss.detach(), *log.values())))
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), clip_max_norm or math.inf)
            *numbers, norm = torch.cat((*logs, grad_norm.reshape(1))).tolist()
            names = ("loss", *log)
            values = {name: numbers[i :: len(names)] for i, name in enumerate(names)}
            # The scaler of fp16 skips steps whose gradients overflow, and goes on.
            _stop_if_not_finite(values["loss"], 0.0 if accelerator.scaler else norm, batches, loader.dataset, epoch)
            optimizer.step()
            optimizer.zero_grad()
            # Losses are parts of the step's total, errors are means over a batch.
            means = {k: sum(v) / (1 if "loss" in k else len(v)) for k, v in values.items()}
            meter.add(means if accelerator.scaler else means | {"grad_norm": norm})
            throughput.add(sum(len(batch.targets) for batch in batches))
            progress.update()
            progress.set_postfix_str(_postfix(meter, throughput, accelerator), refresh=False)
    return meter.means(accelerator) | {
        "images_per_second": throughput.images_per_second() * accelerator.num_processes,
        "seconds": throughput.seconds(),
        "share_waited": throughput.share_waited(),
        "peak_memory": float(peak_memory(accelerator.device)),
    }


def _groups(loader: DataLoader, size: int) -> Iterator[list[Batch]]:
    """The batches of one optimiser step after another; an incomplete last group is dropped, unless it is the only one."""
    batches = iter(loader)
    first = True
    while group := list(islice(batches, size)):
        if len(group) == size or first:
            yield group
        first = False


def _postfix(meter: Meter, throughput: Throughput, accelerator: Accelerator) -> str:
    """What the progress bar shows beside its time."""
    speed = throughput.images_per_second() * accelerator.num_processes
    memory = peak_memory(accelerator.device) / 2**30
    return f"loss={meter.mean('loss'):.3f}, {speed:.1f} images/s, {throughput.share_waited():.0%} waiting, {memory:.1f} GiB"


def _announcement(detector: Detector, state: TrainingState, images: int, start: int) -> str:
    epochs = state.args.epochs
    ahead = f"epochs {start} to {epochs - 1}" if start < epochs else f"the evaluation of epoch {start - 1}"
    return f"{detector.name}: {state.n_parameters:,} parameters, {images} images, {ahead}"


def _recipe(args: Namespace, images_per_step: int, rates: list[tuple[str, float]]) -> str:
    """What a run does that its user may not have chosen."""
    drop = "" if args.lr_drop < args.epochs else ", which this run does not reach"
    size = f"shortest side {args.image_size}, precision {args.amp if args.amp != 'no' else 'float32'}, seed {args.seed}"
    decay = f"a tenth after every {args.lr_drop} epochs{drop}; weight decay {args.weight_decay:g}"
    return f"recipe: {args.epochs} epochs, {images_per_step} images per step, {size}; learning rates {_listing(rates)}, {decay}"


def _listing(rates: list[tuple[str, float]]) -> str:
    """The rates that the parameters' names lead to, the last for those that none fits."""
    return ", ".join(f"{rate:.3g} ({pattern or 'others'})".replace("\\", "") for pattern, rate in rates)


def _stop_if_not_finite(losses: list[float], grad_norm: float, batches: list[Batch], dataset: CocoDetection, epoch: int) -> None:
    bad = [batch for loss, batch in zip(losses, batches) if not math.isfinite(loss)]
    if bad or not math.isfinite(grad_norm):
        what = "the loss" if bad else "the gradient"
        names = ", ".join(dataset.path(target["image_id"]).name for batch in bad or batches for target in batch.targets)
        raise UserError(
            f"{what} is not finite in epoch {epoch} on the images {names}: "
            "look at these images, or resume from the last checkpoint with a lower --lr"
        )


def _unlogged(checkpoint: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """What the checkpoint's epoch has for the log, where the run goes on in its folder and the log there lacks it."""
    goes_on = Path(args.resume).resolve().parent == args.output_dir.resolve()
    path = args.output_dir / "log.txt"
    lacks = goes_on and not (path.is_file() and checkpoint["epoch"] in read_log(path))
    [log] = broadcast_object_list([checkpoint.get("log", {}) if lacks else {}])
    return log

"""Training: the loop over epochs and the steps of one epoch."""

import math
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from . import interrupts
from .checkpoint import save_checkpoint
from .coco import CocoDetection
from .data import Batch
from .detector import Detector
from .errors import UserError
from .evaluation import evaluate
from .log import read_log
from .losses import Counts, SetCriterion
from .meter import Meter
from .outputs import summary, write_log


def train(
    detector: Detector,
    args: Namespace,
    accelerator: Accelerator,
    model: nn.Module,
    criterion: SetCriterion,
    train_loader: DataLoader,
    val_loader: DataLoader,
    checkpoint: dict[str, Any],
    names: dict[int, str],
) -> None:
    """Trains and evaluates epoch after epoch, from the one after the checkpoint's, and writes checkpoints and log.

    A checkpoint is written before its epoch is evaluated. A run that was stopped in between and goes on in its folder evaluates
    that epoch first.

    Raises:
        UserError: the checkpoint's is the last epoch, and evaluated; or a loss is not finite.
        KeyboardInterrupt: stopped; its message says how to go on.
    """
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW(_parameter_groups(model, args), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    lr_scheduler = StepLR(optimizer, args.lr_drop)
    model, optimizer = accelerator.prepare(model, optimizer)
    resumed = args.resume and "optimizer" in checkpoint
    start = _restore(checkpoint, args, accelerator, optimizer, lr_scheduler) if resumed else 0
    unlogged = _unlogged(checkpoint, args) if resumed else {}
    if start >= args.epochs and not unlogged:
        raise UserError(f"{args.resume} has finished epoch {start - 1}: pass --epochs above {start} to train on")
    last = args.output_dir / "checkpoint.pth"

    def save(epoch: int, log: dict[str, Any], *paths: Path) -> None:
        state = {"optimizer": optimizer.state_dict(), "lr_scheduler": lr_scheduler.state_dict(), "epoch": epoch, "log": log}
        state["scaler"] = accelerator.scaler.state_dict() if accelerator.scaler else None
        state["random_states"] = gather_object([_random_state(accelerator)])
        if accelerator.is_main_process:
            weights = accelerator.unwrap_model(model).state_dict()
            about = {"detector": detector.name, "num_classes": max(names) + 1, "category_names": names}
            options = {name: _plain(value) for name, value in vars(args).items()}
            for path in paths:
                save_checkpoint(path, {"model": weights, "args": options} | state | about)

    def finish(log: dict[str, Any]) -> None:
        stats, losses, _ = evaluate(model, criterion, detector.postprocess, val_loader, accelerator)
        if accelerator.is_main_process:
            write_log(args.output_dir, log | {f"test_{k}": v for k, v in losses.items()} | {"test_coco_eval_bbox": stats}, writer)
            accelerator.print(f"epoch {log['epoch']}: loss {log['train_loss']:.3f}, {summary(stats)}")

    images = len(train_loader.dataset)
    ahead = f"epochs {start} to {args.epochs - 1}" if start < args.epochs else f"the evaluation of epoch {start - 1}"
    accelerator.print(f"{detector.name}: {n_parameters:,} parameters, {images} images, {ahead}")
    if start == 0:
        save(-1, {}, last)  # an interrupted first epoch, too, leaves something to resume
    writer = SummaryWriter(args.output_dir) if accelerator.is_main_process else None
    finished = start - 1
    try:
        if unlogged:
            finish(unlogged)
        for epoch in range(start, args.epochs):
            train_loader.sampler.set_epoch(epoch)
            train_loader.dataset.epoch = epoch
            lr = optimizer.param_groups[0]["lr"]
            losses = train_one_epoch(
                model, criterion, train_loader, optimizer, accelerator, epoch, args.accumulate, args.clip_max_norm
            )
            lr_scheduler.step()
            log = {f"train_{k}": v for k, v in losses.items()} | {"train_lr": lr, "epoch": epoch, "n_parameters": n_parameters}
            keep = (epoch + 1) % args.lr_drop == 0 or (epoch + 1) % 10 == 0
            save(epoch, log, *([args.output_dir / f"checkpoint{epoch:04}.pth"] if keep else []), last)
            finished = epoch
            finish(log)
    except (KeyboardInterrupt, Exception):
        if not interrupts.received():
            raise
        done = f"after epoch {finished}" if finished >= 0 else "at its start"
        message = f"{interrupts.received()}; {last} holds the run {done}: continue with --resume {last}"
        raise KeyboardInterrupt(message) from None
    finally:
        if writer:
            writer.close()


def train_one_epoch(
    model: nn.Module,
    criterion: SetCriterion,
    loader: DataLoader,
    optimizer: Optimizer,
    accelerator: Accelerator,
    epoch: int,
    accumulate: int,
    clip_max_norm: float,
) -> dict[str, float]:
    """Trains one epoch; returns the mean of every logged loss, ``loss`` being their weighted total, and of ``grad_norm``.

    Two device synchronisations per step beside the model's own: the matching, and the numbers for the log.

    Raises:
        UserError: a loss or gradient is not finite. The step is not taken.
    """
    model.train()
    num_queries = accelerator.unwrap_model(model).num_queries
    meter = Meter()
    steps = len(loader) // accumulate or 1
    progress = tqdm(total=steps, desc=f"epoch {epoch}", disable=not accelerator.is_local_main_process, leave=False)
    with progress:
        for batches in _groups(loader, accumulate):
            interrupts.stop_if_received()
            seen = sum(Counts.of(batch.targets, num_queries) for batch in batches).to(accelerator.device, non_blocking=True)
            counts = Counts.normalised(accelerator.reduce(seen, "sum"), accelerator.num_processes)
            logs = []
            for i, batch in enumerate(batches):
                batch = batch.to(accelerator.device)
                with accelerator.no_sync(model) if i < len(batches) - 1 else nullcontext():
                    loss, log = criterion(model(batch.images, batch.mask), batch.targets, counts)
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
            means = {k: sum(v) / (1 if k.startswith("loss") else len(v)) for k, v in values.items()}
            meter.add(means if accelerator.scaler else means | {"grad_norm": norm})
            progress.update()
            progress.set_postfix(loss=f"{meter.mean('loss'):.3f}", refresh=False)
    return meter.means(accelerator)


def _groups(loader: DataLoader, size: int) -> Iterator[list[Batch]]:
    """The batches of one optimiser step after another; an incomplete last group is dropped, unless it is the only one."""
    batches = iter(loader)
    first = True
    while group := list(islice(batches, size)):
        if len(group) == size or first:
            yield group
        first = False


def _stop_if_not_finite(losses: list[float], grad_norm: float, batches: list[Batch], dataset: CocoDetection, epoch: int) -> None:
    bad = [batch for loss, batch in zip(losses, batches) if not math.isfinite(loss)]
    if bad or not math.isfinite(grad_norm):
        what = "the loss" if bad else "the gradient"
        names = ", ".join(dataset.path(target["image_id"]).name for batch in bad or batches for target in batch.targets)
        raise UserError(
            f"{what} is not finite in epoch {epoch} on the images {names}: "
            "look at these images, or resume from the last checkpoint with a lower --lr"
        )


def _parameter_groups(model: nn.Module, args: Namespace) -> list[dict[str, Any]]:
    """Everything but the backbone at ``lr``, the backbone at ``lr_backbone``."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if "backbone" not in n], "backbone": False},
        {"params": [p for n, p in named if "backbone" in n], "lr": args.lr_backbone, "backbone": True},
    ]
    return [group for group in groups if group["params"]]


def _restore(checkpoint: dict[str, Any], args: Namespace, accelerator: Accelerator, optimizer, lr_scheduler) -> int:
    """Optimiser, schedule and random states as they were at the end of the checkpoint's epoch; returns the next epoch."""
    optimizer.load_state_dict(checkpoint["optimizer"])
    for parameter, state in optimizer.state.items():  # laid out as the parameters are, which --channels_last may have changed
        for name, value in state.items():
            if value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)
    lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])
    lr_scheduler.step_size = args.lr_drop
    for group in optimizer.param_groups:  # the rates may have been given anew
        group["lr"] = group["initial_lr"] = args.lr_backbone if group["backbone"] else args.lr
        for _ in range((checkpoint["epoch"] + 1) // args.lr_drop):  # step by step, for the bits of a run without a break
            group["lr"] *= lr_scheduler.gamma
    if accelerator.scaler and checkpoint.get("scaler"):
        accelerator.scaler.load_state_dict(checkpoint["scaler"])
    states = checkpoint["random_states"]
    if len(states) == accelerator.num_processes:
        state = states[accelerator.process_index]
        torch.set_rng_state(state["cpu"])
        if accelerator.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], accelerator.device)
    return checkpoint["epoch"] + 1


def _unlogged(checkpoint: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """What the checkpoint's epoch has for the log, where the run goes on in its folder and the log there lacks it."""
    goes_on = Path(args.resume).resolve().parent == args.output_dir.resolve()
    path = args.output_dir / "log.txt"
    lacks = goes_on and not (path.is_file() and checkpoint["epoch"] in read_log(path))
    [log] = broadcast_object_list([checkpoint.get("log", {}) if lacks else {}])
    return log


def _random_state(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return state


def _plain(value: Any) -> Any:
    """Options as what ``weights_only=True`` reads back."""
    if isinstance(value, Path):
        return os.fspath(value)
    return [_plain(v) for v in value] if isinstance(value, list) else value

"""Does a long run need more and more memory?

    python -m tests.reliability.soak

Trains a tiny detector for 2000 steps and evaluates it 50 times in this process, on images of different sizes, and prints by how
much its resident memory has grown since the end of a first fifth, in which libraries fill their caches. oneDNN's holds up to 1024
kernels, each for images of one size: 64 MiB more at the end of these steps, and nothing of ours. Here it holds 32.
"""

import os

os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "32"  # read when PyTorch is imported

import gc
import sys
import tempfile
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from tqdm import trange

from common.data.loading import build_dataset, evaluation_loader, training_loader
from common.data.shapes import write_shapes_dataset
from common.evaluation.evaluate import evaluate_all
from common.training.loop import train_one_epoch
from common.training.state import TrainingState
from tests.detector_runs import EXAMPLE, tiny
from tests.tiny_models import NUM_CLASSES
from tools.detectors import DETECTORS, options

ROUNDS, STEPS = 50, 40  # an evaluation behind as many steps
WARM = 10  # rounds that do not count
BOUND = 20  # MiB


def resident() -> float:
    """MiB."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def main() -> int:
    torch.set_num_threads(1)
    args, detector = options(EXAMPLE, [*tiny(EXAMPLE), "--batch_size", "2"]), DETECTORS[EXAMPLE]
    with tempfile.TemporaryDirectory() as folder:
        data = write_shapes_dataset(Path(folder) / "data", train=2 * STEPS, val=8, image_size=64, progress=False)
        loaders = {"num_workers": 0, "rank": 0, "world_size": 1, "pin_memory": False}
        training = training_loader(build_dataset(data, "train", args.image_size, 0), args.batch_size, seed=0, **loaders)
        validation = evaluation_loader(build_dataset(data, "val", args.image_size, 0), args.batch_size, **loaders)
        accelerator = Accelerator(cpu=True)
        criterion = detector.build_criterion(args, NUM_CLASSES)
        model = detector.build_model(args, NUM_CLASSES, True)
        state = TrainingState(model, detector.parameter_groups(args, args.batch_size), args, accelerator, {})
        start = 0.0
        for epoch in trange(ROUNDS):
            start = resident() if epoch == WARM else start
            training.sampler.set_epoch(epoch)
            options_of_epoch = {"epoch": epoch, "seed": 0, "accumulate": 1, "clip_max_norm": 0.1}
            train_one_epoch(state.model, criterion, training, state.optimizer, accelerator, **options_of_epoch)
            evaluate_all(detector, args, state.model, criterion, validation, accelerator)
        grown = resident() - start
    print(f"{ROUNDS * STEPS} steps and {ROUNDS} evaluations: {grown:+.1f} MiB (bound: {BOUND})")
    return int(grown >= BOUND)


if __name__ == "__main__":
    sys.exit(main())

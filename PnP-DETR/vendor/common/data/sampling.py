"""Which images come in which batch of which process.

Rank r of w processes gets every w-th image from the r-th on, so that the batches of all processes together are those of one process
with a batch w times as large. The samplers of training yield (epoch, index): workers that live for many epochs hear of each new one
with the images that it begins with.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import DistributedSampler, Sampler

# Batches of all processes together that are sorted among themselves: few enough to differ in every epoch, and many enough to find
# images of similar shape for each batch.
WINDOW = 50


class EvaluationSampler(Sampler[int]):
    """Every image of the dataset exactly once over all processes, also where they do not divide it evenly."""

    def __init__(self, length: int, rank: int, world_size: int):
        self.indices = range(rank, length, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class ShuffledSampler(DistributedSampler):
    """All images, shuffled by (seed, epoch); what the processes cannot share evenly is left out of the epoch."""

    def __init__(self, length: int, seed: int, rank: int, world_size: int):
        super().__init__(range(length), world_size, rank, shuffle=True, seed=seed, drop_last=True)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


class BucketSampler(Sampler[tuple[int, int]]):
    """Images of similar shape one after another, batch by batch, so that a batch needs little padding; else shuffled.

    The images are shuffled by (seed, epoch). What does not fill a last batch is left out of the epoch. The batches that a window of
    shuffled images makes are filled by aspect ratio, and the batches of all windows are shuffled.

    Args:
        aspect_ratios: width / height of every image of the dataset.
        batch_size: images per batch and process.
        seed: of the order.
        rank, world_size: this process, and how many there are.
    """

    def __init__(self, aspect_ratios: Sequence[float], batch_size: int, seed: int, rank: int, world_size: int):
        self.aspect_ratios = np.asarray(aspect_ratios)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        together = self.batch_size * self.world_size
        images = rng.permutation(len(self.aspect_ratios))[: len(self) * self.world_size]
        windows = [images[start : start + WINDOW * together] for start in range(0, len(images), WINDOW * together)]
        by_shape = [window[self.aspect_ratios[window].argsort(kind="stable")] for window in windows]
        batches = rng.permutation(np.concatenate(by_shape).reshape(-1, together))
        return ((self.epoch, index) for index in batches.flatten()[self.rank :: self.world_size].tolist())

    def __len__(self) -> int:
        return len(self.aspect_ratios) // (self.batch_size * self.world_size) * self.batch_size

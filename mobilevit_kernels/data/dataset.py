"""A dataset whose transform learns the size that the batch sampler chose."""

from collections.abc import Callable, Sized
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from mobilevit_kernels.data.checks import checked_int
from mobilevit_kernels.data.seeding import seeded


class IndexedSamples(Sized, Protocol):
    """What has a length and gives tuples (image, ...) by index, as torchvision's datasets do."""

    def __getitem__(self, index: int, /) -> tuple[Any, ...]:
        """The sample of an index."""


class SizedDataset(Dataset[tuple[Any, ...]]):
    """Takes (height, width, index) from a batch sampler and gives (transform(image, (height, width)), ...).

    Each sample is drawn and transformed under random numbers of its own, made of seed, epoch and index: the same
    whatever the number of workers, and in a run that was resumed. Loading and transform may use torch, ``random`` and
    numpy.

    Args:
        samples: gives (image, ...), for example (image, label), by index.
        transform: called with the image and (height, width) in pixels; returns what goes into the batch.
        seed: not negative.

    Raises:
        TypeError: ``seed`` is no int.
        ValueError: ``seed`` is negative.
    """

    def __init__(
        self, samples: IndexedSamples, transform: Callable[[Any, tuple[int, int]], Any], seed: int = 0
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.seed = checked_int("seed", seed, minimum=0)
        # Shared memory: workers that live longer than an epoch see the change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Changes the random numbers of all samples; call it where the sampler's ``set_epoch`` is called.

        Raises:
            TypeError: no int.
            ValueError: negative.
        """
        self._epoch.fill_(checked_int("epoch", epoch, minimum=0))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, request: tuple[int, int, int]) -> tuple[Any, ...]:
        height, width, index = request
        with seeded(self.seed, int(self._epoch), index):
            image, *rest = self.samples[index]
            return (self.transform(image, (height, width)), *rest)

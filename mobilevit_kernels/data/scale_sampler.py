"""The base of the batch samplers: scales, order, ranks, resuming."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.utils.data import Sampler

from mobilevit_kernels.data.checks import checked_int
from mobilevit_kernels.data.scales import Scale

Request = tuple[int, int, int]

# Streams of random numbers of one (seed, epoch).
_ORDER, _SCALES = 0, 1


class ScaleBatchSampler(Sampler[list[Request]]):
    """Draws a scale for each batch and fills it with the next samples; base of the samplers.

    Yields lists of (height, width, index). The scales and the order of the samples depend on (seed, epoch) alone and
    use no global random state, so that all ranks draw the same scale in step. Samples are dealt out to the ranks in
    turn; the list is filled up from its start to a multiple of the ranks, and so is the last batch of a rank: all
    batches are full and all ranks have the same number of them. ``len`` is the exact number of batches of the epoch.

    For several processes give each its rank; do not let a framework shard the sampler again.

    Args:
        num_samples: samples of the dataset.
        scales: what each batch is drawn from, all equally likely.
        shuffle: another order in each epoch; else that of the dataset. The scales are drawn in either case.
        seed: not negative.
        rank: this process; by default that of torch.distributed where it is initialized, else 0.
        world_size: processes; by default as ``rank``. Give both or neither.
        wrap: fill up as said above. False, for evaluation, gives each sample exactly once: the last batch may be
            short, and ranks may differ by a sample.

    Raises:
        TypeError: an argument is no int.
        ValueError: an argument is out of range, or only one of ``rank`` and ``world_size`` is given.
    """

    def __init__(
        self,
        num_samples: int,
        scales: Sequence[Scale],
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        wrap: bool = True,
    ) -> None:
        self.num_samples = checked_int("num_samples", num_samples)
        self.scales = [_checked_scale(scale) for scale in scales]
        if not self.scales:
            raise ValueError("scales: expected at least one, got none")
        self.shuffle = shuffle
        self.seed = checked_int("seed", seed, minimum=0)
        self.rank, self.world_size = _place(rank, world_size)
        self.wrap = wrap
        self.epoch = 0
        self._first_batch = 0  # of the next iteration
        self._handed_out = 0

    @property
    def sampler(self) -> "ScaleBatchSampler":
        """Itself: where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration gives; another epoch than the present one starts at its beginning.

        Raises:
            TypeError: no int.
            ValueError: negative.
        """
        epoch = checked_int("epoch", epoch, minimum=0)
        if epoch != self.epoch:
            self._start_at(epoch, 0)

    def scales_of_epoch(self, epoch: int) -> list[Scale]:
        """The scale of every batch of an epoch, in order; the same on all ranks where batches wrap."""
        remaining = self._samples_of_rank()
        smallest = min(scale.batch for scale in self.scales)
        draws = self._generator(epoch, _SCALES).integers(len(self.scales), size=-(-remaining // smallest))
        drawn = []
        for draw in draws:
            if remaining <= 0:
                break
            drawn.append(self.scales[draw])
            remaining -= drawn[-1].batch
        return drawn

    def __len__(self) -> int:
        """Batches of the present epoch, those before a loaded state included."""
        return len(self.scales_of_epoch(self.epoch))

    def __iter__(self) -> Iterator[list[Request]]:
        # All at the first step: a DataLoader with workers makes two iterators and uses the second.
        first = self._first_batch
        self._first_batch, self._handed_out = 0, first
        indices, scales = self._indices_of_rank(), self.scales_of_epoch(self.epoch)
        start = sum(scale.batch for scale in scales[:first])
        for number, (height, width, batch) in enumerate(scales[first:], first + 1):
            places = np.arange(start, start + batch)
            chosen = indices[places % len(indices) if self.wrap else places[places < len(indices)]]
            start += batch
            self._handed_out = number
            yield [(height, width, index) for index in chosen.tolist()]

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """What continues the epoch with the next batch.

        Args:
            batches: batches of this epoch that the training loop has finished. By default those handed out, which is
                the same only without workers: a DataLoader with workers asks for batches ahead of the loop.

        Returns:
            Plain data; the same on all ranks.

        Raises:
            TypeError: ``batches`` is no int.
            ValueError: ``batches`` is negative or more than the epoch has.
        """
        finished = self._handed_out if batches is None else checked_int("batches", batches, minimum=0)
        if finished > len(self):
            raise ValueError(
                f"batches: expected at most {len(self)}, the batches of the epoch, got {finished}"
            )
        return {**self._identity(), "epoch": self.epoch, "batches": finished}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iteration continue where ``state_dict`` was taken; later ones are whole epochs.

        Raises:
            KeyError: an entry is missing.
            ValueError: the state is that of another sampler: other samples, scales, seed, order or ranks.
        """
        for name, mine in self._identity().items():
            if state[name] != mine:
                raise ValueError(
                    f"state: expected {name} {mine!r}, that of this sampler, got {state[name]!r}"
                )
        epoch = checked_int("state['epoch']", state["epoch"], minimum=0)
        batches = checked_int("state['batches']", state["batches"], minimum=0)
        if batches > len(self.scales_of_epoch(epoch)):
            raise ValueError(
                f"state['batches']: expected at most the batches of epoch {epoch}, got {batches}"
            )
        self._start_at(epoch, batches)

    def _start_at(self, epoch: int, batch: int) -> None:
        self.epoch, self._first_batch, self._handed_out = epoch, batch, batch

    def _identity(self) -> dict[str, Any]:
        """What two samplers must share to give the same batches."""
        return {
            "num_samples": self.num_samples,
            "scales": [list(scale) for scale in self.scales],
            "shuffle": self.shuffle,
            "seed": self.seed,
            "world_size": self.world_size,
            "wrap": self.wrap,
        }

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, stream])

    def _samples_of_rank(self) -> int:
        if self.wrap:
            return -(-self.num_samples // self.world_size)
        return len(range(self.rank, self.num_samples, self.world_size))

    def _indices_of_rank(self) -> np.ndarray:
        order = np.arange(self.num_samples)
        if self.shuffle:
            order = self._generator(self.epoch, _ORDER).permutation(order)
        places = self.rank + self.world_size * np.arange(self._samples_of_rank())
        return order[places % self.num_samples]


def _checked_scale(scale: Scale) -> Scale:
    height, width, batch = (
        checked_int(f"scales: {name}", value) for name, value in zip(Scale._fields, scale, strict=True)
    )
    return Scale(height, width, batch)


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of processes, as given or of torch.distributed."""
    if (rank is None) != (world_size is None):
        raise ValueError(
            f"rank, world_size: expected both or neither, got rank {rank}, world_size {world_size}"
        )
    if rank is None or world_size is None:
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1
    world_size = checked_int("world_size", world_size)
    rank = checked_int("rank", rank, minimum=0)
    if rank >= world_size:
        raise ValueError(f"rank: expected less than world_size {world_size}, got {rank}")
    return rank, world_size

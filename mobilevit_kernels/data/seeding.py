"""Random numbers that depend on what they are for, not on what ran before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*parts: int) -> int:
    """A 32-bit seed made of non-negative ints; other parts, or another order of them, give another stream."""
    # SeedSequence itself takes (1,) and (1, 0) for the same.
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1)[0])


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Seeds the CPU generators of torch, ``random`` and numpy from ``parts``; the former states come back after it."""
    seed = derived_seed(*parts)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)

"""What a way to run a network has to offer to be a peer."""

import importlib.util
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

Run = Callable[[], Tensor]


class Unavailable(Exception):
    """An engine cannot run this problem; the message is the reason."""


class Engine(Protocol):
    """Another way to run a network."""

    @property
    def name(self) -> str:
        """How tables call it."""

    def absence(self, dtype: torch.dtype) -> str | None:
        """Returns why it cannot compute in a dtype here, or None where it can."""

    def prepare(self, network: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Callable[[int], Run]:
        """Converts a network once for any number of threads.

        Args:
            network: float32, in eval mode; not changed.
            inputs: what ``network`` takes; the result is only for its size.
            dtype: to compute in; bfloat16 as the engine's own mixed precision.

        Returns:
            Threads -> a function that runs the network on ``inputs`` on so many threads.
        """


def missing_packages(*packages: str) -> str | None:
    """Why an engine that needs these packages is absent, or None where all are installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if not missing:
        return None
    return f"{', '.join(missing)} not installed (pip install 'mobilevit-kernels[peers]')"

"""What a row of a comparison is about."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from mobilevit_kernels.benchmark.candidates import Problem
from mobilevit_kernels.benchmark.engine import Engine
from mobilevit_kernels.benchmark.inference import inference_problem

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
IMAGE_SIDE = 256
SMOKE_IMAGE_SIDE = 64


class Case(Protocol):
    """What is measured together on the same inputs."""

    @property
    def subject(self) -> str:
        """The op, the token mixer or the model."""

    @property
    def shape(self) -> str:
        """Channels and map; empty for a model."""

    @property
    def model(self) -> str:
        """The model that it is part of, or the model itself."""

    @property
    def dtype(self) -> str:
        """A key of ``DTYPES``."""

    @property
    def batch(self) -> int:
        """Images."""

    @property
    def direction(self) -> str:
        """What is computed: a direction of :class:`Candidate`."""

    def problem(self, image_side: int) -> Problem:
        """Builds the inputs and the candidates."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class ModelCase:
    """Inference of one model, ours against plain PyTorch and other runtimes."""

    model: str
    dtype: str
    batch: int
    engines: Sequence[Engine] = field(default=(), compare=False)
    direction: str = "inference"
    shape: str = ""

    @property
    def subject(self) -> str:
        """The model."""
        return self.model

    def __str__(self) -> str:
        return f"{self.model} {self.dtype} batch {self.batch} {self.direction}"

    def problem(self, image_side: int) -> Problem:
        """Builds the inputs and the candidates."""
        return inference_problem(self.model, self.batch, DTYPES[self.dtype], image_side, self.engines)

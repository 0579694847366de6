"""One case to measure: of an op, of a token mixer or of a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

from bench.op_engines import with_op_engines
from bench.problems import stage_problem
from bench.shapes import ALL_DTYPES, StageShape
from bench.token_mixers import MixerStage, mixer_problem
from bench.training import TRAINING_STEP, training_problem
from mobilevit_kernels.benchmark.candidates import Problem
from mobilevit_kernels.benchmark.engine import Engine
from mobilevit_kernels.benchmark.inference import inference_problem
from mobilevit_kernels.benchmark.networks import model_problem

Target = StageShape | MixerStage | str


@dataclass(frozen=True)
class Case:
    """What is measured together on the same inputs.

    Attributes:
        target: a stage of an op, a token mixer, or a model's name.
        dtype: a key of ``ALL_DTYPES``.
        batch: images.
        direction: "forward" or "forward+backward" of anything in this dtype; "inference" or "training step" of a model
            under autocast.
        engines: peers besides eager PyTorch.
    """

    target: Target
    dtype: str
    batch: int
    direction: str
    engines: tuple[Engine, ...] = field(default=(), compare=False)

    @property
    def subject(self) -> str:
        """The op, the token mixer or the model."""
        return self.target if isinstance(self.target, str) else self.target.op

    @property
    def shape(self) -> str:
        """Channels and map of a stage; empty for a model."""
        return "" if isinstance(self.target, str) else str(self.target)

    @property
    def model(self) -> str:
        """The model that a stage belongs to, or the model itself."""
        return self.target if isinstance(self.target, str) else self.target.model

    def __str__(self) -> str:
        parts = [self.subject, self.shape, self.dtype, f"batch {self.batch}", self.direction]
        return " ".join(filter(None, parts))

    def problem(self, image_side: int) -> Problem:
        """Builds the inputs and the candidates."""
        target, batch, dtype = self.target, self.batch, ALL_DTYPES[self.dtype]
        if isinstance(target, StageShape):
            problem = stage_problem(target, batch, dtype)
            return with_op_engines(problem, target, dtype, self.direction, self.engines)
        if isinstance(target, MixerStage):
            return mixer_problem(target, batch, dtype, image_side, self.engines)
        if self.direction == "inference":
            return inference_problem(target, batch, dtype, image_side, self.engines)
        if self.direction == TRAINING_STEP:
            return training_problem(target, batch, dtype, image_side, self.engines)
        return model_problem(target, batch, dtype, self.direction, image_side)


def cases(
    targets: Sequence[Target],
    dtypes: Sequence[str],
    batches: Sequence[int],
    directions: Sequence[str],
    engines: Sequence[Engine] = (),
) -> list[Case]:
    """Every combination, in the order it is measured."""
    return [
        Case(target, dtype, batch, direction, tuple(engines))
        for target, dtype, batch, direction in product(targets, dtypes, batches, directions)
    ]

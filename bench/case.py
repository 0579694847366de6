"""One case to measure, of an op or of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from bench.model_problems import model_problem
from bench.problems import Problem, stage_problem
from bench.shapes import ALL_DTYPES, StageShape


@dataclass(frozen=True)
class Case:
    """What is measured together on the same inputs; ``target`` is a stage of an op, or a model's name."""

    target: StageShape | str
    dtype: str
    batch: int
    direction: str

    @property
    def subject(self) -> str:
        """The op, or the model."""
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
        return " ".join(
            filter(None, [self.subject, self.shape, self.dtype, f"batch {self.batch}", self.direction])
        )

    def problem(self, image_side: int) -> Problem:
        """Builds the inputs and the candidates."""
        if isinstance(self.target, str):
            return model_problem(self.target, self.batch, ALL_DTYPES[self.dtype], self.direction, image_side)
        return stage_problem(self.target, self.batch, ALL_DTYPES[self.dtype])


def cases(
    targets: Sequence[StageShape | str],
    dtypes: Sequence[str],
    batches: Sequence[int],
    directions: Sequence[str],
) -> list[Case]:
    """Every combination, in the order it is measured."""
    return [
        Case(target, dtype, batch, direction)
        for target, dtype, batch, direction in product(targets, dtypes, batches, directions)
    ]

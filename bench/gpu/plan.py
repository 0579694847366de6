"""What is measured, the most telling first, so that a short run answers the main questions."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.case import Case, cases
from bench.shapes import (
    ATTENTION_SHAPES,
    DIRECTIONS,
    MODELS,
    SEPARABLE_SHAPES,
    STAGE_SHAPES,
    StageShape,
    smoke_shapes,
    unique_shapes,
)

FIRST_MODELS = ("mobilevit_s", "mobilevitv2_100")
DTYPES = ("fp16", "bf16", "fp32")
BATCHES = (256, 32, 1)
MODEL_DIRECTIONS = ("inference", "training step")
# Every variant's activations and CUDA graphs of a training step are held at once.
TRAINING_BATCH = 128

_GUESSES_S = {"op": 3.0, "op compiled": 60.0, "model": 15.0, "model compiled": 200.0}


@dataclass(frozen=True)
class Planned:
    """A case, with or without the compiled candidates."""

    case: Case
    compiled: bool = False

    @property
    def is_op(self) -> bool:
        """Whether the case is one of an op."""
        return isinstance(self.case.target, StageShape)

    @property
    def kind(self) -> str:
        """Cases of one kind take about the same time."""
        kind = "op" if self.is_op else "model"
        return f"{kind} compiled" if self.compiled else kind

    @property
    def guess_s(self) -> float:
        """Seconds that it takes where none of its kind was measured yet."""
        return _GUESSES_S[self.kind]

    def __str__(self) -> str:
        return f"{self.case} with compile" if self.compiled else str(self.case)


def full_plan() -> list[Planned]:
    """Every case, by priority: a case comes once without and, where compilers are worth their time, once with."""
    shapes = unique_shapes(sorted(STAGE_SHAPES, key=lambda shape: shape.model not in FIRST_MODELS))
    first = [shape for shape in shapes if shape.model in FIRST_MODELS]
    rest = [shape for shape in shapes if shape.model not in FIRST_MODELS]
    largest = [shape for shape in first if shape.side == max(one.side for one in first)]
    other_models = [model for model in MODELS if model not in FIRST_MODELS]
    half, others = DTYPES[:1], DTYPES[1:]
    planned = [
        *_ops(first, half, BATCHES[:1]),
        *_models(FIRST_MODELS, half, BATCHES[:1]),
        *_ops(first, half, BATCHES[1:]),
        *_models(FIRST_MODELS, half, BATCHES[1:]),
        *_models(FIRST_MODELS, half, BATCHES[:1], compiled=True),
        *_ops(largest, half, BATCHES[:1], compiled=True),
        *_models(FIRST_MODELS, half, BATCHES[1:], compiled=True),
        *_ops(first, others, BATCHES[:1]),
        *_models(FIRST_MODELS, others[:1], BATCHES[:1]),
        *_ops(rest, half, BATCHES),
        *_ops(first, others, BATCHES[1:]),
        *_ops(rest, others, BATCHES),
        *_models(other_models, half, BATCHES),
        *_models(FIRST_MODELS, others[:1], BATCHES),
        *_models(FIRST_MODELS, others[:1], BATCHES[:1], compiled=True),
        *_models(other_models, half, BATCHES[:1], compiled=True),
    ]
    return list(dict.fromkeys(planned))


def smoke_plan() -> list[Planned]:
    """One small case of each kind."""
    shapes = smoke_shapes(ATTENTION_SHAPES) + smoke_shapes(SEPARABLE_SHAPES)
    return [
        *_ops(shapes[:1], ["bf16"], [1]),
        *_ops(shapes[1:], ["fp32"], [32]),
        *(Planned(case) for case in cases(MODELS[:1], ["bf16"], [1], MODEL_DIRECTIONS)),
    ]


def select(
    planned: Iterable[Planned], pattern: str, kinds: Sequence[str], with_compile: bool
) -> list[Planned]:
    """The planned cases that match.

    Args:
        planned: what to choose from.
        pattern: a regular expression that the name of a case contains.
        kinds: "ops", "models".
        with_compile: False leaves out the cases with compiled candidates.
    """
    return [
        one
        for one in planned
        if re.search(pattern, str(one))
        and ("ops" if one.is_op else "models") in kinds
        and (with_compile or not one.compiled)
    ]


def _ops(
    shapes: Sequence[StageShape], dtypes: Sequence[str], batches: Sequence[int], compiled: bool = False
) -> Iterator[Planned]:
    for case in cases(shapes, dtypes, batches, DIRECTIONS):
        yield Planned(case, compiled)


def _models(
    names: Sequence[str], dtypes: Sequence[str], batches: Sequence[int], compiled: bool = False
) -> Iterator[Planned]:
    """Inference at these batches; training at one batch of its own, with the first of them."""
    for batch in batches:
        directions = MODEL_DIRECTIONS if batch == BATCHES[0] else MODEL_DIRECTIONS[:1]
        for direction in directions:
            for case in cases(names, dtypes, [batch], [direction]):
                if direction != MODEL_DIRECTIONS[0]:
                    case = Case(case.target, case.dtype, TRAINING_BATCH, direction)
                yield Planned(case, compiled)

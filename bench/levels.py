"""The four levels of a comparison: what each measures, and for how long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.case import Case, Target, cases
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
from bench.token_mixers import mixer_stages
from bench.training import TRAINING_STEP
from mobilevit_kernels.benchmark.engine import Engine

# Compilers take seconds to minutes a case, so they meet the models that people use most.
PEER_MODELS = ("mobilevit_xxs", "mobilevit_s", "mobilevitv2_050", "mobilevitv2_100")
DEPLOYED_MODELS = (
    "mobilevit_xxs",
    "mobilevit_xs",
    "mobilevit_s",
    "mobilevitv2_050",
    "mobilevitv2_100",
    "mobilevitv2_200",
    "mobilevitv3_s",
)
TRAINED_MODELS = ("mobilevit_s", "mobilevitv2_100")
# 1024 tokens a group: a map of 64 x 64, as in detection and segmentation.
LARGE_SHAPES = (
    StageShape("unfold_attn_fold", "mobilevit_s at 512", 144, 64, num_heads=4),
    StageShape("separable_attn", "mobilevitv2_100 at 512", 128, 64),
)


MIXERS = mixer_stages(PEER_MODELS)
SMOKE_MIXERS = mixer_stages(["mobilevit_xxs"])[-1:] + mixer_stages(["mobilevitv2_050"])[-1:]


@dataclass(frozen=True)
class Level:
    """One level.

    Attributes:
        targets: what is measured without and with compilers and other runtimes as peers.
        smoke_targets: a small one of each kind.
        directions: what is computed, without and with them.
        budget_s: seconds of timing a row, without and with them.
        min_rounds: fewest rounds a row, without and with them.
    """

    targets: tuple[Sequence[Target], Sequence[Target]]
    smoke_targets: Sequence[Target]
    directions: tuple[Sequence[str], Sequence[str]]
    budget_s: tuple[float, float]
    min_rounds: tuple[int, int]

    def cases(
        self,
        dtypes: Sequence[str],
        batches: Sequence[int],
        directions: Sequence[str] | None,
        engines: Sequence[Engine],
        smoke: bool,
    ) -> list[Case]:
        """Every case of the level; ``directions`` and ``smoke`` replace its own choice."""
        kind = bool(engines)
        targets = self.smoke_targets if smoke else self.targets[kind]
        chosen = directions or self.directions[kind]
        return cases(targets, dtypes, batches[:1] if smoke else batches, chosen, engines)


def _of(models: Sequence[str]) -> Callable[[StageShape], bool]:
    return lambda shape: shape.model in models


_PEER_SHAPES = (*filter(_of([*PEER_MODELS, "mobilevit_xs", "mobilevitv2_200"]), STAGE_SHAPES), *LARGE_SHAPES)

LEVELS = {
    "ops": Level(
        targets=(STAGE_SHAPES, unique_shapes(_PEER_SHAPES)),
        smoke_targets=smoke_shapes(ATTENTION_SHAPES) + smoke_shapes(SEPARABLE_SHAPES),
        directions=(DIRECTIONS, DIRECTIONS),
        budget_s=(0.25, 0.8),
        min_rounds=(5, 5),
    ),
    "mixers": Level(
        targets=(MIXERS, MIXERS),
        smoke_targets=SMOKE_MIXERS,
        directions=(("inference",), ("inference",)),
        budget_s=(0.5, 1.0),
        min_rounds=(5, 5),
    ),
    "models": Level(
        targets=(MODELS, DEPLOYED_MODELS),
        smoke_targets=(MODELS[0], MODELS[-1]),
        directions=(("forward",), ("inference",)),
        budget_s=(1.2, 4.0),
        min_rounds=(3, 7),
    ),
    "training": Level(
        targets=(TRAINED_MODELS, TRAINED_MODELS),
        smoke_targets=MODELS[:1],
        directions=((TRAINING_STEP,), (TRAINING_STEP,)),
        budget_s=(3.0, 6.0),
        min_rounds=(3, 5),
    ),
}

"""``unfold_attn_fold`` at every stage of the models, against plain PyTorch."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.shapes import ATTENTION_SHAPES, DIRECTIONS, smoke_shapes
from bench.suite_cases import SMOKE, SuiteCase, run, suite_cases
from mobilevit_kernels.benchmark.cases import DTYPES

SHAPES = smoke_shapes(ATTENTION_SHAPES) if SMOKE else ATTENTION_SHAPES


@pytest.mark.parametrize(
    "suite_case", suite_cases(SHAPES, DTYPES, DIRECTIONS, ("SDPA NCHW", "SDPA NHWC")), ids=str
)
def test_unfold_attn_fold(benchmark: BenchmarkFixture, suite_case: SuiteCase) -> None:
    run(benchmark, suite_case)

"""``separable_attn`` at every stage of the models, against plain PyTorch."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.shapes import DIRECTIONS, SEPARABLE_SHAPES, smoke_shapes
from bench.suite_cases import SMOKE, SuiteCase, run, suite_cases
from mobilevit_kernels.benchmark.cases import DTYPES
from mobilevit_kernels.benchmark.timm_models import import_timm

SHAPES = smoke_shapes(SEPARABLE_SHAPES) if SMOKE else SEPARABLE_SHAPES
PEERS = ["eager NCHW", "eager NHWC", *(["timm"] if import_timm() is not None else [])]


@pytest.mark.parametrize("suite_case", suite_cases(SHAPES, DTYPES, DIRECTIONS, PEERS), ids=str)
def test_separable_attn(benchmark: BenchmarkFixture, suite_case: SuiteCase) -> None:
    run(benchmark, suite_case)

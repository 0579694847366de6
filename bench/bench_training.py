"""Training steps of whole models, against eager PyTorch."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.levels import LEVELS
from bench.suite_cases import SMOKE, SuiteCase, run, suite_cases
from bench.training import TRAINING_STEP
from mobilevit_kernels.benchmark.cases import DTYPES
from mobilevit_kernels.benchmark.networks import LAYOUT_NAMES

LEVEL = LEVELS["training"]
CASES = suite_cases(LEVEL.smoke_targets if SMOKE else LEVEL.targets[0], DTYPES, [TRAINING_STEP], LAYOUT_NAMES)


@pytest.mark.parametrize("suite_case", CASES, ids=str)
def test_training_step(benchmark: BenchmarkFixture, suite_case: SuiteCase) -> None:
    run(benchmark, suite_case)

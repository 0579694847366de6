"""Whole models after ``optimize_for_inference``, against eager PyTorch."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.shapes import MODELS
from bench.suite_cases import SMOKE, SuiteCase, run, suite_cases
from mobilevit_kernels.benchmark.cases import DTYPES
from mobilevit_kernels.benchmark.networks import LAYOUT_NAMES

CASES = suite_cases(MODELS[:1] if SMOKE else MODELS, DTYPES, ["inference"], LAYOUT_NAMES)


@pytest.mark.parametrize("suite_case", CASES, ids=str)
def test_inference(benchmark: BenchmarkFixture, suite_case: SuiteCase) -> None:
    run(benchmark, suite_case)

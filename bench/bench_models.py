"""Whole models on one image, against timm's models (or ours on the reference ops, where timm has none)."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.shapes import MODELS
from bench.suite_cases import SMOKE, SuiteCase, run, suite_cases
from mobilevit_kernels.benchmark.cases import DTYPES
from mobilevit_kernels.benchmark.networks import peer_names

CASES = [
    case
    for model in (MODELS[:1] if SMOKE else MODELS)
    for case in suite_cases([model], DTYPES, ["forward"], peer_names(model))
]


@pytest.mark.parametrize("suite_case", CASES, ids=str)
def test_model(benchmark: BenchmarkFixture, suite_case: SuiteCase) -> None:
    run(benchmark, suite_case)

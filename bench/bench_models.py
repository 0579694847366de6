"""Whole models on one image, against timm's models (or ours on the reference ops, where timm has none)."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.model_problems import peer_names
from bench.shapes import DTYPES, MODELS
from bench.suite_cases import SMOKE, SuiteCase, run, suite_cases

CASES = [
    case
    for model in (MODELS[:1] if SMOKE else MODELS)
    for case in suite_cases([model], DTYPES, ["forward"], peer_names(model))
]


@pytest.mark.parametrize("suite_case", CASES, ids=str)
def test_model(benchmark: BenchmarkFixture, suite_case: SuiteCase) -> None:
    run(benchmark, suite_case)

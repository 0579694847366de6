"""Attention units: one layer on N tokens, and MobileViT-S with each in place, against plain PyTorch."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.suite_cases import SMOKE, SuiteCase, run
from bench.unit_problems import PLAIN, UNITS, UnitCase, UnitModelCase
from mobilevit_kernels.benchmark.candidates import OURS
from mobilevit_kernels.benchmark.networks import LAYOUT_NAMES

TOKENS = (64,) if SMOKE else (64, 256, 1024, 4096)
LAYERS = [
    SuiteCase(UnitCase(unit, tokens, "fp32"), 1, candidate)
    for unit in UNITS
    for tokens in TOKENS
    for candidate in (OURS, PLAIN)
]
WHOLE = [
    SuiteCase(UnitModelCase(unit, "fp32"), 1, candidate)
    for unit in (UNITS[:1] if SMOKE else UNITS)
    for candidate in (OURS, *LAYOUT_NAMES)
]


@pytest.mark.parametrize("suite_case", LAYERS + WHOLE, ids=str)
def test_attention_unit(benchmark: BenchmarkFixture, suite_case: SuiteCase) -> None:
    run(benchmark, suite_case)

"""Token mixers in inference, against timm's."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.levels import MIXERS, SMOKE_MIXERS
from bench.suite_cases import SMOKE, SuiteCase, run, suite_cases
from bench.token_mixers import mixer_peers
from mobilevit_kernels.benchmark.cases import DTYPES

# Without timm nobody is compared with.
CASES = [
    case
    for stage in (SMOKE_MIXERS if SMOKE else MIXERS)
    if mixer_peers(stage)
    for case in suite_cases([stage], DTYPES, ["inference"], mixer_peers(stage))
]


@pytest.mark.parametrize("suite_case", CASES, ids=str)
def test_token_mixer(benchmark: BenchmarkFixture, suite_case: SuiteCase) -> None:
    run(benchmark, suite_case)

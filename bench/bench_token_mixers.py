"""Token mixers in inference, against timm's."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.levels import LEVELS
from bench.suite_cases import SMOKE, SuiteCase, run, suite_cases
from bench.token_mixers import mixer_peers
from mobilevit_kernels.benchmark.cases import DTYPES

STAGES = LEVELS["mixers"].smoke_targets if SMOKE else LEVELS["mixers"].targets[0]
CASES = [case for stage in STAGES for case in suite_cases([stage], DTYPES, ["inference"], mixer_peers(stage))]


@pytest.mark.parametrize("suite_case", CASES, ids=str)
def test_token_mixer(benchmark: BenchmarkFixture, suite_case: SuiteCase) -> None:
    run(benchmark, suite_case)

"""The cases of the pytest-benchmark suites: one benchmark per candidate, grouped with those it is compared with."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from pytest_benchmark.fixture import BenchmarkFixture

from bench.case import Case, Target
from mobilevit_kernels.benchmark.candidates import OURS, Problem
from mobilevit_kernels.benchmark.cases import IMAGE_SIDE, SMOKE_IMAGE_SIDE
from mobilevit_kernels.benchmark.cases import Case as AnyCase
from mobilevit_kernels.benchmark.timing import num_threads

# Set by `python -m bench.suite --smoke`: one small case of each kind.
SMOKE = os.environ.get("MOBILEVIT_BENCH_SMOKE") == "1"
THREADS = (1, 2)


@dataclass(frozen=True)
class SuiteCase:
    """One benchmark: a candidate on a case, at a thread count."""

    case: AnyCase
    threads: int
    candidate: str

    @property
    def group(self) -> str:
        """What the candidates of one ratio share."""
        case = self.case
        parts = [case.subject, case.shape, case.dtype, f"b{case.batch}", case.direction, f"t{self.threads}"]
        return "/".join(part for part in parts if part)

    def __str__(self) -> str:
        return f"{self.group}/{self.candidate}".replace(" ", "-")


def suite_cases(
    targets: Sequence[Target],
    dtypes: Iterable[str],
    directions: Iterable[str],
    peer_names: Iterable[str],
) -> list[SuiteCase]:
    """Every combination at batch 1; the candidates of a group follow each other, so that they run side by side."""
    combinations = product(targets, dtypes, directions, THREADS, [OURS, *peer_names])
    return [
        SuiteCase(Case(target, dtype, 1, direction), threads, candidate)
        for target, dtype, direction, threads, candidate in combinations
    ]


@lru_cache(maxsize=1)
def _problem(case: AnyCase) -> Problem:
    return case.problem(SMOKE_IMAGE_SIDE if SMOKE else IMAGE_SIDE)


def run(benchmark: BenchmarkFixture, suite_case: SuiteCase) -> None:
    """Times one candidate and notes whose time it is."""
    candidates = _problem(suite_case.case).candidates
    benchmark.group = suite_case.group
    benchmark.extra_info["candidate"] = suite_case.candidate
    runner = candidates[suite_case.candidate].runner(suite_case.case.direction)
    with num_threads(suite_case.threads):
        runner()
        benchmark(runner)

"""Synthetic runs in pytest-benchmark's JSON form."""

from typing import Any

import pytest


class SyntheticRun:
    """Builds what ``--benchmark-json`` writes, from medians in seconds."""

    def __init__(self) -> None:
        self.benchmarks: list[dict[str, Any]] = []

    def add(self, group: str, **medians: float) -> "SyntheticRun":
        for candidate, median in medians.items():
            self.benchmarks.append(
                {
                    "group": group,
                    "fullname": f"bench/bench_x.py::test_x[{group}/{candidate}]",
                    "extra_info": {"candidate": candidate},
                    "stats": {"median": median, "min": median / 2, "mean": median * 2},
                }
            )
        return self

    @property
    def json(self) -> dict[str, Any]:
        return {"benchmarks": self.benchmarks, "machine_info": {}}


@pytest.fixture
def synthetic_run() -> SyntheticRun:
    return SyntheticRun()

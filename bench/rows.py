"""One measured row of bench.compare: the case, the gate, every candidate's time, and what follows from them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from bench.case import Case
from bench.gate import Gate, GateResult
from bench.problems import OURS
from bench.shapes import DTYPES
from bench.timing import Timing, num_threads, time_in_turn


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        case: what was measured.
        threads: torch threads.
        gate: the correctness gate; without a pass there is no speed-up.
        timings: candidate -> timing; ours is ``OURS``.
        flops: operations the direction needs; None for models.
        matrix_rate: measured operations per second of a large matrix product, same dtype and threads.
    """

    case: Case
    threads: int
    gate: GateResult
    timings: dict[str, Timing]
    flops: float | None
    matrix_rate: float

    @property
    def best_peer(self) -> str:
        """The fastest peer's name."""
        return min(
            (name for name in self.timings if name != OURS), key=lambda name: self.timings[name].median_s
        )

    @property
    def speedup(self) -> float | None:
        """Median of the fastest peer over ours; None where the gate failed."""
        if not self.gate.passed:
            return None
        return self.timings[self.best_peer].median_s / self.timings[OURS].median_s

    @property
    def rate(self) -> float | None:
        """Needed operations per second of ours."""
        return None if self.flops is None else self.flops / self.timings[OURS].median_s

    def record(self) -> dict[str, object]:
        """The row for JSON."""
        return {
            "subject": self.case.subject,
            "shape": self.case.shape,
            "model": self.case.model,
            "dtype": self.case.dtype,
            "batch": self.case.batch,
            "direction": self.case.direction,
            "threads": self.threads,
            "gate": asdict(self.gate),
            "timings": {name: asdict(timing) for name, timing in self.timings.items()},
            "best_peer": self.best_peer,
            "speedup": self.speedup,
            "flops": self.flops,
            "flops_per_s": self.rate,
            "matrix_flops_per_s": self.matrix_rate,
            "matrix_fraction": None if self.rate is None else self.rate / self.matrix_rate,
        }


def measure(
    case: Case,
    threads: list[int],
    image_side: int,
    rates: dict[tuple[str, int], float],
    budget_s: float,
    min_rounds: int,
) -> Iterator[Row]:
    """Checks one case and times it at every thread count, a row each.

    Args:
        case: what to measure.
        threads: thread counts.
        image_side: image size of models in pixels.
        rates: (dtype, threads) -> measured matrix rate.
        budget_s: seconds of timing a row.
        min_rounds: fewest rounds a row.
    """
    problem = case.problem(image_side)
    gate = Gate(problem, DTYPES[case.dtype], case.direction)
    runners = {name: candidate.runner(case.direction) for name, candidate in problem.candidates.items()}
    for count in threads:
        with num_threads(count):
            result = gate.check()
            timings = time_in_turn(runners, budget_s, min_rounds)
        yield Row(case, count, result, timings, problem.flops(case.direction), rates[case.dtype, count])

"""One measured row of a comparison: the case, the gate, every candidate's time, and what follows from them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch

from mobilevit_kernels.benchmark.candidates import OURS, Problem, is_ours
from mobilevit_kernels.benchmark.cases import DTYPES, Case
from mobilevit_kernels.benchmark.gate import Gate, GateResult
from mobilevit_kernels.benchmark.timing import (
    Sampler,
    Timing,
    busy_processors,
    num_threads,
    seconds_per_call,
    time_in_turn,
)

_LONGEST_REASON = 300


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        case: what was measured.
        threads: threads of every candidate.
        gate: the correctness gate; without a pass there is no speed-up.
        timings: candidate -> timing; ours is ``OURS``.
        flops: operations the direction needs; None where not counted.
        matrix_rate: operations per second of :func:`matrix_rate`, same dtype and threads.
        other_gates: every other candidate -> the same gate, which decides nothing for them.
        absent: peer -> why it did not run.
        processors: candidate -> processors that it kept busy on average.
        same_top1: share of images whose most probable class of ours is the true one; None where there are no classes.
    """

    case: Case
    threads: int
    gate: GateResult
    timings: dict[str, Timing]
    flops: float | None
    matrix_rate: float
    other_gates: dict[str, GateResult] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    processors: dict[str, float] = field(default_factory=dict)
    same_top1: float | None = None

    @property
    def best_peer(self) -> str:
        """The fastest peer's name."""
        peers = [name for name in self.timings if not is_ours(name)]
        return min(peers, key=lambda name: self.timings[name].median_s)

    @property
    def speedup(self) -> float | None:
        """Median of the fastest peer over ours; None where the gate failed."""
        if not self.gate.passed:
            return None
        return self.timings[self.best_peer].median_s / self.timings[OURS].median_s

    @property
    def images_per_s(self) -> dict[str, float]:
        """Images per second of every candidate, but for a way to run this package whose result is wrong."""
        gates = {OURS: self.gate, **self.other_gates}
        wrong = [name for name, gate in gates.items() if is_ours(name) and not gate.passed]
        return {
            name: self.case.batch / timing.median_s
            for name, timing in self.timings.items()
            if name not in wrong
        }

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
            "other_gates": {name: asdict(gate) for name, gate in self.other_gates.items()},
            "absent": self.absent,
            "same_top1": self.same_top1,
            "processors": self.processors,
            "timings": {name: asdict(timing) for name, timing in self.timings.items()},
            "images_per_s": self.images_per_s,
            "best_peer": self.best_peer,
            "speedup": self.speedup,
            "flops": self.flops,
            "flops_per_s": self.rate,
            "matrix_flops_per_s": self.matrix_rate,
            "matrix_fraction": None if self.rate is None else self.rate / self.matrix_rate,
        }


def candidate_names(rows: Sequence[Row]) -> list[str]:
    """Everybody who was timed in some row, in the order of a row that has all."""
    places: dict[str, int] = {}
    for row in rows:
        for place, name in enumerate(row.timings):
            places[name] = max(place, places.get(name, 0))
    return sorted(places, key=places.__getitem__)


def measure(
    case: Case,
    threads: Sequence[int],
    image_side: int,
    rates: dict[tuple[str, int], float],
    budget_s: float,
    min_rounds: int,
    sample: Sampler = seconds_per_call,
) -> Iterator[Row]:
    """Checks one case and times it at every thread count, a row each.

    Args:
        case: what to measure.
        threads: thread counts.
        image_side: image size of models in pixels.
        rates: (dtype, threads) -> measured matrix rate.
        budget_s: seconds of timing a row.
        min_rounds: fewest rounds a row.
        sample: as in :func:`time_in_turn`.
    """
    problem = case.problem(image_side)
    gate = Gate(problem, DTYPES[case.dtype], case.direction)
    for count in threads:
        # Code compiled for other threads is of no use, and its number is limited.
        torch.compiler.reset()
        with num_threads(count):
            gates, absent = check_candidates(problem, gate)
            runners = {name: problem.candidates[name].runner(case.direction) for name in gates}
            timings = time_in_turn(runners, budget_s, min_rounds, sample=sample)
            processors = {name: busy_processors(run) for name, run in runners.items()}
        other_gates = {name: result for name, result in gates.items() if name != OURS}
        yield Row(
            case,
            count,
            gates[OURS],
            timings,
            problem.flops(case.direction),
            rates[case.dtype, count],
            other_gates,
            absent,
            processors,
            gate.same_top1() if "logits" in problem.quantities else None,
        )


def check_candidates(problem: Problem, gate: Gate) -> tuple[dict[str, GateResult], dict[str, str]]:
    """The gate of every candidate under the present thread count, and why the others do not run.

    Ours and plain PyTorch must run; whatever a runtime raises is the reason of its absence, and so is a result that is
    not finite.
    """
    gates: dict[str, GateResult] = {}
    absent = dict(problem.absent)
    runtimes = [candidate.name for candidate in problem.runtimes]
    for name, candidate in problem.candidates.items():
        try:
            gates[name] = gate.check(candidate)
        except Exception as error:
            if name not in runtimes:
                raise
            absent[name] = first_line(error)
    for name in [name for name in runtimes if name in gates and not gates[name].finite]:
        absent[name] = f"its {gates.pop(name).quantity} is not finite"
    return gates, absent


def first_line(error: BaseException) -> str:
    """An error in one line, short enough for a table."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:_LONGEST_REASON]

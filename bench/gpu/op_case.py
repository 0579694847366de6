"""Measures one case of an op: the gate, then every candidate in turn in every mode."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from bench.case import Case
from bench.gpu.budget import time_limit
from bench.gpu.limits import Limits, moved_bytes
from bench.gpu.measure import Record, case_record, noted_refusal, time_mode
from bench.gpu.meters import NO_GRAPHS, Call, Meter
from bench.gpu.op_candidates import OpCandidate, op_candidates
from bench.problems import stage_problem
from bench.shapes import ALL_DTYPES, StageShape
from mobilevit_kernels.benchmark.candidates import OURS, Candidate, Problem
from mobilevit_kernels.benchmark.gate import Gate, GateResult

# From this batch on, inputs do not stay in the cache between the layers of a model.
_COLD_FROM_BATCH = 32
_COMPILE_LIMIT_S = 60.0


@dataclass(frozen=True)
class Rates:
    """Measured rates of the device: bytes per second of a copy, operations per second of a product by dtype."""

    copy: float
    matrix: dict[str, float]


def measure_op(
    case: Case, meter: Meter, rates: Rates, budget_s: float, min_rounds: int, compile_mode: str | None
) -> Record:
    """Gates and times one case of an op.

    "eager" is back-to-back calls, launches included. "graph" (batch below 32) replays a CUDA graph of one call.
    "cold" (larger batches) flushes the level-2 cache before each replay, or before each call that cannot be captured.

    Args:
        case: the stage, dtype, batch and direction.
        meter: the device and its clocks.
        rates: measured rates.
        budget_s: seconds of timing a mode.
        min_rounds: fewest rounds a mode.
        compile_mode: mode of the compiled peers; None leaves them out.
    """
    shape = case.target
    assert isinstance(shape, StageShape)
    problem = stage_problem(shape, case.batch, ALL_DTYPES[case.dtype], meter.device)
    refused: dict[str, str] = {}
    memory: dict[str, int] = {}
    gates = _gates(case, problem, refused, meter)
    if OURS not in gates:
        return case_record(case, gates, {}, refused, memory)
    ready = _prepare(problem, case.direction, compile_mode, meter, refused, memory)
    eager: dict[str, Call] = {one.name: one.runner for one in ready}
    second = "cold" if case.batch >= _COLD_FROM_BATCH else "graph"
    replays = _capture(ready, second, meter, refused)
    modes = {
        "eager": time_mode(eager, meter, False, budget_s, min_rounds),
        second: time_mode(replays, meter, second == "cold", budget_s, min_rounds),
    }
    record = case_record(case, gates, modes, refused, memory)
    needs = op_limits(case, shape, problem.flops(case.direction) or 0.0, rates)
    add_fractions(record, needs)
    return record


def op_limits(case: Case, shape: StageShape, flops: float, rates: Rates) -> Limits:
    """What a case needs, beside the measured rates."""
    once, repeated = moved_bytes(shape, case.batch, ALL_DTYPES[case.dtype].itemsize, case.direction)
    return Limits(once, repeated, flops, rates.copy, rates.matrix[case.dtype])


def add_fractions(record: Record, limits: Limits) -> None:
    """Says in every mode of a record how near the best of ours is to the limits."""
    record["limits"] = asdict(limits)
    modes: Any = record["modes"]
    for mode in modes.values():
        if mode["best_ours"] is not None:
            seconds = mode["timings"][mode["best_ours"]]["median_s"]
            mode["limit_fractions"] = limits.fractions(seconds)


@dataclass(frozen=True)
class _Replayed(Candidate):
    """A candidate whose work is replayed from a CUDA graph.

    Attributes:
        replay: runs the graph.
        stored: what it writes: the output, or the output and every gradient.
    """

    replay: Call = lambda: None
    stored: Any = None

    def forward(self) -> Tensor:
        """Replays; returns the output."""
        self.replay()
        return self.stored

    def forward_backward(self) -> tuple[Tensor, ...]:
        """Replays; returns the output and the gradient of every leaf."""
        self.replay()
        return self.stored


def _gates(case: Case, problem: Problem, refused: dict[str, str], meter: Meter) -> dict[str, GateResult]:
    """The gate of ours, called and replayed: the one that failed, or else that of the call."""
    gates: dict[str, GateResult] = {}
    with noted_refusal(refused, OURS, meter):
        gate = Gate(problem, ALL_DTYPES[case.dtype], case.direction)
        gates[OURS] = gate.check()
        if meter.is_cuda and gates[OURS].passed:
            ours = problem.ours
            replay, stored = meter.captured(ours.runner(case.direction))
            replayed = _Replayed(
                ours.name, ours.call, ours.leaves, ours.grad_out, ours.to_map, replay, stored
            )
            result = gate.check(replayed)
            gates[OURS] = gates[OURS] if result.passed else result
    meter.release()
    return gates


def _prepare(
    problem: Problem,
    direction: str,
    compile_mode: str | None,
    meter: Meter,
    refused: dict[str, str],
    memory: dict[str, int],
) -> list[OpCandidate]:
    """The candidates that run, warm, with the peak of the memory that each takes beside the inputs."""
    ready = []
    for one in op_candidates(problem, direction, compile_mode):
        base = meter.reserved_bytes()
        with noted_refusal(refused, one.name, meter):
            with time_limit(_COMPILE_LIMIT_S if one.compiled else float("inf"), "compilation took too long"):
                meter.warm_up(one.runner)
            peak = meter.peak_bytes(one.runner, base)
            if peak is not None:
                memory[one.name] = peak
            ready.append(one)
    return ready


def _capture(ready: list[OpCandidate], mode: str, meter: Meter, refused: dict[str, str]) -> dict[str, Call]:
    """What replays each candidate; for "cold" the candidate itself where it cannot be captured.

    Compiled candidates bring CUDA graphs of their own.
    """
    replays: dict[str, Call] = {}
    if mode == "graph" and not meter.is_cuda:
        refused[mode] = NO_GRAPHS
        return replays
    for one in ready:
        if one.compiled:
            replays[one.name] = one.runner
            continue
        reasons: dict[str, str] = {}
        with noted_refusal(reasons, one.name, meter):
            replays[one.name], _ = meter.captured(one.runner)
        if reasons and mode == "cold":
            replays[one.name] = one.runner
        elif reasons:
            refused[f"{one.name}, {mode}"] = reasons[one.name]
    return replays

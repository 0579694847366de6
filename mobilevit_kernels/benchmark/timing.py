"""Timing in turn: every candidate once a round, so that a change of the machine's speed meets all of them alike."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

# A sample shorter than this would measure the clock.
_SHORTEST_SAMPLE_S = 2e-4
_MATRIX_SIZE = 2048
_SETTLE_S = 8e-3
_BUSY_S = 5e-2

Sampler = Callable[[Callable[[], object], int], float]


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and quartiles over the rounds."""

    median_s: float
    q1_s: float
    q3_s: float
    rounds: int
    calls_per_round: int


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Runs torch (and the kernels, which follow it) on this many threads."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def seconds_per_call(function: Callable[[], object], calls: int) -> float:
    """One sample: the mean of this many calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def settled_seconds_per_call(function: Callable[[], object], calls: int) -> float:
    """One sample after a pause and one call that does not count.

    The threads of one runtime spin for a while after their last call, up to 6 ms with the OpenMP of torch, and would
    slow the candidate of another that is timed next.
    """
    time.sleep(_SETTLE_S)
    function()
    return seconds_per_call(function, calls)


def busy_processors(function: Callable[[], object]) -> float:
    """Processors that a function keeps busy: seconds of the process over seconds of the clock, threads of all kinds."""
    time.sleep(_SETTLE_S)
    function()
    start, start_cpu = time.perf_counter(), time.process_time()
    while True:
        function()
        elapsed = time.perf_counter() - start
        if elapsed >= _BUSY_S:
            return (time.process_time() - start_cpu) / elapsed


def time_in_turn(
    functions: Mapping[str, Callable[[], object]],
    budget_s: float,
    min_rounds: int = 5,
    max_rounds: int = 200,
    sample: Sampler = seconds_per_call,
) -> dict[str, Timing]:
    """Times several functions alternately.

    Args:
        functions: name -> what to call.
        budget_s: about how many seconds all rounds together may take; at least ``min_rounds`` run even so.
        min_rounds: fewest samples of each function.
        max_rounds: most samples of each function.
        sample: measures one function: the mean seconds of so many calls.

    Returns:
        Name -> timing.
    """
    calls = {}
    round_s = 0.0
    for name, function in functions.items():
        function()
        start = time.perf_counter()
        estimate = sample(function, 1)
        overhead_s = max(0.0, time.perf_counter() - start - estimate)
        calls[name] = max(1, round(_SHORTEST_SAMPLE_S / max(estimate, 1e-9)))
        round_s += estimate * calls[name] + overhead_s
    rounds = min(max_rounds, max(min_rounds, int(budget_s / round_s)))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            samples[name].append(sample(function, calls[name]))
    return {name: _summarize(values, calls[name]) for name, values in samples.items()}


def _summarize(samples: list[float], calls: int) -> Timing:
    q1, median, q3 = (
        statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    )
    return Timing(median, q1, q3, len(samples), calls)


def matrix_rate(
    dtype: torch.dtype,
    threads: int,
    budget_s: float = 1.0,
    device: torch.device | str = "cpu",
    size: int = _MATRIX_SIZE,
    sample: Sampler = seconds_per_call,
) -> float:
    """Operations per second of a large square matrix product in torch: what this machine gives to plain products.

    Small products that stay in cache can run faster than this.
    """
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with num_threads(threads), torch.no_grad():
        timing = time_in_turn({"matmul": lambda: a @ b}, budget_s, sample=sample)["matmul"]
    return 2 * size**3 / timing.median_s

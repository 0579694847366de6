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
_SMALLEST_MATRIX = 256
# Of a matrix product: without instructions for a dtype, torch may need twenty seconds for what takes others 0.1 s.
_LONGEST_PRODUCT_S = 0.5
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
    return {name: summarize(values, calls[name]) for name, values in samples.items()}


def summarize(samples: list[float], calls: int = 1) -> Timing:
    """The timing of these samples, seconds each, of so many calls each."""
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
    """Operations per second that torch reaches: the faster of a large matrix product and, on CPUs, a large convolution.

    torch has its matrix product from one library and its convolutions from another (oneDNN); on some processors only
    one of them is near the limit. Small products that stay in cache can run faster than either.

    Args:
        dtype: of the numbers.
        threads: torch's threads.
        budget_s: about how many seconds it may take, as in :func:`time_in_turn`.
        device: where.
        size: rows and columns of the matrices, fewer where a product of this size would take longer than half a
            second. The convolution, 3x3 on a channels_last map, has ``size / 4`` channels and sides of ``size / 32``.
        sample: as in :func:`time_in_turn`.
    """
    with num_threads(threads), torch.no_grad():
        size = _affordable_size(size, dtype, device, sample)
        functions = {"matmul": _matrix_product(size, dtype, device)}
        operations = {"matmul": 2 * size**3}
        if torch.device(device).type == "cpu":
            channels, side = max(1, size // 4), max(1, size // 32)
            functions["convolution"] = _convolution(channels, side, dtype)
            operations["convolution"] = 2 * (3 * channels * side) ** 2
        timings = time_in_turn(functions, budget_s, sample=sample)
    return max(operations[name] / timing.median_s for name, timing in timings.items())


def _affordable_size(size: int, dtype: torch.dtype, device: torch.device | str, sample: Sampler) -> int:
    """The size, halved until a matrix product does not take too long, by the time of a small one."""
    if size <= _SMALLEST_MATRIX:
        return size
    product = _matrix_product(_SMALLEST_MATRIX, dtype, device)
    product()
    small_s = sample(product, 1)
    while size > _SMALLEST_MATRIX and small_s * (size / _SMALLEST_MATRIX) ** 3 > _LONGEST_PRODUCT_S:
        size = max(size // 2, _SMALLEST_MATRIX)
    return size


def _matrix_product(size: int, dtype: torch.dtype, device: torch.device | str) -> Callable[[], object]:
    """A product of square matrices, the second transposed in memory, as the weights of linear layers are."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b.t()


def _convolution(channels: int, side: int, dtype: torch.dtype) -> Callable[[], object]:
    """A 3x3 convolution that keeps channels and size, on one square channels_last map."""
    x, weight = (
        torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)
        for shape in ((1, channels, side, side), (channels, channels, 3, 3))
    )
    return lambda: torch.nn.functional.conv2d(x, weight, padding=1)

"""Clocks of a device: events or wall clock, a cold cache, CUDA graphs, and the peak of its memory."""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from mobilevit_kernels.benchmark.timing import Sampler, seconds_per_call

Call = Callable[[], object]

_FLUSH_BYTES_CUDA = 256 << 20  # several times the level-2 cache of any GPU
_FLUSH_BYTES_CPU = 8 << 20
WARMUP_CALLS = 3

NO_GRAPHS = "CUDA graphs need a CUDA device"


@dataclass(frozen=True)
class Scoped:
    """A call, and the context it needs, which is entered outside of what is timed."""

    call: Call
    scope: Callable[[], AbstractContextManager[object]] = nullcontext

    def __call__(self) -> object:
        """One call inside its context."""
        with self.scope():
            return self.call()


class Refused(Exception):
    """A candidate cannot run here; the message says why."""


class Meter:
    """Measures on one device.

    Args:
        device: where the candidates run.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.is_cuda = device.type == "cuda"
        size = _FLUSH_BYTES_CUDA if self.is_cuda else _FLUSH_BYTES_CPU
        self._flush_buffer = torch.empty(size, dtype=torch.int8, device=device)

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def sampler(self, cold: bool) -> Sampler:
        """How a sample is taken: back-to-back calls, or each call after a flush of the cache."""
        return self._cold_sample if cold else self._hot_sample

    def _hot_sample(self, function: Call, calls: int) -> float:
        call, scope = _unwrapped(function)
        with scope():
            if not self.is_cuda:
                return seconds_per_call(call, calls)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(calls):
                call()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) * 1e-3 / calls

    def _cold_sample(self, function: Call, calls: int) -> float:
        call, scope = _unwrapped(function)
        with scope():
            return statistics.fmean(self._after_flush(call) for _ in range(calls))

    def _after_flush(self, call: Call) -> float:
        self._flush_buffer.zero_()
        if not self.is_cuda:
            start_s = time.perf_counter()
            call()
            return time.perf_counter() - start_s
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    def warm_up(self, function: Call, calls: int = WARMUP_CALLS) -> None:
        """Runs a candidate until it is compiled and its memory is cached."""
        for _ in range(calls):
            function()
        self.synchronize()

    def captured(self, function: Call) -> tuple[Call, object]:
        """Captures one call in a CUDA graph.

        Returns:
            What replays it, and the result that each replay writes again.

        Raises:
            Refused: the device has no CUDA graphs.
        """
        if not self.is_cuda:
            raise Refused(NO_GRAPHS)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_CALLS):
                function()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function()
        return graph.replay, result

    def reserved_bytes(self) -> int:
        """Bytes that torch holds now, its cache left out; 0 where the device does not count them."""
        self.release()
        return torch.cuda.memory_reserved(self.device) if self.is_cuda else 0

    def peak_bytes(self, function: Call, base_bytes: int) -> int | None:
        """Most bytes that torch holds during a call, above ``base_bytes``; None where the device does not count them.

        Reserved bytes, not those of tensors: a CUDA graph holds the memory of its intermediate results for itself.
        """
        if not self.is_cuda:
            return None
        self.release()
        torch.cuda.reset_peak_memory_stats(self.device)
        function()
        self.synchronize()
        return torch.cuda.max_memory_reserved(self.device) - base_bytes

    def release(self) -> None:
        """Gives cached memory back to the device."""
        if self.is_cuda:
            torch.cuda.empty_cache()

    def is_lost(self) -> bool:
        """Whether an error has made the device unusable for this process."""
        if not self.is_cuda:
            return False
        try:
            self.synchronize()
            torch.zeros(1, device=self.device).item()
        except RuntimeError:
            return True
        return False


def _unwrapped(function: Call) -> tuple[Call, Callable[[], AbstractContextManager[object]]]:
    return (function.call, function.scope) if isinstance(function, Scoped) else (function, nullcontext)

"""The runtimes besides eager PyTorch, by the name that chooses them, and each as a candidate."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from mobilevit_kernels import use_backend
from mobilevit_kernels.benchmark.candidates import Candidate, Problem, unchanged
from mobilevit_kernels.benchmark.compiled_engine import CompiledEngine
from mobilevit_kernels.benchmark.engine import Engine, Run
from mobilevit_kernels.benchmark.onnxruntime_engine import OnnxRuntimeEngine
from mobilevit_kernels.benchmark.openvino_engine import OpenVinoEngine

PEERS = ("compile", "onnxruntime", "openvino")
COMPILE_MODES = ("default", "max-autotune")


def engines(peers: Sequence[str], compile_modes: Sequence[str] = ("default",)) -> list[Engine]:
    """The engines of some of ``PEERS``; torch.compile once per mode."""
    chosen: list[Engine] = []
    if "compile" in peers:
        chosen += [CompiledEngine(mode) for mode in compile_modes]
    if "onnxruntime" in peers:
        chosen.append(OnnxRuntimeEngine())
    if "openvino" in peers:
        chosen.append(OpenVinoEngine())
    return chosen


def engine_candidate(
    engine: Engine,
    network: nn.Module,
    inputs: Tensor,
    dtype: torch.dtype,
    backend: str | None = None,
    to_map: Callable[[Tensor], Tensor] = unchanged,
) -> Candidate:
    """An engine as a candidate: it follows torch's thread count, and is built on the first call at each.

    Args:
        engine: who computes.
        network: as in :meth:`Engine.prepare`.
        inputs: likewise.
        dtype: likewise.
        backend: the backend of this package that makes ``network`` plain PyTorch; None where it is that already.
        to_map: brings the output to the problem's layout.
    """

    @lru_cache(maxsize=1)
    def converted() -> Callable[[int], Run]:
        return engine.prepare(network, inputs, dtype)

    # One build at a time is held: the threads of another would be idle, but its weights would not be free.
    @lru_cache(maxsize=1)
    def built(threads: int) -> Run:
        return converted()(threads)

    def call() -> Tensor:
        if backend is None:
            return built(torch.get_num_threads())()
        with use_backend(backend):
            return built(torch.get_num_threads())()

    return Candidate(engine.name, call, (), torch.empty(0), to_map)


def with_engines(
    problem: Problem,
    engines: Sequence[Engine],
    network: nn.Module,
    inputs: Tensor,
    dtype: torch.dtype,
    backend: str | None = None,
    to_map: Callable[[Tensor], Tensor] = unchanged,
) -> Problem:
    """The problem with engines as further peers, or the reason of each that is absent.

    Args:
        problem: what they solve too.
        engines: whom to add.
        network, inputs, dtype, backend, to_map: as in :func:`engine_candidate`.
    """
    reasons = {engine.name: engine.absence(dtype) for engine in engines}
    present = [engine for engine in engines if reasons[engine.name] is None]
    return problem.with_runtimes(
        [engine_candidate(engine, network, inputs, dtype, backend, to_map) for engine in present],
        {name: reason for name, reason in reasons.items() if reason is not None},
    )

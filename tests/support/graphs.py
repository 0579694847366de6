"""CUDA graphs for tests, and what stands in for them where there are none."""

from collections.abc import Callable
from typing import Any

import torch

_WARMUP_CALLS = 3


def captured(function: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """Captures a call in a CUDA graph; off CUDA a replay calls the function again and copies its results.

    Args:
        function: returns a list of tensors, and always works on the same inputs.
        device: where it runs.

    Returns:
        What replays the call, and the results that every replay overwrites.
    """
    if device.type != "cuda":
        results = function()

        def again() -> None:
            for result, fresh in zip(results, function(), strict=True):
                result.copy_(fresh)

        return again, results
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARMUP_CALLS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph.replay, results

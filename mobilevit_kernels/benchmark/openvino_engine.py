"""OpenVINO as an engine."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mobilevit_kernels.benchmark.engine import Run, Unavailable, missing_packages

_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OpenVinoEngine:
    """OpenVINO's CPU plugin, one stream for the lowest latency, in float32 or with its bfloat16 hint."""

    name = "OpenVINO"

    def absence(self, dtype: torch.dtype) -> str | None:
        """Returns which package is missing, or that it has no such precision."""
        missing = missing_packages("openvino")
        if missing is None and dtype not in _HINTS:
            return f"no precision hint for {dtype}"
        return missing

    def prepare(self, network: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Callable[[int], Run]:
        """As :meth:`Engine.prepare`.

        Raises:
            Unavailable: when built, where the plugin declines the precision or the number of threads.
        """
        import openvino

        inputs = inputs.float().contiguous()
        return partial(_build, openvino.Core(), convert_network(network, inputs), inputs, _HINTS[dtype])


def convert_network(network: nn.Module, inputs: Tensor) -> Any:
    """A float32 network in eval mode as an ``openvino.Model`` for inputs of this size."""
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants: on purpose, they are static
        return openvino.convert_model(network, example_input=inputs, input=[list(inputs.shape)])


def _build(core: Any, model: Any, inputs: Tensor, hint: str, threads: int) -> Run:
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": hint,
    }
    compiled = core.compile_model(model, "CPU", options)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if precision != hint:
        raise Unavailable(f"{hint} is not supported on this processor: it would compute in {precision}")
    taken = compiled.get_property("INFERENCE_NUM_THREADS")
    if taken != threads:
        raise Unavailable(f"{threads} thread(s) were asked for, it takes {taken}")
    request = compiled.create_infer_request()
    array = inputs.numpy()
    return lambda: torch.from_numpy(request.infer([array], share_inputs=True, share_outputs=True)[0])

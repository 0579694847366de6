"""torch.compile as an engine: Inductor, channels_last, weights frozen into the program."""

import copy
import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from mobilevit_kernels.benchmark.autocast import autocast
from mobilevit_kernels.benchmark.engine import Run


class CompiledEngine:
    """torch.compile with freezing, under autocast in bfloat16.

    Args:
        mode: "default" or "max-autotune".
    """

    def __init__(self, mode: str):
        self.mode = mode

    @property
    def name(self) -> str:
        """How tables call it."""
        return "torch.compile" if self.mode == "default" else f"torch.compile {self.mode}"

    def absence(self, dtype: torch.dtype) -> str | None:
        """None: a missing C++ compiler shows when it is first called."""
        return None

    def prepare(self, network: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Callable[[int], Run]:
        """As :meth:`Engine.prepare`; Inductor writes the thread count into the code, so each has its own."""
        network = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return partial(self._build, network, inputs, dtype)

    def _build(self, network: nn.Module, inputs: Tensor, dtype: torch.dtype, threads: int) -> Run:
        # A module that no attribute of torch names before it is imported.
        inductor = importlib.import_module("torch._inductor.config")
        # fullgraph: where the limit of recompilations is reached, an error and not eager code in disguise.
        compiled = torch.compile(network, mode=self.mode, fullgraph=True, dynamic=False)

        def run() -> Tensor:
            with autocast("cpu", dtype):
                return compiled(inputs)

        with torch.no_grad(), inductor.patch(freezing=True):
            run()
        return run

"""The peers of an op besides eager PyTorch: torch.compile in both directions, other runtimes in inference."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bench import peers
from bench.shapes import StageShape
from mobilevit_kernels.benchmark.candidates import INFERENCE, Candidate, Problem
from mobilevit_kernels.benchmark.compiled_engine import CompiledEngine
from mobilevit_kernels.benchmark.engine import Engine
from mobilevit_kernels.benchmark.engines import with_engines

_INFERENCE_ONLY = "inference only"


class UnfoldSdpaFold(nn.Module):
    """``peers.unfold_sdpa_fold`` as a network.

    Args:
        num_heads: heads; divides C.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, qkv: Tensor) -> Tensor:
        """``[B, 3C, H, W]`` -> ``[B, C, H, W]``."""
        return peers.unfold_sdpa_fold(qkv, self.num_heads)


class SeparableLayer(nn.Module):
    """``peers.separable_layer`` as a network.

    Args:
        parameters: weight and bias of the input projection, then of the output projection; copied in float32.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(parameter.detach().float() for parameter in parameters)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, C, P, N]`` -> ``[B, C, P, N]``."""
        return peers.separable_layer(tokens, *self.weights)


def with_op_engines(
    problem: Problem, shape: StageShape, dtype: torch.dtype, direction: str, engines: Sequence[Engine]
) -> Problem:
    """The problem of an op with engines as further peers, on the inputs and weights of its eager NHWC peer.

    Args:
        problem: of ``stage_problem``.
        shape: the stage.
        dtype: of the inputs.
        direction: "forward", or "forward+backward", which only torch.compile can.
        engines: whom to add.
    """
    eager = next(peer for peer in problem.peers if peer.name.endswith("NHWC"))
    if direction not in INFERENCE:
        compilers = [engine for engine in engines if isinstance(engine, CompiledEngine)]
        others = [engine.name for engine in engines if not isinstance(engine, CompiledEngine)]
        return problem.with_runtimes(
            [_compiled(eager, engine) for engine in compilers], dict.fromkeys(others, _INFERENCE_ONLY)
        )
    inputs, *parameters = eager.leaves
    network = SeparableLayer(parameters) if parameters else UnfoldSdpaFold(shape.num_heads)
    return with_engines(problem, engines, network.eval(), inputs.detach(), dtype, to_map=eager.to_map)


def _compiled(eager: Candidate, engine: CompiledEngine) -> Candidate:
    call = torch.compile(eager.call, mode=engine.mode, fullgraph=True, dynamic=False)
    return replace(eager, name=engine.name, call=call)

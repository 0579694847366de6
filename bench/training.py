"""Training steps of whole models: forward, cross entropy, backward, AdamW; ours, eager and torch.compile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from bench.model_steps import TrainingStep, Variant
from mobilevit_kernels.benchmark.autocast import call_under_autocast
from mobilevit_kernels.benchmark.candidates import OURS, Candidate, Problem
from mobilevit_kernels.benchmark.compiled_engine import CompiledEngine
from mobilevit_kernels.benchmark.engine import Engine
from mobilevit_kernels.benchmark.inference import model_flops
from mobilevit_kernels.benchmark.networks import (
    Networks,
    make_networks,
    network_problem,
    parameters_by_name,
    place_network,
    run_network,
    with_layout_names,
)

TRAINING_STEP = "training step"


@dataclass(frozen=True)
class SteppedCandidate(Candidate):
    """A candidate whose gradients are checked and whose whole training step is timed.

    Attributes:
        make_step: builds the step, with a network and an optimizer of its own.
    """

    make_step: Callable[[], Callable[[], Tensor]] = field(kw_only=True)

    def runner(self, direction: str) -> Callable[[], object]:
        """A fresh step, for the present thread count."""
        return self.make_step()


def training_problem(
    name: str, batch: int, dtype: torch.dtype, image_side: int, engines: Sequence[Engine] = ()
) -> Problem:
    """Training of one model on random images with random weights, the same for every candidate.

    Args:
        name: a name of ``list_models()``.
        batch: images.
        dtype: of autocast; float32 computes without.
        image_side: height and width of the images in pixels.
        engines: those of torch.compile become peers; the others only infer.
    """
    networks = make_networks(name)
    images = torch.rand(batch, 3, image_side, image_side)
    autocast = dtype != torch.float32
    problem = with_layout_names(network_problem(networks, images, dtype, TRAINING_STEP, autocast))

    def stepped(candidate: Candidate, how: str = "eager", mode: str = "default") -> SteppedCandidate:
        ours = candidate.name == OURS
        layout = torch.contiguous_format if candidate.name.endswith("NCHW") else torch.channels_last
        variant = Variant(
            candidate.name,
            networks.ours if ours else networks.plain,
            None if ours else networks.plain_backend,
            layout,
            how,
        )
        return SteppedCandidate(
            candidate.name,
            candidate.call,
            candidate.leaves,
            candidate.grad_out,
            make_step=partial(TrainingStep, variant, images, dtype, mode),
        )

    compilers = [engine for engine in engines if isinstance(engine, CompiledEngine)]
    compiled = [
        stepped(_compiled(networks, images, dtype, problem, engine), "compile", engine.mode)
        for engine in compilers
    ]
    others = [engine.name for engine in engines if not isinstance(engine, CompiledEngine)]
    flops = model_flops(networks, images)
    eager = replace(
        problem,
        ours=stepped(problem.ours),
        peers=tuple(stepped(peer) for peer in problem.peers),
        forward_flops=flops,
        backward_flops=2 * flops,
    )
    return eager.with_runtimes(compiled, dict.fromkeys(others, "inference only"))


def _compiled(
    networks: Networks, images: Tensor, dtype: torch.dtype, problem: Problem, engine: CompiledEngine
) -> Candidate:
    """The plain network compiled, for the check of its gradients."""
    network = place_network(networks.plain, images.device, torch.channels_last).train()
    leaves = tuple(parameters_by_name(network).values())
    forward = torch.compile(network, mode=engine.mode, fullgraph=True, dynamic=False)
    inputs = images.contiguous(memory_format=torch.channels_last)
    call = partial(run_network, forward, inputs, networks.plain_backend)
    grad_out = problem.peers[0].grad_out
    return Candidate(engine.name, partial(call_under_autocast, call, "cpu", dtype), leaves, grad_out)

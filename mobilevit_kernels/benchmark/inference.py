"""Inference of a whole model: ours at its fastest, plain PyTorch, and other runtimes on the same weights."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mobilevit_kernels.benchmark.candidates import OURS, Candidate, Problem
from mobilevit_kernels.benchmark.engine import Engine
from mobilevit_kernels.benchmark.engines import with_engines
from mobilevit_kernels.benchmark.networks import (
    Networks,
    make_networks,
    network_problem,
    run_network,
    with_layout_names,
)
from mobilevit_kernels.models import SeparableAttention, optimize_for_inference


def inference_problem(
    name: str, batch: int, dtype: torch.dtype, image_side: int, engines: Sequence[Engine] = ()
) -> Problem:
    """One model on random images with random weights, the same for every candidate.

    Args:
        name: a name of ``list_models()``.
        batch: images.
        dtype: float32, or the half precision that every candidate mixes in its own way; images stay float32.
        image_side: height and width of the images in pixels.
        engines: peers besides eager PyTorch.
    """
    networks = make_networks(name)
    images = torch.rand(batch, 3, image_side, image_side)
    problem = network_problem(networks, images, dtype, "inference", autocast=dtype != torch.float32)
    problem = with_layout_names(problem)
    problem = replace(problem, forward_flops=model_flops(networks, images), backward_flops=None)
    problem = with_optimized(problem, networks.ours, images, dtype)
    return with_engines(
        problem, engines, networks.plain.eval(), images, dtype, backend=networks.plain_backend
    )


def with_optimized(problem: Problem, network: nn.Module, images: Tensor, dtype: torch.dtype) -> Problem:
    """The problem with ``optimize_for_inference(network)`` as ours, and eager ours beside it."""
    optimized = optimize_for_inference(network.eval(), dtype=dtype)
    call = partial(optimized, images.contiguous(memory_format=torch.channels_last))
    ours = Candidate(OURS, call, (), torch.empty(0))
    return replace(problem, ours=ours, also_ours=(replace(problem.ours, name=f"{OURS} eager"),))


def model_flops(networks: Networks, images: Tensor) -> float:
    """Operations that inference needs: convolutions and matrix products (a multiply-add is two).

    Counted on the reference ops, less the key projection of separable attention, which no token needs.
    """
    keys = 0.0

    def count_keys(layer: SeparableAttention, args: tuple[Tensor, ...]) -> None:
        nonlocal keys
        keys += 2.0 * args[0].numel() * args[0].shape[1]

    layers = [layer for layer in networks.ours.modules() if isinstance(layer, SeparableAttention)]
    hooks = [layer.register_forward_pre_hook(count_keys) for layer in layers]
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            run_network(networks.ours.eval(), images, "reference")
    finally:
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops() - keys

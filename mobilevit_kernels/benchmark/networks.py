"""The problems of whole models: ours, timm's (or ours on the reference ops), and the float64 truth."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from mobilevit_kernels import use_backend
from mobilevit_kernels.benchmark.autocast import call_under_autocast
from mobilevit_kernels.benchmark.candidates import INFERENCE, OURS, Candidate, Problem
from mobilevit_kernels.benchmark.timm_models import has_timm_model, timm_model
from mobilevit_kernels.models import create_model

# The peers of a problem after ``with_layout_names``.
LAYOUT_NAMES = ("eager NCHW", "eager NHWC")


def peer_names(name: str) -> tuple[str, str]:
    """The peers of a model, in NCHW and NHWC: timm's model, or ours on the reference ops where timm has none."""
    kind = "timm" if has_timm_model(name) else "reference ops"
    return f"{kind} NCHW", f"{kind} NHWC"


@dataclass(frozen=True)
class Networks:
    """Two networks with the same random weights, in training mode on the CPU.

    Attributes:
        name: the model's name.
        ours: this package's.
        plain: timm's, or ours where timm has none.
        plain_backend: the backend that makes ``plain`` plain PyTorch; None where it is timm's.
    """

    name: str
    ours: nn.Module
    plain: nn.Module
    plain_backend: str | None


def make_networks(name: str) -> Networks:
    """Ours and plain PyTorch's model of a name of ``list_models()``."""
    torch.manual_seed(0)
    model = create_model(name)
    randomize_batch_norms(model)
    if has_timm_model(name):
        return Networks(name, model, timm_model(name, model.state_dict()), None)
    return Networks(name, model, model, "reference")


def model_problem(name: str, batch: int, dtype: torch.dtype, direction: str, image_side: int) -> Problem:
    """One model on random images with random weights, the same for every candidate.

    Args:
        name: a name of ``list_models()``.
        batch: images.
        dtype: of the weights and the images.
        direction: as in :func:`network_problem`.
        image_side: height and width of the images in pixels.
    """
    networks = make_networks(name)
    return network_problem(networks, torch.rand(batch, 3, image_side, image_side), dtype, direction)


def network_problem(
    networks: Networks, images: Tensor, dtype: torch.dtype, direction: str, autocast: bool = False
) -> Problem:
    """Ours and plain PyTorch on these images.

    Args:
        networks: who computes.
        images: ``[B, 3, H, W]`` float32, on the device to compute on.
        dtype: of the weights and the images, or of autocast.
        direction: one of ``INFERENCE`` runs in eval mode, any other in training mode with gradients of all parameters.
        autocast: keeps weights and images in float32 and computes under ``torch.autocast``.
    """
    training = direction not in INFERENCE
    stored = torch.float32 if autocast else dtype
    nchw, nhwc = peer_names(networks.name)
    with torch.no_grad():
        grad_out = torch.randn(images.shape[0], 1000, device=images.device).to(dtype)

    def candidate(
        label: str, network: nn.Module, layout: torch.memory_format, backend: str | None, to: torch.dtype
    ) -> Candidate:
        is_truth = to == torch.float64
        network = place_network(network, images.device, layout).to(stored).to(to).train(training)
        call = partial(run_network, network, images.to(stored).to(to, memory_format=layout), backend)
        if autocast and not is_truth:
            call = partial(call_under_autocast, call, images.device.type, dtype)
        grad = grad_out.to(to) if is_truth else grad_out
        return Candidate(label, call, tuple(parameters_by_name(network).values()), grad)

    plain, backend = networks.plain, networks.plain_backend
    return Problem(
        quantities=("logits", *("gradients" for _ in parameters_by_name(networks.ours))),
        ours=candidate(OURS, networks.ours, torch.channels_last, None, stored),
        peers=(
            candidate(nchw, plain, torch.contiguous_format, backend, stored),
            candidate(nhwc, plain, torch.channels_last, backend, stored),
        ),
        truth=candidate("truth", plain, torch.contiguous_format, backend, torch.float64),
    )


def with_layout_names(problem: Problem) -> Problem:
    """The problem with its peers named by memory format alone, so that models with and without timm share a column."""
    renamed = [replace(peer, name=name) for peer, name in zip(problem.peers, LAYOUT_NAMES, strict=True)]
    return replace(problem, peers=tuple(renamed))


def place_network(network: nn.Module, device: torch.device, layout: torch.memory_format) -> nn.Module:
    """A copy of a network on a device, its weights in a memory format."""
    return copy.deepcopy(network).to(device).to(memory_format=layout)  # type: ignore[call-overload]


def parameters_by_name(network: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, sorted: two models with the same names then agree in order."""
    return dict(sorted(network.named_parameters()))


def run_network(network: Callable[[Tensor], Tensor], images: Tensor, backend: str | None) -> Tensor:
    """``network(images)``, on a backend of this package where one is named."""
    if backend is None:
        return network(images)
    with use_backend(backend):
        return network(images)


def randomize_batch_norms(model: nn.Module) -> None:
    """Gives every BatchNorm the statistics and the scale of a trained one instead of 0 and 1."""
    for key, tensor in model.state_dict().items():
        if key.endswith("running_mean"):
            nn.init.normal_(tensor, std=0.1)
        elif key.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 1.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)

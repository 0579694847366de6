"""The problems of whole models: ours, timm's (or ours on the reference ops), and the float64 truth."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench import peers
from bench.problems import OURS, Candidate, Problem
from mobilevit_kernels import use_backend
from mobilevit_kernels.models import create_model


def peer_names(name: str) -> tuple[str, str]:
    """The peers of a model, in NCHW and NHWC: timm's model, or ours on the reference ops where timm has none."""
    kind = "timm" if peers.has_timm_model(name) else "reference ops"
    return f"{kind} NCHW", f"{kind} NHWC"


def model_problem(name: str, batch: int, dtype: torch.dtype, direction: str, image_side: int) -> Problem:
    """One model on random images with random weights, the same for every candidate.

    Args:
        name: a name of ``list_models()``.
        batch: images.
        dtype: of the weights and the images.
        direction: "forward" runs in eval mode; "forward+backward" in training mode, and takes the gradients of all
            parameters.
        image_side: height and width of the images in pixels.
    """
    torch.manual_seed(0)
    model = create_model(name)
    _randomize_batch_norms(model)
    images = torch.rand(batch, 3, image_side, image_side).to(dtype)
    training = direction != "forward"
    from_timm = peers.has_timm_model(name)
    plain = peers.timm_model(name, model.state_dict()) if from_timm else model
    backend = None if from_timm else "reference"
    nchw, nhwc = peer_names(name)
    with torch.no_grad():
        grad_out = torch.randn(batch, 1000)

    def candidate(
        label: str, network: nn.Module, layout: torch.memory_format, backend: str | None, to: torch.dtype
    ) -> Candidate:
        network = copy.deepcopy(network).to(dtype).to(to).train(training)
        network = network.to(memory_format=layout)  # type: ignore[call-overload]
        call = partial(_call, network, images.to(to, memory_format=layout), backend)
        return Candidate(label, call, tuple(_parameters(network).values()), grad_out.to(dtype).to(to))

    return Problem(
        quantities=("logits", *("gradients" for _ in _parameters(model))),
        ours=candidate(OURS, model, torch.channels_last, None, dtype),
        peers=(
            candidate(nchw, plain, torch.contiguous_format, backend, dtype),
            candidate(nhwc, plain, torch.channels_last, backend, dtype),
        ),
        truth=candidate("truth", plain, torch.contiguous_format, backend, torch.float64),
    )


def _parameters(network: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, sorted: two models with the same names then agree in order."""
    return dict(sorted(network.named_parameters()))


def _call(network: Callable[[Tensor], Tensor], images: Tensor, backend: str | None) -> Tensor:
    if backend is None:
        return network(images)
    with use_backend(backend):
        return network(images)


def _randomize_batch_norms(model: nn.Module) -> None:
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

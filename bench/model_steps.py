"""What a model is timed on: one inference or one training step under autocast, eager, captured or compiled."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_kernels.benchmark.autocast import autocast
from mobilevit_kernels.benchmark.candidates import OURS
from mobilevit_kernels.benchmark.networks import Networks, place_network, run_network

LAYOUTS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}


@dataclass(frozen=True)
class Variant:
    """One way to run a model.

    Attributes:
        name: how tables call it.
        network: ours or the plain one, on the CPU.
        backend: the backend of this package that makes it plain PyTorch; None leaves the choice.
        layout: memory format of weights and images.
        how: "eager", "graph" or "compile".
    """

    name: str
    network: nn.Module = field(repr=False)
    backend: str | None
    layout: torch.memory_format
    how: str

    @property
    def compiled(self) -> bool:
        """Whether the first call runs torch.compile."""
        return self.how == "compile"


def variants(networks: Networks, with_compile: bool) -> list[Variant]:
    """Ours and plain PyTorch: eager in both layouts, ours in a CUDA graph, both compiled."""
    plain = "timm" if networks.plain_backend is None else "reference ops"
    sides = [(OURS, networks.ours, None), (plain, networks.plain, networks.plain_backend)]
    ways = [("eager", layout) for layout in LAYOUTS] + [("graph", "NHWC")]
    if with_compile:
        ways += [("compile", layout) for layout in LAYOUTS]
    return [
        Variant(f"{side} {how} {layout}", network, backend, LAYOUTS[layout], how)
        for how, layout in ways
        for side, network, backend in sides
        # Ours turns every map to channels_last itself: NCHW images are measured once.
        if (side, how, layout) != (OURS, "compile", "NCHW")
    ]


class Inference:
    """One forward pass under autocast, in eval mode, recording nothing.

    Args:
        variant: the network and how it runs.
        images: ``[B, 3, H, W]`` float32 on the device.
        dtype: the autocast dtype; float32 computes without autocast.
        compile_mode: mode of ``torch.compile``.
    """

    def __init__(self, variant: Variant, images: Tensor, dtype: torch.dtype, compile_mode: str):
        self._backend = variant.backend
        self._images = images.to(memory_format=variant.layout)
        self._dtype = dtype
        network = place_network(variant.network, images.device, variant.layout).eval()
        self._network = _maybe_compiled(network, variant, compile_mode)

    def __call__(self) -> Tensor:
        """Returns the logits ``[B, 1000]``."""
        with torch.inference_mode(), autocast(self._images.device.type, self._dtype):
            return run_network(self._network, self._images, self._backend)


class TrainingStep:
    """Forward under autocast, cross entropy, backward, AdamW; with float16 the loss is scaled.

    Args:
        variant: the network and how it runs.
        images: ``[B, 3, H, W]`` float32 on the device.
        dtype: the autocast dtype; float32 computes without autocast.
        compile_mode: mode of ``torch.compile``; the optimizer stays eager.
    """

    def __init__(self, variant: Variant, images: Tensor, dtype: torch.dtype, compile_mode: str):
        device = images.device.type
        self._backend = variant.backend
        self._images = images.to(memory_format=variant.layout)
        self._labels = torch.arange(images.shape[0], device=images.device) % 1000
        self._dtype = dtype
        network = place_network(variant.network, images.device, variant.layout).train()
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=1e-3, fused=True, capturable=variant.how == "graph"
        )
        self._scaler = torch.amp.GradScaler(device, init_scale=1024.0, enabled=dtype == torch.float16)
        self._network = _maybe_compiled(network, variant, compile_mode)
        self._starts_step = variant.compiled

    def __call__(self) -> Tensor:
        """Takes one step; returns the loss before it, a scalar."""
        if self._starts_step:
            torch.compiler.cudagraph_mark_step_begin()
        self._optimizer.zero_grad(set_to_none=True)
        with autocast(self._images.device.type, self._dtype):
            loss = F.cross_entropy(run_network(self._network, self._images, self._backend), self._labels)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach()


STEPS: dict[str, Callable[[Variant, Tensor, torch.dtype, str], Callable[[], Tensor]]] = {
    "inference": Inference,
    "training step": TrainingStep,
}


def _maybe_compiled(network: nn.Module, variant: Variant, mode: str) -> Callable[[Tensor], Tensor]:
    if not variant.compiled:
        return network
    return torch.compile(network, mode=mode, fullgraph=True, dynamic=False)

"""One model, one set of weights, two paths: how far apart their logits are and how long each takes."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mobilevit_kernels import explain_backends, use_backend
from mobilevit_kernels.backends import OPS
from mobilevit_kernels.cli.errors import UserError

TOLERANCE = 1e-4
WARMUP_RUNS = 2


@dataclass(frozen=True)
class Comparison:
    """Logits and times of the fused path and of the plain PyTorch path.

    Args:
        model_name: as shown.
        fused: logits ``[images, classes]`` of the fused path.
        plain: logits of the plain path, same shape.
        fused_seconds: one duration per timed run of one image.
        plain_seconds: likewise.
    """

    model_name: str
    fused: Tensor
    plain: Tensor
    fused_seconds: list[float]
    plain_seconds: list[float]

    @property
    def differences(self) -> Tensor:
        """``[images]``: the largest absolute difference of each image's logits."""
        return (self.fused - self.plain).abs().amax(dim=1)

    @property
    def largest_logit(self) -> float:
        """Largest absolute logit of the plain path."""
        return self.plain.abs().max().item()

    @property
    def relative_difference(self) -> float:
        """The largest difference over the largest logit; NaN where a logit is."""
        return self.differences.max().item() / self.largest_logit

    @property
    def passed(self) -> bool:
        """Whether the paths agree within the tolerance; NaN does not."""
        return self.relative_difference <= TOLERANCE

    @property
    def fused_ms(self) -> float:
        """Median milliseconds of the fused path."""
        return 1e3 * statistics.median(self.fused_seconds)

    @property
    def plain_ms(self) -> float:
        """Median milliseconds of the plain path."""
        return 1e3 * statistics.median(self.plain_seconds)

    @property
    def speedup(self) -> float:
        """How many times faster the fused path is."""
        return self.plain_ms / self.fused_ms


def fused_backend() -> str:
    """Returns the backend that "auto" takes for both ops in float32 on the CPU.

    Raises:
        UserError: it is the plain definition itself, so that there would be nothing to compare.
    """
    for op in OPS:
        reasons = explain_backends(op)
        name = next(name for name, reason in reasons.items() if reason is None)
        if name == "reference":
            why = "; ".join(f"{other}: {reason}" for other, reason in reasons.items() if reason)
            raise UserError(f"no fused backend can run {op} here ({why})")
    return name


def compare(model_name: str, model: nn.Module, images: Tensor, repeats: int) -> Comparison:
    """Runs both paths on every image, then times them in turn on the first.

    Args:
        model_name: as shown.
        model: in eval mode; its weights are moved to channels_last memory.
        images: ``[B, 3, H, W]``.
        repeats: timed runs of each path, after a warm-up.
    """
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = images.contiguous(memory_format=torch.channels_last)
    first = images[:1].contiguous(memory_format=torch.channels_last)
    seconds: dict[str, list[float]] = {"auto": [], "reference": []}
    with torch.inference_mode():
        logits = {backend: _run(model, images, backend) for backend in seconds}
        for turn in range(WARMUP_RUNS + repeats):
            for backend, durations in seconds.items():
                start = time.perf_counter()
                _run(model, first, backend)
                if turn >= WARMUP_RUNS:
                    durations.append(time.perf_counter() - start)
    return Comparison(model_name, logits["auto"], logits["reference"], seconds["auto"], seconds["reference"])


def _run(model: nn.Module, images: Tensor, backend: str) -> Tensor:
    with use_backend(backend):
        return model(images)


def randomize(model: nn.Module, images: Tensor, seed: int = 0) -> None:
    """Gives a model random weights under which every layer matters, in place; the result is in eval mode.

    Linear layers and convolutions keep the variance of their input, norms get random scales and shifts, and the
    BatchNorm statistics are those of the images, as after training. A wrong attention then shows in the logits.

    Args:
        model: any model of this package.
        images: ``[B, 3, H, W]`` that the BatchNorm statistics are taken from.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=fan_in**-0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
        else:
            continue
        if module.bias is not None:
            nn.init.normal_(module.bias, std=0.1, generator=generator)
    _measure_batch_norm(model, images)


def _measure_batch_norm(model: nn.Module, images: Tensor) -> None:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average, so that one pass sets the statistics
        norm.train()
    with torch.no_grad(), use_backend("reference"):
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()

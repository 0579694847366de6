"""Models on the GPU's kernels against float64 truth and the reference backend: logits, and training under AMP."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_kernels import accelerate, accelerated_modules, use_backend

pytestmark = pytest.mark.usefixtures("gpu_kernels")

NAMES = [
    "mobilevit_xxs",
    "mobilevit_s",
    "mobilevitv2_050",
    "mobilevitv2_100",
    "mobilevitv3_s",
    "mobilevitv3_100",
]
SMALL = ["mobilevit_xxs", "mobilevitv2_050", "mobilevitv3_xxs", "mobilevitv3_050"]
Make = Callable[[str], nn.Module]
Images = Callable[..., Tensor]
STEPS = 3


def logits(model: nn.Module, x: Tensor, dtype: torch.dtype, backend: str | None) -> Tensor:
    """Logits in float64, under autocast for a half; on a backend where one is named."""
    low = dtype != torch.float32
    with torch.no_grad(), torch.autocast(x.device.type, dtype if low else torch.bfloat16, enabled=low):
        if backend is None:
            return model(x).double()
        with use_backend(backend):
            return model(x).double()


def errors(truth: Tensor, *results: Tensor) -> list[float]:
    """Root of the mean square of the difference, over that of the truth."""
    return [((result - truth).norm() / truth.norm()).item() for result in results]


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("name", NAMES)
def test_logits(
    name: str, random_model: Make, images: Images, dtype: torch.dtype, channels_last: bool, small: bool
) -> None:
    model, x = random_model(name).eval(), images(2, 64 if small else 128)
    with torch.no_grad(), use_backend("reference"):
        truth = copy.deepcopy(model).double()(x.double())
    plain = logits(model, x, dtype, "reference")
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    ours, peer = errors(truth, logits(model, x, dtype, None), plain)
    assert ours <= 2 * peer + torch.finfo(dtype).eps


@pytest.mark.parametrize("size", [(97, 66), (33, 32)], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_sizes_that_no_patch_divides(
    name: str, size: tuple[int, int], random_model: Make, device: torch.device
) -> None:
    model = random_model(name).eval()
    x = torch.rand(1, 3, *size, device=device)
    expected = logits(model, x, torch.float32, "reference")
    torch.testing.assert_close(logits(model, x, torch.float32, None), expected, rtol=1e-3, atol=1e-3)


def train(model: nn.Module, x: Tensor, dtype: torch.dtype, backend: str | None) -> tuple[Tensor, Tensor]:
    """A few steps with gradient scaling; the last loss and the change of every parameter, in float64."""
    model = copy.deepcopy(model).train()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    low = dtype in (torch.float16, torch.bfloat16)
    scaler = torch.amp.GradScaler(x.device.type, init_scale=256.0, enabled=dtype == torch.float16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    labels = torch.arange(x.shape[0], device=x.device)
    with use_backend(backend) if backend else torch.enable_grad():
        for _ in range(STEPS):
            with torch.autocast(x.device.type, dtype if low else torch.bfloat16, enabled=low):
                loss = F.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    changes = [(new - old).flatten() for new, old in zip(model.parameters(), start, strict=True)]
    return loss.detach().double(), torch.cat(changes).detach().double()


@pytest.mark.parametrize("name", SMALL)
def test_training_steps_under_amp(name: str, random_model: Make, images: Images, dtype: torch.dtype) -> None:
    model, x = random_model(name), images(4)
    true_loss, true_change = train(copy.deepcopy(model).double(), x.double(), torch.float64, "reference")
    loss, change = train(model, x, dtype, None)
    plain_loss, plain_change = train(model, x, dtype, "reference")
    assert change.abs().max() > 0
    ours, peer = errors(true_change, change, plain_change)
    assert ours <= 3 * peer + torch.finfo(dtype).eps
    assert abs(loss - true_loss) <= 3 * abs(plain_loss - true_loss) + 16 * torch.finfo(dtype).eps * true_loss


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_accelerated_timm_model(name: str, images: Images, device: torch.device, dtype: torch.dtype) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = timm.create_model(name).to(device).eval()
    x = images(2)
    with torch.no_grad():
        truth = copy.deepcopy(theirs).double()(x.double())
    plain = logits(theirs, x, dtype, None)
    ours = accelerate(copy.deepcopy(theirs))
    assert accelerated_modules(ours)
    error, peer = errors(truth, logits(ours, x, dtype, None), plain)
    assert error <= 2 * peer + torch.finfo(dtype).eps

"""Training steps as users write them: compiled, scaled, in channels_last, with gradient checkpointing."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Random = Callable[..., nn.Module]
Same = Callable[..., None]
ALL = ["mobilevit_xxs", "mobilevitv2_050", "mobilevitv3_xxs", "mobilevitv3_050"]


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """No compiled code from, or for, another test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 64, 64)


LABELS = torch.tensor([0, 1, 2, 3])


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Steps in proportion to the gradient, so that errors of gradients are those of weights."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def weights(model: nn.Module) -> Tensor:
    return torch.cat(
        [value.detach().flatten() for value in model.state_dict().values() if value.is_floating_point()]
    )


def trained(model: nn.Module, images: Tensor, steps: int = 2, recompute: bool = False) -> Tensor:
    """Weights and statistics after a few plain steps on a copy."""
    model = copy.deepcopy(model).train()
    model.set_grad_checkpointing(recompute)
    optimizer = sgd(model)
    for _ in range(steps):
        F.cross_entropy(model(images), LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def compiled_training(model: nn.Module, images: Tensor, backend: str) -> Tensor:
    """The same, with the loss and the optimizer's step compiled, each as one graph."""
    model = copy.deepcopy(model).train()
    optimizer = sgd(model)
    loss_of = torch.compile(lambda x: F.cross_entropy(model(x), LABELS), fullgraph=True, backend=backend)
    update = torch.compile(optimizer.step, backend=backend)
    for _ in range(2):
        loss_of(images).backward()
        update()
        optimizer.zero_grad()
    return weights(model)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param("mobilevit_xxs", "aot_eager", marks=pytest.mark.slow),
        ("mobilevitv2_050", "aot_eager"),
        pytest.param("mobilevitv2_050", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_training(
    name: str, backend: str, random_model: Random, assert_same: Same, images: Tensor
) -> None:
    model = random_model(name, num_classes=5)
    expected = trained(model, images)
    assert (expected - weights(model)).abs().max() > 1e-2
    assert_same(compiled_training(model, images, backend) - weights(model), expected - weights(model), 2e-3)


@pytest.mark.parametrize("name", ALL)
def test_gradient_checkpointing_changes_no_weight(
    name: str, random_model: Random, assert_same: Same, images: Tensor
) -> None:
    """BatchNorm's running statistics apart, which are updated in both passes: its momentum is 0 here."""
    model = random_model(name, num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
            module.register_buffer("num_batches_tracked", None)
    assert_same(trained(model, images, recompute=True), trained(model, images), 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_channels_last_training(
    name: str, random_model: Random, assert_same: Same, images: Tensor, backend: str
) -> None:
    """Same weights in the end, and gradients of convolutions in channels_last memory too.

    In float64, for BatchNorm over four images blows rounding up.
    """
    model, images = random_model(name, num_classes=5).double(), images.double()
    expected = trained(model, images)
    model.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    assert_same(trained(model, images), expected, 1e-9)
    F.cross_entropy(model.train()(images), LABELS).backward()
    spatial = [p for p in model.parameters() if p.dim() == 4 and p.shape[-1] > 1 and p.shape[1] > 1]
    assert spatial
    assert all(p.grad.is_contiguous(memory_format=torch.channels_last) for p in spatial)


def scaled_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, images: Tensor
) -> float:
    """One step under float16 autocast; returns the norm of the unscaled gradient."""
    with torch.autocast("cpu", torch.float16):
        loss = F.cross_entropy(model(images).float(), LABELS)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), torch.inf).item()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return norm


@pytest.mark.parametrize("name", ALL)
def test_scaled_gradients(name: str, random_model: Random, images: Tensor, backend: str) -> None:
    """Float16 with GradScaler: an overflow skips the step and halves the scale; else gradients have their true size."""
    model = random_model(name, num_classes=5).train()
    reference = copy.deepcopy(model)
    F.cross_entropy(reference(images), LABELS).backward()
    true_norm = nn.utils.clip_grad_norm_(reference.parameters(), torch.inf).item()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])

    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0**40)
    scaled_step(model, optimizer, scaler, images)
    assert scaler.get_scale() == 2.0**39
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), before)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    assert scaled_step(model, optimizer, scaler, images) == pytest.approx(true_norm, rel=0.1)
    assert scaler.get_scale() == 2.0**8
    assert not torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), before)

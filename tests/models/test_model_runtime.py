"""Compilation, export, copies, autocast, gradient checkpointing."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mobilevit_kernels.models import create_model

SMALL = ["mobilevit_xxs", "mobilevitv2_050"]
ALL = [*SMALL, "mobilevitv3_xxs", "mobilevitv3_050"]
Random = Callable[..., nn.Module]


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """No compiled code from, or for, another test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(
    model: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Output, and the gradients of every parameter."""
    out = function(x)
    return out, list(torch.autograd.grad(out.square().sum(), list(model.parameters())))


def check_compiled(model: nn.Module, same: Callable[..., None]) -> None:
    """One graph, in evaluation and in training; the same output and gradients as without compilation."""
    compiled = torch.compile(model, fullgraph=True)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        same(compiled(x), model(x))
    model.train()
    state = copy.deepcopy(model.state_dict())
    out, grads = gradients(model, model, x)
    model.load_state_dict(state)
    compiled_out, compiled_grads = gradients(model, compiled, x)
    same(compiled_out, out, 1e-3)
    same(torch.cat([g.flatten() for g in compiled_grads]), torch.cat([g.flatten() for g in grads]), 2e-3)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", ALL)
def test_traces_to_one_graph(name: str, random_model: Random, assert_same: Callable[..., None]) -> None:
    model = random_model(name, num_classes=10)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert_same(compiled(x), model(x))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", SMALL)
def test_compile(name: str, random_model: Random, assert_same: Callable[..., None]) -> None:
    check_compiled(random_model(name, num_classes=10), assert_same)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", ALL)
def test_compile_at_sizes_with_resizing(
    name: str, random_model: Random, assert_same: Callable[..., None]
) -> None:
    model = random_model(name, num_classes=10)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in ((64, 64), (97, 66), (50, 131)):
        x = torch.rand(1, 3, *size)
        with torch.no_grad():
            assert_same(compiled(x), model(x))


@pytest.mark.parametrize("name", ALL)
def test_export_with_any_batch(name: str, random_model: Random, assert_same: Callable[..., None]) -> None:
    model = random_model(name, num_classes=10)
    x = torch.rand(3, 3, 64, 64)
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: Dim("batch", min=1, max=64)},))
    for batch in (1, 3):
        assert_same(program.module()(x[:batch]), model(x[:batch]))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert_same(torch.export.load(file).module()(x), model(x))


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_copies(name: str, features_only: bool, random_model: Random) -> None:
    """deepcopy, pickle and torch.save give independent models with equal outputs."""
    model = random_model(name, features_only=features_only)
    x = torch.rand(1, 3, 64, 64)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ]
    outputs = [duplicate(x) for duplicate in copies]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for duplicate, out in zip(copies, outputs, strict=True):
        torch.testing.assert_close(duplicate(x), out, rtol=0, atol=0)
    assert all(str(duplicate) == str(model) for duplicate in copies)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_autocast(name: str, dtype: torch.dtype, random_model: Random, backend: str) -> None:
    """Logits near those of float32, in evaluation and training; gradients in the parameters' dtype."""
    model = random_model(name, num_classes=10)
    x = torch.rand(2, 3, 64, 64)
    expected = model(x)
    with torch.autocast("cpu", dtype):
        out = model(x)
    assert out.dtype == dtype
    assert (out.float() - expected).abs().max() <= 0.1 * expected.abs().max()
    with torch.autocast("cpu", dtype):
        loss = model.train()(x).float().square().mean()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", SMALL)
def test_other_dtypes(name: str, dtype: torch.dtype, random_model: Random, backend: str) -> None:
    model = random_model(name, num_classes=10)
    x = torch.rand(1, 3, 64, 70)
    expected = model(x).double()
    out = copy.deepcopy(model).to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    tolerance = 0.15 if dtype == torch.bfloat16 else 1e-4
    assert (out.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_gradient_checkpointing(name: str, features_only: bool, random_model: Random, backend: str) -> None:
    """Same outputs and gradients, with fewer saved activations."""
    model = random_model(name, features_only=features_only).train()
    x = torch.rand(2, 3, 64, 64)
    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        saved: list[int] = []

        def pack(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(x)
        out = sum(m.square().mean() for m in out) if features_only else out.square().mean()
        count = sum(saved)
        results.append((out, torch.autograd.grad(out, list(model.parameters())), count))
    (plain, plain_grads, plain_saved), (checked, checked_grads, checked_saved) = results
    torch.testing.assert_close(checked, plain)
    for actual, expected in zip(checked_grads, plain_grads, strict=True):
        torch.testing.assert_close(actual, expected)
    assert checked_saved < 0.5 * plain_saved


@pytest.mark.parametrize("name", ALL)
def test_fresh_model_learns(name: str) -> None:
    """A few steps from the initial weights fit four random images."""
    model = create_model(name, num_classes=4)
    x, labels = torch.rand(4, 3, 64, 64), torch.arange(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.log(torch.tensor(4.0)).item(), abs=0.3)
    assert losses[-1] < 0.3 * losses[0]

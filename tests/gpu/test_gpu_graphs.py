"""CUDA graphs: a captured call computes the same on new inputs, forward, backward, and in a training step."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import captured
from op_checks import assert_same_bits, everything
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("gpu_kernels")

Builder = Callable[..., Any]
NAMES = ["mobilevit_xxs", "mobilevitv2_050"]


def test_forward(op: str, make_problem: Builder, dtype: torch.dtype, device: torch.device) -> None:
    problem = make_problem(op, dtype=dtype, grid=(4, 4))
    replay, (out,) = captured(lambda: [problem.fused()], device)
    for _ in range(2):
        problem.tensors[0].normal_()
        replay()
        assert_same_bits([out], [problem.fused()])


def test_forward_and_backward(
    op: str, make_problem: Builder, dtype: torch.dtype, device: torch.device
) -> None:
    problem = make_problem(op, dtype=dtype, grid=(4, 4)).leaves()

    def run() -> list[Tensor]:
        out = problem.fused()
        present = [tensor for tensor in problem.tensors if tensor is not None]
        return [out.detach(), *torch.autograd.grad(out, present, grad_out)]

    grad_out = torch.linspace(-1, 1, problem.fused().numel(), dtype=dtype, device=device)
    grad_out = grad_out.reshape(problem.fused().shape)
    replay, results = captured(run, device)
    for _ in range(2):
        problem.tensors[0].data.normal_()
        replay()
        assert_same_bits(results, everything(problem))


@pytest.mark.parametrize("name", NAMES)
def test_inference(
    name: str, random_model: Callable[[str], nn.Module], images: Callable[..., Tensor], device: torch.device
) -> None:
    model, x = random_model(name).eval(), images(2)

    def run() -> list[Tensor]:
        with torch.no_grad(), torch.autocast(device.type, torch.float16):
            return [model(x)]

    replay, (logits,) = captured(run, device)
    for _ in range(2):
        x.uniform_()
        replay()
        torch.testing.assert_close(logits, run()[0])


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> Tensor:
    """One step of plain SGD under autocast; the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, torch.float16):
        loss = F.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("name", NAMES)
def test_training_step(
    name: str, random_model: Callable[[str], nn.Module], images: Callable[..., Tensor], device: torch.device
) -> None:
    model, x = random_model(name).train(), images(4)
    labels = torch.arange(4, device=device)
    eager = copy.deepcopy(model)
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    replay, (loss,) = captured(lambda: [training_step(model, optimizer, x, labels)], device)
    model.load_state_dict(start)
    eager_optimizer = torch.optim.SGD(eager.parameters(), lr=1e-2)
    for _ in range(3):
        x.uniform_()
        replay()
        expected = training_step(eager, eager_optimizer, x, labels)
        torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-3)
    moved = [(one - start[key]).abs().max() for key, one in model.named_parameters()]
    assert all(distance > 0 for distance in moved)

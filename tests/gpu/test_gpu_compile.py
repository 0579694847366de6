"""torch.compile and AOTInductor through the GPU's kernels: one graph, two sizes, the same numbers."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from op_checks import Layer, outputs_and_gradients
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("gpu_kernels", "fresh_dynamo")

Builder = Callable[..., Any]
Make = Callable[[str], nn.Module]
SIZES = [(2, (4, 3)), (3, (2, 6))]  # the first has no two equal sizes: a compiler may tie those


@pytest.fixture
def compiler(small: bool) -> dict[str, str]:
    """What torch.compile is told: off the GPU its tracing alone, which is what the kernels meet."""
    return {"backend": "aot_eager"} if small else {"mode": "max-autotune"}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Largest difference at most ``tolerance`` times the largest expected value."""
    error = (actual - expected).abs().max().item()
    assert error <= tolerance * expected.abs().max().item()


def test_training_step_of_a_layer_at_two_sizes(
    op: str, make_problem: Builder, compiler: dict[str, str]
) -> None:
    layer = Layer(make_problem(op))
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, **compiler)
    for index, (batch, grid) in enumerate(SIZES):
        x = make_problem(op, batch=batch, grid=grid).tensors[0]
        expected = outputs_and_gradients(layer, layer, x)
        with torch._dynamo.config.patch(error_on_recompile=index > 0):
            actual = [result.clone() for result in outputs_and_gradients(compiled, layer, x)]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_inference_of_a_model_at_two_sizes(
    name: str, random_model: Make, images: Callable[..., Tensor], compiler: dict[str, str]
) -> None:
    model = random_model(name).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, **compiler)
    with torch.no_grad():
        for batch, side in ((2, 64), (3, 96)):
            x = images(batch, side)
            assert_near(compiled(x).clone(), model(x), 1e-3)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_training_step_of_a_model(
    name: str,
    random_model: Make,
    images: Callable[..., Tensor],
    compiler: dict[str, str],
    device: torch.device,
) -> None:
    model, x = random_model(name).train(), images(4)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, **compiler)
    results = []
    for network, function in ((twin, twin), (model, compiled)):
        with torch.autocast(device.type, torch.float16):
            out = function(x)
        loss = out.float().square().mean()
        grads = torch.autograd.grad(loss, list(network.parameters()))
        results.append((loss.detach().clone(), torch.cat([grad.flatten() for grad in grads])))
    (loss, grads), (compiled_loss, compiled_grads) = results
    torch.testing.assert_close(compiled_loss, loss, rtol=0.05, atol=1e-4)
    assert (compiled_grads - grads).norm() <= 0.1 * grads.norm()


@pytest.mark.parametrize("name", ["mobilevit_s", "mobilevitv2_100"])
def test_aot_inductor_package(
    name: str, random_model: Make, images: Callable[..., Tensor], small: bool, tmp_path: Path
) -> None:
    if small:
        name = {"mobilevit_s": "mobilevit_xxs", "mobilevitv2_100": "mobilevitv2_050"}[name]
    model, x = random_model(name).eval(), images(2)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (x,))
        assert any(str(node.target).startswith("mobilevit.") for node in program.graph.nodes)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        loaded = torch._inductor.aoti_load_package(package)
        assert_near(loaded(x), model(x), 1e-3)
        x = images(2)
        assert_near(loaded(x), model(x), 1e-3)

"""torch.compile and torch.export: one graph for every batch and size, same results, the op kept whole."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from op_checks import Layer, outputs_and_gradients
from torch import Tensor
from torch.export import Dim

import mobilevit_kernels

pytestmark = pytest.mark.usefixtures("kernels")
Builder = Callable[..., Any]
SIZES = [(2, (4, 3)), (3, (2, 6)), (5, (3, 3))]  # the first has no two equal sizes: a compiler may tie those


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """No compiled code from, or for, another test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_compiled(op: str, make_problem: Builder, backend: str, dtype: torch.dtype = torch.float32) -> None:
    """Compiles once, runs every size, compares with eager."""
    layer = Layer(make_problem(op, dtype=dtype))
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for index, (batch, grid) in enumerate(SIZES):
        x = make_problem(op, batch=batch, grid=grid, dtype=dtype).tensors[0]
        expected = outputs_and_gradients(layer, layer, x)
        with torch._dynamo.config.patch(error_on_recompile=index > 0):
            actual = outputs_and_gradients(compiled, layer, x)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_compiled_training_step(op: str, make_problem: Builder) -> None:
    check_compiled(op, make_problem, "aot_eager")


@pytest.mark.slow
def test_compiled_training_step_with_inductor(op: str, make_problem: Builder) -> None:
    check_compiled(op, make_problem, "inductor")


def test_compiled_inference_with_inductor(op: str, make_problem: Builder) -> None:
    layer = Layer(make_problem(op)).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch, grid in SIZES[:2]:
            for memory_format in (torch.channels_last, torch.contiguous_format):
                x = (
                    make_problem(op, batch=batch, grid=grid)
                    .tensors[0]
                    .contiguous(memory_format=memory_format)
                )
                torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)


def test_compiled_under_autocast(op: str, make_problem: Builder) -> None:
    problem = make_problem(op)
    layer = Layer(problem)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = layer(problem.tensors[0]), compiled(problem.tensors[0])
    assert expected.dtype == actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected)


def test_compiled_code_follows_the_chosen_backend(op: str, make_problem: Builder) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def capture(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    problem = make_problem(op)
    compiled = torch.compile(Layer(problem), fullgraph=True, backend=capture)
    for name in ("native", "reference", "auto"):
        with mobilevit_kernels.use_backend(name):
            compiled(problem.tensors[0])
    assert ["torch.ops.mobilevit" in str(graph.code) for graph in graphs] == [True, False, True]


def test_error_of_a_bad_size_survives_compilation(op: str, make_problem: Builder) -> None:
    problem = make_problem(op)
    compiled = torch.compile(Layer(problem), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="divisible by patch_size"):
        compiled(problem.tensors[0][:, :, :5])


@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
def test_export_with_dynamic_batch_and_size(op: str, make_problem: Builder, strict: bool) -> None:
    layer = Layer(make_problem(op)).eval()
    dynamic = {0: Dim("batch"), 2: 2 * Dim("rows", min=1), 3: 2 * Dim("columns", min=1)}
    example = make_problem(op, batch=2, grid=(4, 5)).tensors[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(layer, (example,), dynamic_shapes=({**dynamic},), strict=strict)
    targets = [str(node.target) for node in exported.graph.nodes]
    assert f"mobilevit.{op}.default" in targets
    for batch, grid in SIZES:
        x = make_problem(op, batch=batch, grid=grid).tensors[0]
        torch.testing.assert_close(exported.module()(x), layer(x))


def test_exported_program_survives_saving(op: str, make_problem: Builder, tmp_path: Any) -> None:
    problem = make_problem(op)
    layer = Layer(problem).eval()
    torch.export.save(torch.export.export(layer, (problem.tensors[0],)), tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    torch.testing.assert_close(loaded(problem.tensors[0]), layer(problem.tensors[0]))

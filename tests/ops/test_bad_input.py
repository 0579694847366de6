"""Bad input: one message per mistake, naming the argument, what was expected and what came, on every path."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mobilevit_kernels

Builder = Callable[..., Any]
Mutation = Callable[[list[Any], list[Any]], None]


def replaced(index: int, function: Callable[[Tensor], Any]) -> Mutation:
    """A mistake in one tensor."""

    def mutate(tensors: list[Any], args: list[Any]) -> None:
        tensors[index] = function(tensors[index])

    return mutate


def argument(index: int, value: Any) -> Mutation:
    """A mistake in one of the other arguments."""

    def mutate(tensors: list[Any], args: list[Any]) -> None:
        args[index] = value

    return mutate


def wrong_dtypes(name: str) -> dict[str, tuple[Mutation, type[Exception], str]]:
    """Maps of dtypes that attention is not defined for."""
    dtypes = (torch.int64, torch.int8, torch.bool, torch.complex64)
    return {
        f"{name} {dtype}": (
            replaced(0, lambda t, d=dtype: t.to(d)),
            TypeError,
            f"{name}: expected a floating-point dtype, got {dtype}",
        )
        for dtype in dtypes
    }


def wrong_maps(name: str, patch: int) -> dict[str, tuple[Mutation, type[Exception], str]]:
    """Mistakes that both ops can be given; ``patch`` is the position of patch_size."""
    four = f"{name}: expected 4 dimensions [B, C, H, W], got"
    divisible = f"{name}: H and W must be divisible by patch_size"
    positive = "patch_size: expected two positive ints, got"
    return {
        f"{name} 3-d": (replaced(0, lambda t: t[0]), ValueError, f"{four} 3"),
        f"{name} 5-d": (replaced(0, lambda t: t[None]), ValueError, f"{four} 5"),
        f"{name} 0-d": (replaced(0, lambda t: t.new_zeros(())), ValueError, f"{four} 0"),
        f"{name} rows": (replaced(0, lambda t: t[:, :, :5]), ValueError, f"{divisible} (2, 2), got 5 x 4"),
        f"{name} columns": (replaced(0, lambda t: t[..., :3]), ValueError, f"{divisible} (2, 2), got 6 x 3"),
        f"{name} patch too large": (argument(patch, (4, 2)), ValueError, f"{divisible} (4, 2), got 6 x 4"),
        f"{name} patch 0": (argument(patch, (0, 2)), ValueError, f"{positive} (0, 2)"),
        f"{name} patch negative": (argument(patch, (2, -2)), ValueError, f"{positive} (2, -2)"),
        **wrong_dtypes(name),
    }


CHANNELS = "qkv: channels must be 3 * num_heads * head_dim with num_heads"
ATTENTION = {
    **wrong_maps("qkv", patch=1),
    "qkv channels": (replaced(0, lambda t: t[:, :10]), ValueError, f"{CHANNELS}=2, got 10"),
    "qkv no channels": (replaced(0, lambda t: t[:, :0]), ValueError, f"{CHANNELS}=2, got 0"),
    "heads do not divide": (argument(0, 4), ValueError, f"{CHANNELS}=4, got 30"),
    "heads beyond channels": (argument(0, 1000), ValueError, f"{CHANNELS}=1000, got 30"),
    "heads 0": (argument(0, 0), ValueError, "num_heads: expected a positive int, got 0"),
    "heads negative": (argument(0, -2), ValueError, "num_heads: expected a positive int, got -2"),
}


def wrong_parameters() -> dict[str, tuple[Mutation, type[Exception], str]]:
    """Mistakes in the weights and biases of a layer with 10 channels."""
    cases: dict[str, tuple[Mutation, type[Exception], str]] = {}
    for index, (name, rows) in enumerate({"qkv_weight": 21, "out_weight": 10}.items()):
        slot, expected = 1 + 2 * index, f"{name}: expected [{rows}, 10] or [{rows}, 10, 1, 1], got"
        shapes = [(rows - 1, 10), (rows, 9, 1, 1), (rows, 10, 1), (rows, 10, 1, 2), (rows,), (10 * rows,)]
        for shape in shapes:
            cases[f"{name} {list(shape)}"] = (
                replaced(slot, lambda t, s=shape: torch.zeros(s)),
                ValueError,
                f"{expected} {list(shape)}",
            )
    for slot, name, size in ((2, "qkv_bias", 21), (4, "out_bias", 10)):
        for shape in ((size - 1,), (size, 1), (1, size), ()):
            cases[f"{name} {list(shape)}"] = (
                replaced(slot, lambda t, s=shape: torch.zeros(s)),
                ValueError,
                f"{name}: expected [{size}], got {list(shape)}",
            )
    for slot, name in enumerate(("qkv_weight", "qkv_bias", "out_weight", "out_bias"), start=1):
        for dtype in (torch.float64, torch.bfloat16, torch.int64):
            cases[f"{name} {dtype}"] = (
                replaced(slot, lambda t, d=dtype: t.to(d)),
                TypeError,
                f"{name}: expected torch.float32 as x has, got {dtype}",
            )
    return cases


SEPARABLE = {
    **wrong_maps("x", patch=0),
    **wrong_parameters(),
    "x no channels": (
        replaced(0, lambda t: t[:, :0]),
        ValueError,
        "x: expected at least one channel, got 0",
    ),
    "x fewer channels": (
        replaced(0, lambda t: t[:, :9]),
        ValueError,
        "qkv_weight: expected [19, 9] or [19, 9, 1, 1], got [21, 10, 1, 1]",
    ),
}
CASES = [
    pytest.param(op, *case, id=f"{op}-{name}")
    for op, cases in {"unfold_attn_fold": ATTENTION, "separable_attn": SEPARABLE}.items()
    for name, case in cases.items()
]


def under(backend: str) -> Callable[[Any], Any]:
    """The public function on a backend."""

    def run(problem: Any) -> Any:
        with mobilevit_kernels.use_backend(backend):
            return problem.fused()

    return run


PATHS: dict[str, Callable[[Any], Any]] = {
    "operator": lambda problem: problem.raw(),
    "operator in training": lambda problem: problem.map_tensors(
        lambda t: t.requires_grad_() if t.is_floating_point() else t
    ).raw(),
    "forward operator": lambda problem: problem.call(getattr(torch.ops.mobilevit, f"{problem.op}_forward")),
    "native": under("native"),
    "auto": under("auto"),
    "reference": under("reference"),
    "meta": lambda problem: problem.map_tensors(lambda t: t.to("meta")).raw(),
}


def broken(make_problem: Builder, op: str, mutate: Mutation) -> Any:
    """A good problem with one mistake."""
    problem = make_problem(op)
    tensors, args = list(problem.tensors), list(problem.args)
    mutate(tensors, args)
    return type(problem)(op, tuple(tensors), tuple(args))


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize(("case_op", "mutate", "error", "message"), CASES)
def test_message(
    make_problem: Builder,
    case_op: str,
    mutate: Mutation,
    error: type[Exception],
    message: str,
    path: str,
) -> None:
    with pytest.raises(error) as caught:
        PATHS[path](broken(make_problem, case_op, mutate))
    assert str(caught.value) == message


MIXED = [(path, "cpu", "meta") for path in ("operator", "forward operator", "native", "auto", "reference")]
MIXED += [
    (path, here, there) for path, there, here in MIXED if path != "native"
]  # native takes no meta tensor


@pytest.mark.parametrize("slot", [1, 2, 3, 4], ids=["qkv_weight", "qkv_bias", "out_weight", "out_bias"])
@pytest.mark.parametrize(("path", "here", "there"), MIXED)
def test_mixed_devices(make_problem: Builder, path: str, here: str, there: str, slot: int) -> None:
    problem = make_problem("separable_attn")
    tensors = [t.to(there if index == slot else here) for index, t in enumerate(problem.tensors)]
    name = ("qkv_weight", "qkv_bias", "out_weight", "out_bias")[slot - 1]
    with pytest.raises(ValueError, match=f"^{name}: expected device {here} as x has, got {there}$"):
        PATHS[path](type(problem)(problem.op, tuple(tensors), problem.args))


@pytest.mark.parametrize(
    ("path", "patch"),
    [(path, patch) for path in PATHS for patch in ([2], [2, 2, 2])]
    + [(path, []) for path in ("native", "auto", "reference", "meta")],
    ids=str,
)
def test_patch_size_of_another_length(op: str, make_problem: Builder, path: str, patch: list[int]) -> None:
    position = make_problem(op).args.index((2, 2))
    problem = broken(make_problem, op, argument(position, patch))
    with pytest.raises(ValueError, match="^patch_size: expected "):
        PATHS[path](problem)


def test_empty_patch_size_does_not_end_the_process(op: str) -> None:
    arguments = (
        "x, 1, []" if op == "unfold_attn_fold" else "x, torch.ones(13, 6), None, torch.ones(6, 6), None, []"
    )
    script = (
        f"import torch, mobilevit_kernels; x = torch.ones(1, 6, 4, 4); torch.ops.mobilevit.{op}({arguments})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "ValueError: patch_size: expected " in done.stderr


@pytest.mark.parametrize("backend_name", ["native", "reference"])
@pytest.mark.parametrize("patch", [None, 2.5, (2.0, 2.0), "22"], ids=str)
def test_patch_size_of_another_type(op: str, make_problem: Builder, backend_name: str, patch: Any) -> None:
    position = make_problem(op).args.index((2, 2))
    with pytest.raises(TypeError, match="^patch_size: expected "):
        under(backend_name)(broken(make_problem, op, argument(position, patch)))


def test_a_failed_call_leaves_the_inputs_and_the_op_as_they_were(op: str, make_problem: Builder) -> None:
    problem = make_problem(op)
    before = problem.fused()
    copies = [tensor.clone() for tensor in problem.tensors]
    with pytest.raises(ValueError, match="divisible"):
        problem.with_first(problem.tensors[0][:, :, 1:]).fused()
    for tensor, copy in zip(problem.tensors, copies, strict=True):
        assert torch.equal(tensor, copy)
    assert torch.equal(problem.fused(), before)

"""Which implementation runs an op: the choice, and the reason where one cannot be taken."""

import os
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor

from mobilevit_kernels.triton_kernels import support

OPS = ("unfold_attn_fold", "separable_attn")
OP_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


def _dtype_reason(dtype: torch.dtype) -> str | None:
    if dtype not in OP_DTYPES:
        return f"the ops take float32, float64, bfloat16 and float16, got {dtype}"
    return None


def _native_reason(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cpu":
        return f"the native kernels run on CPU tensors, got a {device_type} tensor"
    return _dtype_reason(dtype)


def _triton_reason(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    return _dtype_reason(dtype) or support.reason(device_type, dtype)


# The answer depends on nothing that changes within a process: torch.compile takes it as a constant. All that
# torch.compiler.assume_constant_result does, without its import of torch's compiler, which takes seconds.
_triton_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _reference_reason(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    return _dtype_reason(dtype)


# In order of preference for "auto". Each predicate returns None if the backend can run, else why it cannot.
_REASONS: dict[str, Callable[[str, str, torch.dtype], str | None]] = {
    "native": _native_reason,
    "triton": _triton_reason,
    "reference": _reference_reason,
}
BACKENDS = ("auto", *_REASONS)


def _validated(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_choice = _validated(os.environ.get("MOBILEVIT_BACKEND", "auto"), "MOBILEVIT_BACKEND")


def current_backend() -> str:
    """Returns the name that was chosen last: "auto" or a backend's."""
    return _choice


class use_backend:
    """Chooses the implementation of every op in this process, as a setter or as a context manager.

    The environment variable ``MOBILEVIT_BACKEND`` sets the choice at import. A backend chosen by name that cannot
    run a problem is an error, never a silent fallback; "auto" takes the first that can.

    Args:
        name: "auto", "native" (compiled kernels, on CPUs), "triton" (on GPUs) or "reference" (plain PyTorch).

    Raises:
        ValueError: the name is none of these.
    """

    def __init__(self, name: str):
        global _choice
        self._previous = _choice
        _choice = _validated(name, "use_backend(name)")

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _choice
        _choice = self._previous


def explain_backends(
    op: str,
    tensor: Tensor | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, str | None]:
    """Says which backends can run a problem, in the order "auto" tries them.

    Args:
        op: "unfold_attn_fold" or "separable_attn".
        tensor: the op's first argument; its device and dtype override the two below.
        device: device of the problem.
        dtype: dtype of the problem.

    Returns:
        Backend name -> None where it can run, else the reason why it cannot.

    Raises:
        ValueError: there is no such op.
    """
    if op not in OPS:
        raise ValueError(f"explain_backends(op): expected one of {', '.join(OPS)}, got {op!r}")
    device_type = tensor.device.type if tensor is not None else torch.device(device).type
    dtype = tensor.dtype if tensor is not None else dtype
    return {name: reason(op, device_type, dtype) for name, reason in _REASONS.items()}


def select_backend(op: str, tensor: Tensor) -> str:
    """Returns the name of the backend that runs this problem under the current choice.

    Raises:
        RuntimeError: the chosen backend (or, under "auto", every backend) cannot run it; the message says why.
    """
    names = tuple(_REASONS) if _choice == "auto" else (_choice,)
    reasons = []
    for name in names:
        reason = _REASONS[name](op, tensor.device.type, tensor.dtype)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise RuntimeError(f"{op} cannot run on backend {_choice!r}: {'; '.join(reasons)}")

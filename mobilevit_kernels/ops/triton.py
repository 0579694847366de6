"""Registers the Triton kernels: for CUDA tensors, and for CPU tensors where Triton interprets (TRITON_INTERPRET=1)."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels.backends import current_backend
from mobilevit_kernels.ops.registration import LIBRARY
from mobilevit_kernels.triton_kernels import support

Check = Callable[..., None]


def register_triton(name: str, op: str, check: Check) -> None:
    """Makes ``mobilevit::<name>`` run the launcher of that name in ``triton_kernels/<op>.py``.

    CUDA tensors always do. CPU tensors do under "triton" as the chosen backend, where kernels are interpreted, and
    keep the compiled kernel otherwise.

    Args:
        name: of the registered op.
        op: the op it belongs to.
        check: raises where the arguments break the op's contract.
    """
    kernel = _checked(name, op, check)
    LIBRARY.impl(name, kernel, "CUDA")
    if support.interpreted():
        compiled = torch.library.get_kernel(f"mobilevit::{name}", "CPU")

        def either(keys: Any, *args: Any) -> Any:
            return kernel(*args) if current_backend() == "triton" else compiled.call_boxed(keys, *args)

        with warnings.catch_warnings():
            # torch warns of every kernel that takes another's place
            warnings.simplefilter("ignore", UserWarning)
            LIBRARY.impl(name, either, "CPU", with_keyset=True, allow_override=True)


def _checked(name: str, op: str, check: Check) -> Callable[..., Any]:
    """The launcher behind its checks. Triton is imported at the first call."""
    launcher: Callable[..., Any] | None = None

    def kernel(x: Tensor, *args: Any) -> Any:
        nonlocal launcher
        check(x, *args)
        reason = support.reason(x.device.type, x.dtype)
        if reason is not None:
            raise RuntimeError(f"{op} cannot run on backend 'triton': {reason}")
        if launcher is None:
            launcher = getattr(importlib.import_module(f"mobilevit_kernels.triton_kernels.{op}"), name)
        return launcher(x, *args)

    return kernel

"""Loads the compiled module, which registers the ``mobilevit`` operators with torch."""

import importlib
import os
from types import ModuleType

import torch

_REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall mobilevit-kernels"


def load() -> None:
    """Imports the native module.

    Raises:
        ImportError: the module was not built, or was built for another torch; the message names both versions
            and the command that rebuilds it.
    """
    try:
        built_for = importlib.import_module("mobilevit_kernels._build_info").TORCH_VERSION
    except ModuleNotFoundError as error:
        raise ImportError(
            f"mobilevit_kernels has no compiled extension; build it with: {_REBUILD}"
        ) from error
    if built_for != torch.__version__:
        raise ImportError(
            f"mobilevit_kernels was built for torch {built_for} but torch {torch.__version__} is loaded; "
            f"rebuild it with: {_REBUILD}"
        )
    native = importlib.import_module("mobilevit_kernels._C")
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _after_fork(native))


def _after_fork(native: ModuleType) -> None:
    """Goes on with one thread where the parent's are lost: OpenMP would wait for them forever."""
    if native.threads_used():
        torch.set_num_threads(1)

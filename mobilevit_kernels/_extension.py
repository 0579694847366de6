"""Loads the compiled module, which registers the ``mobilevit`` operators with torch."""

import importlib

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
    importlib.import_module("mobilevit_kernels._C")

"""The ``mobilevit`` command line."""

from mobilevit_kernels.cli.main import main

__all__ = ["main"]

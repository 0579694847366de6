"""Memory of large results between their uses."""

import importlib


def release_idle_maps() -> None:
    """Gives memory that the CPU ops keep for later results, and nobody holds, back to the system.

    After training in a process that goes on with other work, for instance. The ops take new memory when they run again.
    """
    # By name, for the package itself imports the ops.
    importlib.import_module("mobilevit_kernels._C").release_idle_maps()

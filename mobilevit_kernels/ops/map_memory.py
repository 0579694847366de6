"""Memory of large results between their uses."""

from mobilevit_kernels import _C


def release_idle_maps() -> None:
    """Gives memory that the CPU ops keep for later results, and nobody holds, back to the system.

    After training in a process that goes on with other work, for instance. The ops take new memory when they run again.
    """
    _C.release_idle_maps()

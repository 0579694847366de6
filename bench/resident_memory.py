"""Resident memory of this process, as Linux counts it. Imports nothing that would count."""

from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Bytes of memory that are resident now."""
    return _status_bytes("VmRSS")


def forget_peak() -> None:
    """Lets the peak begin anew, at what is resident now."""
    _RESET.write_text("5")


def peak_resident_bytes() -> int:
    """Most bytes that were resident at once since :func:`forget_peak`."""
    return _status_bytes("VmHWM")


def can_measure_peak() -> bool:
    """Whether this system counts as Linux does."""
    return _STATUS.exists() and _RESET.exists()


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"{_STATUS} has no {field}")

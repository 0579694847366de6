"""Which configuration a problem runs with: forced, remembered, measured once, or the first of a short list."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mobilevit_kernels.triton_kernels.launch import Config, recording
from mobilevit_kernels.triton_kernels.support import interpreted

_chosen: dict[tuple[Any, ...], Config] = {}
_forced: dict[str, Config] = {}


def choose(
    kernel: str, key: tuple[Any, ...], candidates: Sequence[Config], run: Callable[[Config], None]
) -> Config:
    """Returns the configuration for a problem.

    On the first call for a key, every candidate is timed on the caller's own tensors, and the fastest is kept in
    memory and in a file. Nothing is timed in the interpreter, while a CUDA graph is captured, with
    ``MOBILEVIT_TRITON_AUTOTUNE=0``, or where there is one candidate: the first is taken then.

    Args:
        kernel: the name that configurations are forced and remembered under.
        key: what the best configuration depends on: sizes, dtype, the device's index last.
        candidates: at least one, the best guess first.
        run: starts the kernel with a configuration; may run any number of times.
    """
    if recording():
        for candidate in candidates:
            run(candidate)
        return candidates[0]
    forced = _forced.get(kernel)
    if forced is not None:
        return forced
    chosen = _chosen.get((kernel, *key))
    if chosen is not None:
        return chosen
    if len(candidates) == 1 or interpreted() or os.environ.get("MOBILEVIT_TRITON_AUTOTUNE", "1") == "0":
        return candidates[0]
    if torch.cuda.is_current_stream_capturing():
        return candidates[0]
    chosen = _remembered(kernel, key, candidates) or _measure(kernel, key, candidates, run)
    _chosen[(kernel, *key)] = chosen
    return chosen


@contextmanager
def force_config(kernel: str, config: Config) -> Iterator[None]:
    """Inside, every problem of ``kernel`` runs with ``config``.

    Args:
        kernel: the name of a family of kernels, as in ``FAMILIES`` of each op's configurations.
        config: its constants must be those of the kernel's own candidates.
    """
    previous = _forced.get(kernel)
    _forced[kernel] = config
    try:
        yield
    finally:
        if previous is None:
            del _forced[kernel]
        else:
            _forced[kernel] = previous


def _measure(
    kernel: str, key: tuple[Any, ...], candidates: Sequence[Config], run: Callable[[Config], None]
) -> Config:
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    times: dict[Config, float] = {}
    for candidate in candidates:
        try:
            times[candidate] = do_bench(lambda config=candidate: run(config), warmup=5, rep=20)
        except OutOfResources:
            continue
    if not times:
        raise RuntimeError(f"{kernel}: no configuration fits this device for {key}")
    best = min(times, key=lambda config: times[config])
    _remember(kernel, key, best)
    return best


def cache_file(device_index: int) -> Path:
    """Where the choices for a device are kept: a file per device name, torch and triton version.

    ``MOBILEVIT_CACHE_DIR`` sets the folder; the default is ``~/.cache/mobilevit_kernels``.
    """
    import triton

    folder = os.environ.get("MOBILEVIT_CACHE_DIR") or Path.home() / ".cache" / "mobilevit_kernels"
    device = torch.cuda.get_device_name(device_index).replace(" ", "-").replace("/", "-")
    return Path(folder) / f"triton-{triton.__version__}-torch-{torch.__version__}-{device}.json"


def _name_of(kernel: str, key: tuple[Any, ...]) -> str:
    return f"{kernel} {' '.join(map(str, key[:-1]))}"


def _remembered(kernel: str, key: tuple[Any, ...], candidates: Sequence[Config]) -> Config | None:
    text = _read(cache_file(key[-1])).get(_name_of(kernel, key))
    return next((candidate for candidate in candidates if _encode(candidate) == text), None)


def _remember(kernel: str, key: tuple[Any, ...], config: Config) -> None:
    """Adds one choice to the file; a file that cannot be written costs only the next process its measurement."""
    path = cache_file(key[-1])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = {**_load(path), _name_of(kernel, key): _encode(config)}
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(entries, file, indent=1, sort_keys=True)
        os.replace(file.name, path)
    except OSError:
        return
    finally:
        _read.cache_clear()


@lru_cache(maxsize=8)
def _read(path: Path) -> dict[str, str]:
    return _load(path)


def _load(path: Path) -> dict[str, str]:
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _encode(config: Config) -> str:
    return " ".join([config.variant, *(f"{name}={value}" for name, value in config.keywords.items())]).strip()

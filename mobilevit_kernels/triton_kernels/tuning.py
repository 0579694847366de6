"""Which configuration a problem runs with: forced, remembered, measured once, or the first of a short list."""

import json
import os
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from mobilevit_kernels.triton_kernels.launch import Choice, Config, Target, on_behalf_of, recording
from mobilevit_kernels.triton_kernels.support import interpreted

# Each costs a compilation and a measurement at the first call.
MAX_CANDIDATES = 3
MAX_PLANS = 4096
SPILLS_FILE = Path(__file__).parent / "spills.json"

Plan = TypeVar("Plan")

_chosen: dict[tuple[Any, ...], Config] = {}
_forced: dict[str, Config] = {}


def choose(
    family: str,
    group: str,
    target: Target,
    key: tuple[Any, ...],
    candidates: Sequence[Config],
    run: Callable[[Config], None],
) -> Config:
    """Returns the configuration for a problem.

    On the first call for a key, every candidate is timed on the caller's own tensors, and the fastest is kept in
    memory and in a file. Nothing is timed in the interpreter, while a CUDA graph is captured, with
    ``MOBILEVIT_TRITON_AUTOTUNE=0``, or where there is one candidate: the first is taken then.

    Args:
        family: the kernels that are configured together, a name of their op's ``FAMILIES``.
        group: problems for which a configuration compiles to about the same registers: element type and width.
        target: what is compiled for. Candidates known to spill there are left out.
        key: what the best configuration depends on: sizes, dtype, the device's index last.
        candidates: at least one, the best guess first.
        run: starts the kernels with a configuration; may run any number of times.
    """
    forced = _forced.get(family)
    if forced is not None:
        return forced
    described = recording()
    if described is None or not described.spilling:
        candidates = without_spills(family, group, target, tuple(candidates))
    if described is not None:
        for candidate in candidates:
            with on_behalf_of(Choice(family, group, candidate)):
                run(candidate)
        return candidates[0]
    chosen = _chosen.get((family, *key))
    if chosen is not None:
        return chosen
    if len(candidates) == 1 or interpreted() or os.environ.get("MOBILEVIT_TRITON_AUTOTUNE", "1") == "0":
        return candidates[0]
    if torch.cuda.is_current_stream_capturing():
        return candidates[0]
    chosen = _remembered(family, key, candidates) or _measure(family, key, candidates, run)
    _chosen[(family, *key)] = chosen
    return chosen


class Plans(Generic[Plan]):
    """Remembers what was decided for a key, so that a call decides nothing twice.

    Nothing is taken from memory while a configuration is forced or kernels are only described, and nothing is put
    there while a CUDA graph is captured, when no configuration can be measured.
    """

    def __init__(self) -> None:
        self._plans: dict[Hashable, Plan] = {}

    def get(self, key: Hashable, decide: Callable[[], Plan]) -> Plan:
        """The plan for a key; ``decide`` makes it at the first call."""
        if _forced or recording() is not None:
            return decide()
        plan = self._plans.get(key)
        if plan is None:
            plan = decide()
            if not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()):
                if len(self._plans) >= MAX_PLANS:
                    self._plans.clear()
                self._plans[key] = plan
        return plan


@lru_cache(maxsize=4096)
def without_spills(
    family: str, group: str, target: Target, candidates: tuple[Config, ...]
) -> tuple[Config, ...]:
    """The first few candidates that are not known to spill on a target; the last where all are.

    ``spills.json`` is what ``make aot ARGS=--record`` found: target -> family and group -> configurations.
    """
    spilling = _spills().get(target.recorded_as, {}).get(f"{family} {group}", [])
    kept = tuple(candidate for candidate in candidates if str(candidate) not in spilling)
    return kept[:MAX_CANDIDATES] or candidates[-1:]


@lru_cache(maxsize=1)
def _spills() -> dict[str, dict[str, list[str]]]:
    return json.loads(SPILLS_FILE.read_text())


@contextmanager
def force_config(family: str, config: Config) -> Iterator[None]:
    """Inside, every problem of ``family`` runs with ``config``.

    Args:
        family: a name of an op's ``FAMILIES``.
        config: its variant and the names of its constants must be those of the family's own candidates.
    """
    previous = _forced.get(family)
    _forced[family] = config
    try:
        yield
    finally:
        if previous is None:
            del _forced[family]
        else:
            _forced[family] = previous


def _measure(
    family: str, key: tuple[Any, ...], candidates: Sequence[Config], run: Callable[[Config], None]
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
        raise RuntimeError(f"{family}: no configuration fits this device for {key}")
    best = min(times, key=lambda config: times[config])
    _remember(family, key, best)
    return best


def cache_file(device_index: int) -> Path:
    """Where the choices for a device are kept: a file per device name, torch and triton version.

    ``MOBILEVIT_CACHE_DIR`` sets the folder; the default is ``~/.cache/mobilevit_kernels``.
    """
    import triton

    folder = os.environ.get("MOBILEVIT_CACHE_DIR") or Path.home() / ".cache" / "mobilevit_kernels"
    device = torch.cuda.get_device_name(device_index).replace(" ", "-").replace("/", "-")
    return Path(folder) / f"triton-{triton.__version__}-torch-{torch.__version__}-{device}.json"


def _name_of(family: str, key: tuple[Any, ...]) -> str:
    return f"{family} {' '.join(map(str, key[:-1]))}"


def _remembered(family: str, key: tuple[Any, ...], candidates: Sequence[Config]) -> Config | None:
    text = _read(cache_file(key[-1])).get(_name_of(family, key))
    return next((candidate for candidate in candidates if str(candidate) == text), None)


def _remember(family: str, key: tuple[Any, ...], config: Config) -> None:
    """Adds one choice to the file; a file that cannot be written costs only the next process its measurement."""
    path = cache_file(key[-1])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = {**_load(path), _name_of(family, key): str(config)}
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

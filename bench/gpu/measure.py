"""What the measurements of ops and of models share: refusals, rounds of timing, and the record of a case."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

from bench.case import Case
from bench.gpu.budget import OutOfTime
from bench.gpu.meters import Call, Meter, Refused
from mobilevit_kernels.benchmark.candidates import is_ours
from mobilevit_kernels.benchmark.gate import GateResult
from mobilevit_kernels.benchmark.timing import Timing, time_in_turn

Record = dict[str, object]
_LONGEST_REASON = 400


class DeviceLost(Exception):
    """An error left the device unusable for this process; a new process may go on."""


def first_line(error: BaseException) -> str:
    """An error in one line, short enough for a table."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if not isinstance(error, Refused) else text


@contextmanager
def noted_refusal(refused: dict[str, str], name: str, meter: Meter) -> Iterator[None]:
    """Notes why a candidate cannot run instead of failing, with what it warned of: torch gives reasons that way.

    Raises:
        DeviceLost: the error left the device unusable.
        OutOfTime: the whole run is at its end.
    """
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield
    except OutOfTime as end:
        if end.reason is None:
            raise
        refused[name] = end.reason
    except Exception as error:  # whatever a peer or its compiler raises is its reason
        reasons = dict.fromkeys(str(warning.message).partition("(Triggered")[0].strip() for warning in warned)
        refused[name] = " ".join([first_line(error), *reasons])[:_LONGEST_REASON]
        if meter.is_lost():
            raise DeviceLost(f"{name}: {refused[name]}") from error
        meter.release()


def time_mode(
    functions: Mapping[str, Call], meter: Meter, cold: bool, budget_s: float, min_rounds: int
) -> dict[str, Timing]:
    """Times candidates in turn; none where there is no candidate.

    Args:
        functions: candidate -> what is timed.
        meter: the clock.
        cold: flushes the cache before each call.
        budget_s: about how many seconds all rounds may take.
        min_rounds: fewest rounds.
    """
    if not functions:
        return {}
    return time_in_turn(functions, budget_s, min_rounds, sample=meter.sampler(cold))


def case_record(
    case: Case,
    gates: Mapping[str, GateResult],
    modes: Mapping[str, Mapping[str, Timing]],
    refused: Mapping[str, str],
    memory: Mapping[str, int],
) -> Record:
    """The case for JSON, with the best of ours and of the peers in every mode.

    A candidate of ours whose gate did not pass is never the best, and no speed-up is given without one that passed.
    """
    return {
        "name": str(case),
        "subject": case.subject,
        "shape": case.shape,
        "model": case.model,
        "dtype": case.dtype,
        "batch": case.batch,
        "direction": case.direction,
        "gates": {name: asdict(gate) for name, gate in gates.items()},
        "modes": {mode: _mode_record(timings, gates) for mode, timings in modes.items() if timings},
        "refused": dict(refused),
        "memory_bytes": dict(memory),
    }


def _mode_record(timings: Mapping[str, Timing], gates: Mapping[str, GateResult]) -> Record:
    def fastest(keep: Callable[[str], bool]) -> str | None:
        names = [name for name in timings if keep(name)]
        return min(names, key=lambda name: timings[name].median_s) if names else None

    ours = fastest(lambda name: is_ours(name) and name in gates and gates[name].passed)
    peer = fastest(lambda name: not is_ours(name))
    speedup = None
    if ours is not None and peer is not None:
        speedup = timings[peer].median_s / timings[ours].median_s
    return {
        "timings": {name: asdict(timing) for name, timing in timings.items()},
        "best_ours": ours,
        "best_peer": peer,
        "speedup": speedup,
    }

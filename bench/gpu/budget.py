"""A deadline: what is not started because too little time is left, and what is stopped when it is reached."""

import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# A prediction covers cases that take this much longer than their kind's mean.
_MARGIN = 1.3
_SHORTEST_S = 1e-3


class OutOfTime(BaseException):
    """Raised inside a block that outran its limit. Not an Exception: compilers catch and rewrap those.

    Args:
        reason: what to note where only this block ends; None where the whole run does.
    """

    def __init__(self, reason: str | None = None):
        super().__init__(reason)
        self.reason = reason


@contextmanager
def time_limit(seconds: float, reason: str | None = None) -> Iterator[None]:
    """Raises OutOfTime in the block once it has run this long. Limits nest, the earlier one counts; main thread only.

    Args:
        seconds: positive; no limit is set where it is infinite.
        reason: reason of the exception.

    Raises:
        OutOfTime: the block took longer.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime(reason)

    outer_s = signal.getitimer(signal.ITIMER_REAL)[0]
    if seconds == float("inf") or 0 < outer_s <= seconds:
        yield
        return
    start_s = time.monotonic()
    previous_handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, _SHORTEST_S))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)
        if outer_s > 0:
            left_s = outer_s - (time.monotonic() - start_s)
            signal.setitimer(signal.ITIMER_REAL, max(left_s, _SHORTEST_S))


class Budget:
    """Says what still fits before the deadline, from what cases of the same kind took.

    Args:
        seconds: time from now to the deadline.
        clock: monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._end = clock() + seconds
        self._taken: dict[str, list[float]] = defaultdict(list)

    @property
    def left_s(self) -> float:
        """Seconds to the deadline; negative after it."""
        return self._end - self._clock()

    def observe(self, kind: str, seconds: float) -> None:
        """Notes what a case of this kind took."""
        self._taken[kind].append(seconds)

    def predict(self, kind: str, guess_s: float) -> float:
        """Seconds that a case of this kind will take: from the last ones, or the guess where there is none."""
        taken = self._taken[kind][-8:]
        return _MARGIN * sum(taken) / len(taken) if taken else guess_s

    def fits(self, kind: str, guess_s: float) -> bool:
        """Whether a case of this kind would end before the deadline."""
        return self.predict(kind, guess_s) <= self.left_s

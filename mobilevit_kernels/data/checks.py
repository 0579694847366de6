"""Checks of the samplers' arguments: an error names the argument, what was expected and what came."""

import operator
from collections.abc import Sequence


def checked_int(name: str, value: object, minimum: int = 1) -> int:
    """Returns an integer as an int.

    Raises:
        TypeError: not an integer.
        ValueError: below ``minimum``.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    number = operator.index(value)
    if number < minimum:
        raise ValueError(f"{name}: expected an int of at least {minimum}, got {number}")
    return number


def checked_size(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Returns a size as (height, width); one int means a square.

    Raises:
        TypeError: neither an int nor two ints.
        ValueError: not positive.
    """
    if not isinstance(value, Sequence):
        side = checked_int(name, value)
        return side, side
    if isinstance(value, str) or len(value) != 2:
        raise TypeError(f"{name}: expected an int or (height, width), got {value!r}")
    height, width = (checked_int(name, side) for side in value)
    return height, width

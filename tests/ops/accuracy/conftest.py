"""Fixtures of the accuracy tests: the error rule."""

from collections.abc import Callable

import pytest
from error_rule import check_backward, check_forward


@pytest.fixture
def forward_rule() -> Callable[..., None]:
    """Asserts the error rule for the output of a problem."""
    return check_forward


@pytest.fixture
def backward_rule() -> Callable[..., None]:
    """Asserts the error rule for the gradients of a problem."""
    return check_backward

"""What every test relies on: an importable timm, fixed seeds, a restored backend and thread count."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import mobilevit_kernels
from mobilevit_kernels import _C
from mobilevit_kernels.benchmark.timm_models import has_torchvision
from mobilevit_kernels.triton_kernels import support
from tests.support import interpreter

# timm and transformers are imported by the modules of tests, which are collected after this.
has_torchvision()

# The kernels under test: with TRITON_INTERPRET=1 the Triton ones, on the CPU.
KERNELS = "triton" if support.interpreted() else "native"


def pytest_configure() -> None:
    """Refuses to test another build than the one that was asked for."""
    wanted = os.environ.get("MOBILEVIT_TESTED_PACKAGE")
    tested = Path(_C.__file__).resolve()
    if wanted and not tested.is_relative_to(Path(wanted).resolve()):
        pytest.exit(f"MOBILEVIT_TESTED_PACKAGE is {wanted}, but {tested} was imported", returncode=1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In Triton's interpreter only some tests run."""
    if KERNELS == "triton":
        interpreter.select(config, items)


settings.register_profile(
    "default", deadline=None, derandomize="CI" in os.environ, suppress_health_check=list(HealthCheck)
)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test draws the same random numbers, whichever tests ran before it."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def restored_backend() -> Iterator[None]:
    """A backend chosen inside a test does not outlive it."""
    with mobilevit_kernels.use_backend(mobilevit_kernels.current_backend()):
        yield


@pytest.fixture(params=[KERNELS, "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per backend of this machine, with that backend chosen."""
    with mobilevit_kernels.use_backend(request.param):
        yield request.param


@pytest.fixture
def kernels() -> Iterator[str]:
    """Chooses the kernels by name, so that a test of them can never pass on another backend."""
    with mobilevit_kernels.use_backend(KERNELS):
        yield KERNELS


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Lets a test call ``torch.set_num_threads``."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)

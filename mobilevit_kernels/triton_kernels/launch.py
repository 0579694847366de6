"""How a kernel is started: its configuration, the device it is for, and a recorder for ahead-of-time compilation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mobilevit_kernels.triton_kernels.support import interpreted


class Target(NamedTuple):
    """What kernels are compiled for.

    Attributes:
        backend: "cuda" or "hip".
        arch: compute capability times ten (90), or the name of an AMD processor ("gfx942").
        shared_bytes: shared memory that one program may take.
    """

    backend: str
    arch: int | str
    shared_bytes: int

    @property
    def recorded_as(self) -> str:
        """The target of ``TARGETS`` whose registers stand for this one's."""
        if isinstance(self.arch, str):
            return "gfx942"
        return "sm_100" if self.arch >= 100 else "sm_90" if self.arch >= 90 else "sm_80"


TARGETS = {
    "sm_80": Target("cuda", 80, 163 * 1024),
    "sm_90": Target("cuda", 90, 227 * 1024),
    "sm_100": Target("cuda", 100, 227 * 1024),
    "gfx942": Target("hip", "gfx942", 64 * 1024),
}


@dataclass(frozen=True)
class Config:
    """One way to cut a problem into programs.

    Attributes:
        constants: block sizes and loop counts, by the name of the kernel's constant.
        num_warps: warps of one program.
        num_stages: buffers of the software pipeline.
        variant: which of several kernels, where a family has more than one.
    """

    constants: tuple[tuple[str, int], ...]
    num_warps: int = 4
    num_stages: int = 1
    variant: str = ""

    @staticmethod
    def of(num_warps: int = 4, num_stages: int = 1, variant: str = "", **constants: int) -> "Config":
        """A configuration with these constants."""
        return Config(tuple(sorted(constants.items())), num_warps, num_stages, variant)

    def __getitem__(self, name: str) -> int:
        return dict(self.constants)[name]

    def __str__(self) -> str:
        named = (f"{name}={value}" for name, value in self.keywords.items())
        return " ".join([self.variant, *named]).strip()

    @property
    def keywords(self) -> dict[str, int]:
        """What the launch takes: constants, num_warps and num_stages."""
        return {**dict(self.constants), "num_warps": self.num_warps, "num_stages": self.num_stages}


class Choice(NamedTuple):
    """The candidate on whose behalf a kernel is described.

    Attributes:
        family: the kernels that are configured together.
        group: problems for which a configuration compiles to about the same registers.
        config: the candidate.
    """

    family: str
    group: str
    config: Config


@dataclass(frozen=True)
class Launch:
    """What would have been started: everything that compilation depends on."""

    kernel: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    choice: Choice | None


@dataclass(frozen=True)
class Recording:
    """Kernels are described instead of started.

    Attributes:
        target: what they are for.
        recorder: takes each description.
        spilling: whether candidates known to spill are described too.
    """

    target: Target
    recorder: Callable[[Launch], None]
    spilling: bool


_recording: Recording | None = None
_choice: Choice | None = None


@dataclass(frozen=True)
class Start:
    """A kernel ready to be started: everything but its tensors, decided once.

    Attributes:
        kernel: a ``triton.jit`` function.
        programs: number of programs; none are started for 0.
        numbers: its run-time arguments after the tensors.
        keywords: its compile-time constants, num_warps and num_stages.
    """

    kernel: Any
    programs: int
    numbers: tuple[Any, ...]
    keywords: dict[str, Any]

    def __call__(self, *tensors: Tensor) -> None:
        """Starts the kernel on the device of its first tensor."""
        if _recording is not None:
            _recording.recorder(Launch(self.kernel, (*tensors, *self.numbers), self.keywords, _choice))
            return
        if self.programs == 0:
            return
        device = tensors[0].device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            self.kernel[(self.programs,)](*tensors, *self.numbers, **self.keywords)
            return
        with torch.cuda.device(device):
            self.kernel[(self.programs,)](*tensors, *self.numbers, **self.keywords)


def prepare(
    kernel: Any, programs: int, numbers: tuple[Any, ...], config: Config, constants: dict[str, Any]
) -> Start:
    """A kernel with its configuration and its other constants."""
    return Start(kernel, programs, numbers, {**constants, **config.keywords})


def launch(kernel: Any, programs: int, arguments: Sequence[Any], config: Config, **constants: Any) -> None:
    """Starts a kernel on the device of its first argument.

    Args:
        kernel: a ``triton.jit`` function.
        programs: number of programs; none are started for 0.
        arguments: its run-time arguments in order, a tensor first.
        config: its configuration.
        constants: its other compile-time constants.
    """
    prepare(kernel, programs, (), config, constants)(*arguments)


@contextmanager
def record(target: Target, recorder: Callable[[Launch], None], spilling: bool = False) -> Iterator[None]:
    """Inside, kernels are described to ``recorder`` as for ``target`` and none is started; tensors may be meta.

    Every candidate configuration is described; with ``spilling`` those known to spill on the target are, too.
    """
    global _recording
    _recording = Recording(target, recorder, spilling)
    try:
        yield
    finally:
        _recording = None


@contextmanager
def on_behalf_of(choice: Choice) -> Iterator[None]:
    """Inside, kernels are described as this candidate's."""
    global _choice
    previous, _choice = _choice, choice
    try:
        yield
    finally:
        _choice = previous


def recording() -> Recording | None:
    """How kernels are described at present; None where they are started."""
    return _recording


def target_of(tensor: Tensor) -> Target:
    """What kernels on this tensor are compiled for; the interpreter counts as sm_90."""
    if _recording is not None:
        return _recording.target
    if interpreted():
        return TARGETS["sm_90"]
    return _device_target(tensor.device.index)


@lru_cache(maxsize=16)
def _device_target(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        name = properties.gcnArchName.split(":")[0]
        return Target("hip", name, TARGETS["gfx942"].shared_bytes)
    shared = getattr(properties, "shared_memory_per_block_optin", TARGETS["sm_80"].shared_bytes)
    return Target("cuda", 10 * properties.major + properties.minor, shared)


def register_group(itemsize: int, exact: bool, pieces: tuple[int, int]) -> str:
    """Names the problems for which a configuration compiles to about the same registers.

    Args:
        itemsize: bytes of an element.
        exact: products of float32 without tensor cores.
        pieces: columns of a row in one or two powers of two.
    """
    precision = "half" if itemsize == 2 else "exact" if exact else "tf32"
    return f"{precision} {'+'.join(str(piece) for piece in pieces if piece)}"


def matmul_precision(dtype: torch.dtype) -> str:
    """How float32 matrix products are computed: "tf32" where torch's own are, else "ieee"."""
    if dtype != torch.float32:
        return "ieee"
    precision = torch.backends.cuda.matmul.fp32_precision
    if precision == "none":
        precision = getattr(torch.backends, "fp32_precision", "none")
    return "tf32" if precision == "tf32" else "ieee"


def exact_products(dtype: torch.dtype) -> bool:
    """Whether matrix products of this dtype are of float32 without tensor cores."""
    return dtype == torch.float32 and matmul_precision(dtype) == "ieee"

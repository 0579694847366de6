"""Compiles one launch for one target and reads what it takes: registers, spills, shared memory."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from mobilevit_kernels.triton_kernels.launch import Launch, Target

_POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
_OPTIONS = ("num_warps", "num_stages")
# Triton compiles apart what is divisible by 16: pointers always are here.
_DIVISIBLE = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes of its processor.

    Attributes:
        registers: of a thread.
        spill_bytes: stored to and loaded from memory for want of registers, by one thread.
        shared_bytes: of one program.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Source:
    """A launch as its compilation sees it; two launches with equal sources are compiled once."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[int, Any], ...]
    divisible: tuple[int, ...]
    options: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.__name__

    @property
    def configuration(self) -> str:
        """Constants that say how the problem is cut, and the options, in one line."""
        names = [name for name, _ in self.signature]
        pairs = [(names[index], value) for index, value in self.constants]
        return " ".join(f"{name}={value}" for name, value in (*pairs, *self.options))


def source_of(launch: Launch) -> Source:
    """The source of a launch: the types of its arguments, and its constants, as the launch itself would find them."""
    names = launch.kernel.arg_names
    keywords = dict(launch.keywords)
    options = tuple((name, keywords.pop(name)) for name in _OPTIONS)
    constants = {names.index(name): value for name, value in keywords.items()}
    signature, divisible = {}, []
    for index, argument in enumerate(launch.arguments):
        if isinstance(argument, int) and argument == 1:
            constants[index] = 1
            continue
        signature[names[index]] = _type_of(argument)
        if isinstance(argument, torch.Tensor) or (isinstance(argument, int) and argument % 16 == 0):
            divisible.append(index)
    types = tuple((name, signature.get(name, "constexpr")) for name in names)
    return Source(launch.kernel, types, tuple(sorted(constants.items())), tuple(divisible), options)


def _type_of(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return _POINTERS[argument.dtype]
    if isinstance(argument, float):
        return "fp32"
    return "i32" if abs(argument) < 2**31 else "i64"


def compile_source(source: Source, target: Target) -> Usage:
    """Compiles for a target. Whatever the compiler raises reaches the caller."""
    described = ASTSource(
        source.kernel,
        dict(source.signature),
        {(index,): value for index, value in source.constants},
        {(index,): _DIVISIBLE for index in source.divisible},
    )
    gpu = GPUTarget(target.backend, target.arch, 32 if target.backend == "cuda" else 64)
    compiled = triton.compile(described, target=gpu, options=dict(source.options))
    shared = compiled.metadata.shared
    if target.backend == "cuda":
        return _ptx_usage(compiled.asm["ptx"], shared)
    return _amdgcn_usage(compiled.asm["amdgcn"], shared)


def _ptx_usage(ptx: str, shared: int) -> Usage:
    """What Triton's own assembler reports for PTX."""
    found = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert found is not None
    arch = found[1]
    generation = int(re.sub(r"\D", "", arch))
    assembler = get_ptxas(generation).path
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [assembler, "-v", "--gpu-name", arch, file.name, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = done.stdout + done.stderr
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    registers = re.search(r"Used (\d+) registers", report)
    assert spills is not None
    assert registers is not None
    return Usage(int(registers[1]), int(spills[1]) + int(spills[2]), shared)


def _amdgcn_usage(assembly: str, shared: int) -> Usage:
    """What the kernel's own metadata says; a spilled register is four bytes."""
    values = {
        name: int(found[1])
        for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
        if (found := re.search(rf"\.{name}:\s+(\d+)", assembly)) is not None
    }
    return Usage(values["vgpr_count"], 4 * (values["vgpr_spill_count"] + values["sgpr_spill_count"]), shared)

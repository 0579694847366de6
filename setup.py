"""Builds the native extension with CMake; everything else is declared in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def import_torch():
    """Returns the torch the extension is built against, or explains how to provide one."""
    try:
        import torch
        import torch.utils.cpp_extension as cpp_extension
    except ImportError as error:
        raise SystemExit(
            "mobilevit_kernels is built against the torch that you run. Install torch (>= 2.11) first, then: "
            f"pip install --no-build-isolation . ({error})"
        ) from error
    return torch, cpp_extension


class CMakeExtension(Extension):
    """A native module whose sources and flags live in CMakeLists.txt."""

    def __init__(self, name: str):
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Runs CMake and places the module and its build record inside the package."""

    def build_extension(self, ext: Extension) -> None:
        torch, cpp_extension = import_torch()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # An editable install compiles again and again: a folder that stays makes that incremental.
        build_root = ROOT / "build" if self.editable_mode else Path(self.build_temp).resolve()
        build_dir = build_root / f"cmake-torch-{torch.__version__}"
        build_dir.mkdir(parents=True, exist_ok=True)
        configure = [
            shutil.which("cmake") or "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build_dir),
            "-DCMAKE_BUILD_TYPE=" + ("Debug" if self.debug else "Release"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DTORCH_INCLUDE_DIRS={';'.join(cpp_extension.include_paths())}",
            f"-DTORCH_LIBRARY_DIRS={';'.join(cpp_extension.library_paths())}",
            f"-DTORCH_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            f"-DMODULE_OUTPUT_DIRECTORY={target.parent}",
            f"-DMODULE_SUFFIX={target.name.removeprefix('_C')}",
        ]
        if shutil.which("ninja"):
            configure.append("-GNinja")
        configure += os.environ.get("CMAKE_ARGS", "").split()
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir), "--parallel", str(max_jobs())], check=True)
        record = f'"""Written by the build."""\n\nTORCH_VERSION = "{torch.__version__}"\n'
        package_dirs = [target.parent, ROOT / "mobilevit_kernels"] if self.editable_mode else [target.parent]
        for package_dir in package_dirs:
            (package_dir / "_build_info.py").write_text(record)


def max_jobs() -> int:
    """Compile jobs at a time: MAX_JOBS where set, else the processors this process may use."""
    return int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))


setup(ext_modules=[CMakeExtension("mobilevit_kernels._C")], cmdclass={"build_ext": CMakeBuild})

"""A wheel and an sdist built from a copy of the sources, and Python as a user runs it who has installed them."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "CMakeLists.txt",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "csrc",
    "mobilevit_kernels",
    "models",
    "pyproject.toml",
    "setup.py",
)


@dataclass(frozen=True)
class InstalledPackage:
    """A folder that a wheel was installed into."""

    target: Path

    @property
    def package(self) -> Path:
        return self.target / "mobilevit_kernels"

    @property
    def extension(self) -> Path:
        (extension,) = self.package.glob("_C.*.so")
        return extension

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Runs Python with this package and the packages of this environment, but without its .pth files.

        An editable install works through a .pth file, so it can't stand in for what the wheel lacks.
        """
        path = os.pathsep.join(
            [str(self.target), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        )
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MOBILEVIT_")}
        return subprocess.run(
            [sys.executable, "-S", *arguments],
            cwd=cwd,
            env=environment | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )


def build(kind: str, source: Path, output: Path) -> Path:
    """Builds an "sdist" or a "wheel" from ``source`` with the torch of this environment."""
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        f"--{kind}",
        "--outdir",
        str(output),
        str(source),
    ]
    environment = os.environ | {"PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    (artifact,) = output.iterdir()
    return artifact


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist of the sources as a clone has them: without anything that was built in place."""
    source = tmp_path_factory.mktemp("source")
    built = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.py")
    for name in SOURCES:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=built)
        else:
            shutil.copy2(origin, source / name)
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the unpacked sdist, so that an incomplete sdist can't go unnoticed."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(sdist, unpacked)
    (source,) = unpacked.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def install(wheel: Path, tmp_path: Path) -> Callable[[], InstalledPackage]:
    """Installs the wheel into a folder of this test's own."""

    def into_folder() -> InstalledPackage:
        target = tmp_path / "site"
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(target),
            str(wheel),
        ]
        subprocess.run(command, check=True)
        return InstalledPackage(target)

    return into_folder

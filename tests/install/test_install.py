"""The package as a user installs it: built, installed, imported and run outside the source folder."""

import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

RUN_BOTH_OPS = """
import torch, mobilevit_kernels as mk
torch.manual_seed(0)
with mk.use_backend("native"):
    out = mk.unfold_attn_fold(torch.randn(1, 48, 8, 8), 4)
    print(mk.__file__, tuple(out.shape), out.isfinite().all().item())
    x, wqkv, wout = torch.randn(1, 16, 8, 8), torch.randn(33, 16), torch.randn(16, 16)
    out = mk.separable_attn(x, wqkv, None, wout, None)
    torch.testing.assert_close(out, mk.reference.separable_attn(x, wqkv, None, wout, None), atol=1e-3, rtol=1e-3)
print(len(mk.list_models()), mk.create_model("mobilevit_xxs").eval()(torch.zeros(1, 3, 64, 64)).shape[1])
"""


def python_files(folder: str) -> set[str]:
    return {
        str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py") if path.name != "_build_info.py"
    }


def test_sdist_has_every_source_and_nothing_built(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    expected = sources | python_files("mobilevit_kernels") | python_files("models")
    expected |= {
        "CMakeLists.txt",
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "mobilevit_kernels/py.typed",
    }
    assert expected <= names
    assert not {name for name in names if name.endswith(".so") or "_build_info" in name}


def test_wheel_has_every_module_the_extension_and_its_record(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record = archive.read("mobilevit_kernels/_build_info.py").decode()
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    modules = {
        f"mobilevit_kernels/{name}" if name.startswith("models/") else name for name in python_files("models")
    }
    assert modules | python_files("mobilevit_kernels") | {"mobilevit_kernels/py.typed"} <= names
    assert [name for name in names if re.fullmatch(r"mobilevit_kernels/_C\..*\.so", name)]
    assert torch.__version__ in record
    assert "mobilevit = mobilevit_kernels.cli:main" in entry_points
    assert not {name.split("/")[0] for name in names if ".dist-info" not in name} - {"mobilevit_kernels"}


def test_installed_wheel_runs_outside_the_source_folder(install, tmp_path):
    installed = install()
    result = installed.run("-c", RUN_BOTH_OPS, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ops_line, models_line = result.stdout.splitlines()
    assert ops_line == f"{installed.package / '__init__.py'} (1, 16, 8, 8) True"
    count, classes = map(int, models_line.split())
    assert count >= 19
    assert classes == 1000


def test_installed_command_line_answers(install, tmp_path):
    result = install().run("-m", "mobilevit_kernels", "info", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert torch.__version__ in result.stdout


def test_installed_comparison_needs_nothing_of_the_sources(install, tmp_path):
    arguments = ["--smoke", "--models", "mobilevit_xxs", "--threads", "1", "--peers", "--output", "results"]
    result = install().run("-m", "mobilevit_kernels", "bench", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "results").iterdir()} >= {
        "models.json",
        "models.md",
        "models.png",
    }


def test_another_torch_is_one_sentence_with_both_versions_and_the_command(install, tmp_path):
    installed = install()
    (installed.package / "_build_info.py").write_text('TORCH_VERSION = "2.11.0+elsewhere"\n')
    result = installed.run("-c", "import mobilevit_kernels", cwd=tmp_path)
    assert result.returncode != 0
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: ")
    assert "2.11.0+elsewhere" in message
    assert torch.__version__ in message
    assert "pip install --no-build-isolation" in message
    assert result.stdout == ""


def test_missing_extension_is_one_sentence_with_the_command(install, tmp_path):
    installed = install()
    installed.extension.unlink()
    (installed.package / "_build_info.py").unlink()
    result = installed.run("-c", "import mobilevit_kernels", cwd=tmp_path)
    assert result.returncode != 0
    assert "pip install --no-build-isolation" in result.stderr.strip().splitlines()[-1]


def test_extension_takes_its_openmp_runtime_from_torch(install):
    """With one of its own, torch.set_num_threads would not govern the kernels."""
    dynamic = subprocess.run(
        ["readelf", "--dynamic", "--wide", str(install().extension)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if re.match(r"lib(g|i)?omp", name)]

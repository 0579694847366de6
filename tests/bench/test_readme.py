"""The README's table of models: the means of measured speed-ups, and that the README has just that."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import readme


def row(
    model: str, dtype: str, threads: int, batch: int, speedup: float | None, **other: Any
) -> dict[str, Any]:
    names = {"model": model, "dtype": dtype, "threads": threads, "batch": batch, "speedup": speedup}
    return {"direction": "inference", **names, **other}


ROWS = [
    row("a", "fp32", 1, 1, 2.0),
    row("a", "fp32", 1, 8, 8.0),
    row("a", "fp32", 2, 1, 1.5),
    row("a", "bf16", 2, 8, None),
    row("a", "bf16", 2, 1, 3.0),
    row("b", "fp32", 2, 1, 0.5),
    row("b", "fp32", 2, 1, 9.0, direction="forward"),
]
TABLE = """\
| batch 1, 8; 1 / 2 thread(s) | fp32 | bf16 |
|---|---|---|
| `a` | 4.00 / 1.50 | – / gate failed |
| `b` | – / 0.50 | – / – |"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, list[str]]:
    results, text = tmp_path / "peers_models.json", tmp_path / "README.md"
    results.write_text(json.dumps({"rows": ROWS}))
    text.write_text(f"# Title\n\n{readme.BEGIN}\n| old |\n{readme.END}\n\nMore.\n")
    return text, ["--results", str(results), "--readme", str(text)]


def test_numbers_are_geometric_means_over_the_batches() -> None:
    assert readme.table(ROWS) == TABLE


def test_written_table_is_what_is_printed_and_checked(
    files: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    text, options = files
    assert readme.main(options) == 0
    assert capsys.readouterr().out == TABLE + "\n"
    assert readme.main(["--check", *options]) == 1
    assert TABLE in capsys.readouterr().err
    assert readme.main(["--write", *options]) == 0
    assert text.read_text() == f"# Title\n\n{readme.BEGIN}\n\n{TABLE}\n\n{readme.END}\n\nMore.\n"
    assert readme.main(["--check", *options]) == 0
    text.write_text(text.read_text().replace("4.00", "4.01"))
    assert readme.main(["--check", *options]) == 1


@pytest.mark.parametrize(
    "text", ["nothing", readme.BEGIN, readme.END + readme.BEGIN, 2 * (readme.BEGIN + readme.END)]
)
@pytest.mark.parametrize("option", ["--check", "--write"])
def test_markers_must_be_there_once(
    text: str, option: str, files: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, options = files
    path.write_text(text)
    assert readme.main([option, *options]) == 1
    assert f"expected one {readme.BEGIN} and after it one {readme.END}" in capsys.readouterr().err
    assert path.read_text() == text


def test_the_readme_has_the_table_of_the_committed_results() -> None:
    assert readme.main(["--check"]) == 0

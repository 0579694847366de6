"""Choosing a configuration: forced, pruned, remembered in memory and in a file, measured once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilevit_kernels.triton_kernels import tuning
from mobilevit_kernels.triton_kernels.launch import TARGETS, Config, Launch, launch, record, target_of

SMALL, LARGE, OTHER = (Config.of(BLOCK=size) for size in (16, 32, 64))
TARGET = TARGETS["sm_90"]
KEY = (8, 64, "torch.float16", 0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Config]]:
    """Pretends to be a GPU on which LARGE is the fastest; lists every configuration that is measured."""
    runs: list[Config] = []

    def measure(family: str, key: Any, candidates: Any, run: Any) -> Config:
        for candidate in candidates:
            run(candidate)
        tuning._remember(family, key, LARGE)
        return LARGE

    monkeypatch.setattr(tuning, "interpreted", lambda: False)
    monkeypatch.setattr(tuning, "_measure", measure)
    monkeypatch.setattr(tuning, "cache_file", lambda index: tmp_path / "folder" / "cache.json")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.delenv("MOBILEVIT_TRITON_AUTOTUNE", raising=False)
    monkeypatch.setattr(tuning, "_chosen", {})
    tuning._read.cache_clear()
    yield runs
    tuning._read.cache_clear()


def choose(runs: list[Config], candidates: tuple[Config, ...] = (SMALL, LARGE), key: Any = KEY) -> Config:
    return tuning.choose("family", "half 32", TARGET, key, candidates, runs.append)


def test_measured_once_for_a_key(measured: list[Config]) -> None:
    assert choose(measured) == LARGE
    assert measured == [SMALL, LARGE]
    assert choose(measured) == LARGE
    assert measured == [SMALL, LARGE]
    choose(measured, key=(9, *KEY[1:]))
    assert len(measured) == 4


def test_another_process_reads_the_choice_from_the_file(measured: list[Config]) -> None:
    choose(measured)
    tuning._chosen.clear()
    tuning._read.cache_clear()
    measured.clear()
    assert choose(measured) == LARGE
    assert measured == []


def test_a_choice_that_is_no_candidate_any_more_is_measured_again(measured: list[Config]) -> None:
    choose(measured)
    tuning._chosen.clear()
    measured.clear()
    choose(measured, candidates=(SMALL, OTHER))
    assert measured == [SMALL, OTHER]


@pytest.mark.parametrize("content", ["", "no json", "[]", '{"family 8 64 torch.float16": 3}'])
def test_a_damaged_file_costs_a_measurement(measured: list[Config], content: str) -> None:
    path = tuning.cache_file(0)
    path.parent.mkdir()
    path.write_text(content)
    assert choose(measured) == LARGE
    assert measured == [SMALL, LARGE]


def test_a_folder_that_cannot_be_written_costs_nothing_else(
    measured: list[Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tuning, "cache_file", lambda index: tmp_path / "file" / "cache.json")
    assert choose(measured) == LARGE


def test_switched_off_by_the_environment(measured: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEVIT_TRITON_AUTOTUNE", "0")
    assert choose(measured) == SMALL
    assert measured == []


def test_nothing_is_measured_during_capture_nor_remembered(
    measured: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert choose(measured) == SMALL
    assert choose(measured) == LARGE


def test_one_candidate_is_not_measured(measured: list[Config]) -> None:
    assert choose(measured, candidates=(SMALL,)) == SMALL
    assert measured == []


def test_forced_configurations_nest_and_end(measured: list[Config]) -> None:
    with tuning.force_config("family", OTHER):
        assert choose(measured) == OTHER
        with tuning.force_config("family", SMALL):
            assert choose(measured) == SMALL
        assert choose(measured) == OTHER
    assert measured == []
    assert choose(measured) == LARGE


def test_candidates_that_spill_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_spills", lambda: {"sm_90": {"family half 32": [str(SMALL)]}})
    tuning.without_spills.cache_clear()
    assert tuning.without_spills("family", "half 32", TARGET, (SMALL, LARGE)) == (LARGE,)
    assert tuning.without_spills("family", "half 64", TARGET, (SMALL, LARGE)) == (SMALL, LARGE)
    assert tuning.without_spills("family", "half 32", TARGETS["sm_80"], (SMALL, LARGE)) == (SMALL, LARGE)
    assert tuning.without_spills("family", "half 32", TARGET, (SMALL,)) == (SMALL,)
    tuning.without_spills.cache_clear()


def test_only_a_few_candidates_are_tried() -> None:
    many = tuple(Config.of(BLOCK=2**power) for power in range(4, 12))
    assert tuning.without_spills("family", "half 32", TARGET, many) == many[: tuning.MAX_CANDIDATES]


@pytest.mark.parametrize(
    ("arch", "recorded"),
    [(80, "sm_80"), (86, "sm_80"), (89, "sm_80"), (90, "sm_90"), (100, "sm_100"), (120, "sm_100")],
)
def test_registers_of_other_devices_are_those_of_their_generation(arch: int, recorded: str) -> None:
    assert TARGET._replace(arch=arch).recorded_as == recorded


def test_recording_describes_every_candidate_and_starts_nothing() -> None:
    described: list[Launch] = []
    x = torch.empty(4, device="meta")

    def run(config: Config) -> None:
        launch("kernel", 1, (x, 3), config, FLAG=True)

    with record(TARGETS["gfx942"], described.append):
        assert target_of(x) == TARGETS["gfx942"]
        tuning.choose("family", "half 32", TARGETS["gfx942"], KEY, (SMALL, LARGE), run)
    assert [item.choice.config for item in described if item.choice is not None] == [SMALL, LARGE]
    assert described[0].keywords == {"FLAG": True, "BLOCK": 16, "num_warps": 4, "num_stages": 1}
    assert described[0].arguments == (x, 3)


def test_every_recorded_spill_names_a_target_and_configurations() -> None:
    for target, groups in tuning._spills().items():
        assert target in TARGETS
        assert all(
            configs and all("num_warps=" in config for config in configs) for configs in groups.values()
        )

"""The statement of what multi-scale sampling saves."""

from pathlib import Path

import pytest

from bench import multi_scale
from mobilevit_kernels.data import SingleScaleBatchSampler, VariableBatchSampler


def test_counts_of_the_fixed_sampler() -> None:
    """16 batches of 8 on each of 2 processes hold 2 * 128 images, 6 more than there are."""
    sampler = SingleScaleBatchSampler(250, 32, 8, rank=0, world_size=2)
    updates, repeated, pixels = multi_scale.counts(sampler, epochs=3)
    assert (updates, pixels) == (3 * 16, 32 * 32)
    assert repeated == pytest.approx(6 / 250)


def test_counts_are_those_of_the_batches() -> None:
    sampler = VariableBatchSampler(500, 64, 8, 32, 96)
    batches = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches += list(sampler)
    requests = [request for batch in batches for request in batch]
    updates, repeated, pixels = multi_scale.counts(sampler, epochs=2)
    assert updates == len(batches)
    assert repeated == pytest.approx(len(requests) / 1000 - 1)
    assert pixels == pytest.approx(sum(h * w for h, w, _ in requests) / len(requests))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts resident memory as Linux does")
def test_tables(tmp_path: Path) -> None:
    assert multi_scale.main(["--smoke", "--batch", "4", "--output", str(tmp_path)]) == 0
    lines = (tmp_path / "multi_scale.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines if line.startswith("| fixed 256")] == ["2,504"]
    small, large = ([float(cell) for cell in line.split(" | ")[4:6]] for line in lines[-2:])
    # With one batch size for all scales, the largest needs more than the smallest.
    assert small[0] == large[0] == 4
    assert 0 < small[1] < large[1]

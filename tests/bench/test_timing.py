"""The rate that results are compared with: counted as torch counts, and the faster of what torch has."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mobilevit_kernels.benchmark.timing import matrix_rate


def clock(**rates: float) -> Callable[[Callable[[], object], int], float]:
    """A sampler by which torch's ops run at these rates, in operations per second."""

    def sample(function: Callable[[], object], calls: int) -> float:
        with FlopCounterMode(display=False) as counter:
            function()
        counts = counter.get_flop_counts()["Global"]
        return sum(count / rates[str(op).split(".")[-1]] for op, count in counts.items())

    return sample


@pytest.mark.parametrize(("mm", "convolution"), [(1e11, 2.5e11), (4e11, 3e11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_faster_of_product_and_convolution_counts(
    mm: float, convolution: float, dtype: torch.dtype
) -> None:
    rate = matrix_rate(dtype, 1, budget_s=0.0, size=64, sample=clock(mm=mm, convolution=convolution))
    assert rate == pytest.approx(max(mm, convolution))


def test_a_slow_product_is_measured_at_a_smaller_size() -> None:
    sizes = []

    def sample(function: Callable[[], object], calls: int) -> float:
        with FlopCounterMode(display=False) as counter:
            function()
        (count,) = counter.get_flop_counts()["Global"].values()
        sizes.append(round((count / 2) ** (1 / 3)))
        return count / 1e9

    rate = matrix_rate(torch.float32, 1, budget_s=0.0, device="meta", size=2048, sample=sample)
    assert rate == pytest.approx(1e9)
    assert set(sizes) == {256, 512}


def test_elsewhere_than_on_the_cpu_it_is_the_product() -> None:
    rate = matrix_rate(torch.float32, 1, 0.0, "meta", 64, clock(mm=1e11, convolution=2.5e11))
    assert rate == pytest.approx(1e11)


def test_it_runs_on_the_threads_asked_for_and_leaves_torch_as_it_was(restored_threads: None) -> None:
    torch.set_num_threads(2)
    seen = []

    def sample(function: Callable[[], object], calls: int) -> float:
        seen.append(torch.get_num_threads())
        return 1.0

    matrix_rate(torch.float32, 1, budget_s=0.0, size=64, sample=sample)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2

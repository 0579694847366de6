"""Memory of large maps is given out again, never while somebody holds it."""

import os
import threading

import pytest
import torch
from torch import Tensor

from mobilevit_kernels import ops
from mobilevit_kernels.ops.packing import pack_convolution

SIDE, CHANNELS = 640, 16  # 26 MB: kept when nobody uses it
IDENTITY = torch.eye(CHANNELS)[:, :, None, None]


def copy_of(x: Tensor) -> Tensor:
    """A 1x1 convolution that changes nothing."""
    return ops.convolution(x, pack_convolution(IDENTITY, torch.zeros(CHANNELS)), CHANNELS)


def large_map(value: float) -> Tensor:
    return torch.full((1, CHANNELS, SIDE, SIDE), value).contiguous(memory_format=torch.channels_last)


def test_memory_is_used_again_when_it_is_free() -> None:
    out = copy_of(large_map(1.0))
    assert out.is_contiguous(memory_format=torch.channels_last)
    address = out.data_ptr()
    del out
    assert copy_of(large_map(2.0)).data_ptr() == address


def test_what_somebody_holds_stays_as_it_is() -> None:
    held = [copy_of(large_map(float(i))) for i in range(4)]
    view = held[0][:, 3:5, 7]
    held[0] = view
    copies = [copy_of(large_map(-1.0)) for _ in range(4)]
    assert torch.equal(view, torch.zeros_like(view))
    assert all(torch.equal(out, large_map(float(i))) for i, out in enumerate(held[1:], start=1))
    assert len({out.data_ptr() for out in (*held[1:], *copies)}) == 7


def test_threads_do_not_share_memory() -> None:
    failures: list[float] = []

    def work(value: float) -> None:
        for _ in range(10):
            if not bool((copy_of(large_map(value)) == value).all()):
                failures.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_idle_and_used_memory_are_no_more_than_was_used() -> None:
    # After this, glibc takes blocks of such sizes from its heap, which shrinks only from its end.
    torch.empty(31 << 20, dtype=torch.uint8)
    maps = [copy_of(large_map(0.0)) for _ in range(20)]  # 520 MB
    used = resident_bytes()
    del maps
    assert used - resident_bytes() < 100e6
    larger = torch.zeros(2, CHANNELS, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    others = [copy_of(larger) for _ in range(9)]  # of a size that no idle block has
    assert resident_bytes() < used + 100e6
    assert len({out.data_ptr() for out in others}) == 9


def test_idle_memory_can_be_given_back() -> None:
    out = copy_of(large_map(0.0))
    used = resident_bytes()
    del out
    assert used - resident_bytes() < 10e6
    ops.release_idle_maps()
    assert used - resident_bytes() > 20e6


def test_training_uses_memory_again_too() -> None:
    norm = [torch.ones(CHANNELS), torch.zeros(CHANNELS)]
    x = large_map(1.0).requires_grad_()
    out = ops.batch_norm(x, *norm, 1e-5, True)[0]
    address = out.data_ptr()
    del out
    assert ops.batch_norm(x, *norm, 1e-5, True)[0].data_ptr() == address


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype: torch.dtype) -> None:
    x = torch.full((2, CHANNELS, SIDE, SIDE), 3.0, dtype=dtype)
    assert torch.equal(copy_of(x), x)

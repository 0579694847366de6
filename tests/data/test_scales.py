"""Sizes and batch sizes against the published tables of the multi-scale sampler."""

from typing import Any

import pytest

from mobilevit_kernels.data import VariableBatchSampler, scale_list


def square(*sides: int) -> list[tuple[int, int]]:
    return [(side, side) for side in sides]


@pytest.mark.parametrize(
    ("options", "sides", "batches"),
    [
        ({}, (160, 192, 256, 288, 320), (327, 227, 128, 101, 81)),
        ({"base_size": 224, "min_size": 128}, (128, 192, 224, 288, 320), (392, 174, 128, 77, 62)),
        ({"base_batch_size": 1}, (160, 192, 256, 288, 320), (2, 1, 1, 1, 1)),
        ({"num_scales": 1}, (160, 256), (327, 128)),
        ({"min_size": 320}, (256, 320), (128, 81)),
    ],
)
def test_published_tables(options: dict[str, Any], sides: tuple[int, ...], batches: tuple[int, ...]) -> None:
    scales = VariableBatchSampler(10, **options).scales
    assert [scale[:2] for scale in scales] == square(*sides)
    assert [scale.batch for scale in scales] == list(batches)


def test_sides_stay_paired_and_the_base_is_one_of_them() -> None:
    sizes = scale_list(base_size=(96, 160), min_size=(64, 96), max_size=(128, 224), num_scales=3, divisor=32)
    assert sizes == [(64, 96), (96, 160), (128, 224)]
    sizes = scale_list(base_size=(128, 96), min_size=(64, 96), max_size=(128, 224), num_scales=3, divisor=32)
    assert sizes == [(64, 96), (96, 160), (128, 96), (128, 224)]


def test_pixels_of_a_batch_stay_below_those_of_the_base() -> None:
    for height, width, batch in VariableBatchSampler(10, base_size=(192, 256), base_batch_size=24).scales:
        pixels, limit = height * width * batch, 192 * 256 * 24
        assert pixels <= 1.001 * limit < pixels + height * width * 1.001


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("base_size", 0, ValueError, "base_size: expected an int of at least 1, got 0"),
        (
            "base_size",
            (1, 2, 3),
            TypeError,
            r"base_size: expected an int or \(height, width\), got \(1, 2, 3\)",
        ),
        ("max_size", "64", TypeError, "max_size: expected an int or"),
        ("min_size", 352, ValueError, r"min_size: expected at most max_size \(320, 320\), got \(352, 352\)"),
        ("num_scales", 2.5, TypeError, "num_scales: expected an int, got 2.5"),
        ("divisor", True, TypeError, "divisor: expected an int, got True"),
        ("base_batch_size", -1, ValueError, "base_batch_size: expected an int of at least 1, got -1"),
    ],
)
def test_bad_input(name: str, value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VariableBatchSampler(10, **{name: value})

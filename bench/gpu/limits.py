"""What no implementation can beat: the bytes that must move, and the multiply-adds that must be done."""

from dataclasses import dataclass

import torch

from bench.shapes import StageShape
from mobilevit_kernels.benchmark.timing import Sampler, time_in_turn

_STATISTICS_BYTES = 4  # logsumexp and scores are float32


@dataclass(frozen=True)
class Limits:
    """Needs of one call, and the measured rates of the device.

    Attributes:
        bytes_moved: every input read once, every result written once.
        repeated_bytes: the same where tensors that a second pass needs are read from memory again.
        flops: operations of the matrix products (a multiply-add is two).
        copy_rate: bytes per second, read and written, of a large copy.
        matrix_rate: operations per second of a large matrix product in the same dtype.
    """

    bytes_moved: float
    repeated_bytes: float
    flops: float
    copy_rate: float
    matrix_rate: float

    def fractions(self, seconds: float) -> dict[str, float]:
        """How near a time is to each limit: 1 is at the limit.

        "copy" counts ``bytes_moved``, "copy, second pass" ``repeated_bytes``, "matrix" ``flops``; "nearer" is the
        larger of "copy" and "matrix": the limit that this problem meets first.
        """
        copy = self.bytes_moved / self.copy_rate / seconds
        matrix = self.flops / self.matrix_rate / seconds
        return {
            "copy": copy,
            "copy, second pass": self.repeated_bytes / self.copy_rate / seconds,
            "matrix": matrix,
            "nearer": max(copy, matrix),
        }


def moved_bytes(shape: StageShape, batch: int, itemsize: int, direction: str) -> tuple[float, float]:
    """Bytes of one call: each tensor once, and with the tensors of a second pass again.

    With M = B * C * H * W elements of a map:

    - ``unfold_attn_fold`` forward reads qkv (3M) and writes the output (M). Forward and backward writes and reads one
      logsumexp per token and head, and the backward reads qkv, output and its gradient (5M) and writes 3M.
    - ``separable_attn`` forward reads x and writes the output (2M); pooling needs all tokens of a group before any of
      them can be finished, so a kernel that cannot hold a group reads x twice (3M). Forward and backward writes and
      reads one score per token, and the backward reads x and the output's gradient and writes the gradient of x
      (3M), or with both read twice 5M. Weights are read once and their gradients written once.

    Args:
        shape: the stage.
        batch: samples.
        itemsize: bytes of an element.
        direction: "forward" or "forward+backward".

    Returns:
        (each once, with a second pass).
    """
    pixels = batch * shape.side**2
    one_map = float(pixels * shape.channels * itemsize)
    backward = direction != "forward"
    if shape.op == "unfold_attn_fold":
        statistics = 2.0 * _STATISTICS_BYTES * pixels * shape.num_heads
        once = 4 * one_map + (8 * one_map + statistics if backward else 0.0)
        return once, once
    weights = float((3 * shape.channels**2 + 3 * shape.channels + 1) * itemsize)
    statistics = 2.0 * _STATISTICS_BYTES * pixels
    once = 2 * one_map + weights + (3 * one_map + 2 * weights + statistics if backward else 0.0)
    return once, once + one_map + (2 * one_map if backward else 0.0)


def copy_rate(device: torch.device, size_bytes: int, budget_s: float, sample: Sampler) -> float:
    """Bytes per second, read plus written, of a copy from one large tensor to another."""
    source = torch.randint(-128, 127, (size_bytes,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    timing = time_in_turn({"copy": lambda: target.copy_(source)}, budget_s, sample=sample)["copy"]
    return 2 * size_bytes / timing.median_s

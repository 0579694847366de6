"""Batch samplers that choose the image size of each batch."""

from mobilevit_kernels.data.checks import checked_int, checked_size
from mobilevit_kernels.data.scale_sampler import ScaleBatchSampler
from mobilevit_kernels.data.scales import Scale, Size, scale_list, variable_batch


class VariableBatchSampler(ScaleBatchSampler):
    """Multi-scale sampling with variable batch size (MSc-VBS, section 3.3 of arXiv 2110.02178).

    Small images come in large batches and large images in small ones, so that each batch has about as many pixels as
    one of ``base_batch_size`` images at ``base_size``: 327, 227, 128, 101 and 81 images of 160, 192, 256, 288 and 320
    pixels a side by default. Use it as ``DataLoader(SizedDataset(...), batch_sampler=...)``. Evaluation is at one
    size: ``SingleScaleBatchSampler(..., shuffle=False, wrap=False)``.

    Args:
        num_samples: samples of the dataset.
        base_size: (height, width) or one int, pixels.
        base_batch_size: images per process at ``base_size``.
        min_size: smallest size, as ``base_size``.
        max_size: largest size, as ``base_size``.
        num_scales: as in :func:`scale_list`.
        divisor: of every side.
        shuffle: as in :class:`ScaleBatchSampler`, and so the rest.
        seed: not negative.
        rank: this process.
        world_size: processes.

    Raises:
        TypeError: an argument is no int, or no size.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_samples: int,
        base_size: Size = 256,
        base_batch_size: int = 128,
        min_size: Size = 160,
        max_size: Size = 320,
        num_scales: int = 5,
        divisor: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        sizes = scale_list(base_size, min_size, max_size, num_scales, divisor)
        base, base_batch = (
            checked_size("base_size", base_size),
            checked_int("base_batch_size", base_batch_size),
        )
        scales = [Scale(*size, variable_batch(size, base, base_batch)) for size in sizes]
        super().__init__(num_samples, scales, shuffle, seed, rank, world_size)


class MultiScaleBatchSampler(ScaleBatchSampler):
    """Multi-scale sampling with one batch size for all scales (MSc-FBS).

    Args and errors as of :class:`VariableBatchSampler`, with ``batch_size`` images per process at every scale.
    """

    def __init__(
        self,
        num_samples: int,
        base_size: Size = 256,
        batch_size: int = 128,
        min_size: Size = 160,
        max_size: Size = 320,
        num_scales: int = 5,
        divisor: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        batch = checked_int("batch_size", batch_size)
        sizes = scale_list(base_size, min_size, max_size, num_scales, divisor)
        super().__init__(
            num_samples, [Scale(*size, batch) for size in sizes], shuffle, seed, rank, world_size
        )


class SingleScaleBatchSampler(ScaleBatchSampler):
    """Batches of one size and number (SSc-FBS); with ``shuffle=False, wrap=False`` the sampler of evaluation.

    Args:
        num_samples: samples of the dataset.
        size: (height, width) or one int, pixels.
        batch_size: images per process.
        shuffle: as in :class:`ScaleBatchSampler`, and so the rest.
        seed: not negative.
        rank: this process.
        world_size: processes.
        wrap: fill up the last batch.

    Raises:
        TypeError: an argument is no int, or no size.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_samples: int,
        size: Size = 256,
        batch_size: int = 128,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        wrap: bool = True,
    ) -> None:
        scale = Scale(*checked_size("size", size), checked_int("batch_size", batch_size))
        super().__init__(num_samples, [scale], shuffle, seed, rank, world_size, wrap)

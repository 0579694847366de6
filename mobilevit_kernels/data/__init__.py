"""Multi-scale sampling for training: batch samplers that also choose the image size, and a dataset that obeys."""

from mobilevit_kernels.data.dataset import SizedDataset
from mobilevit_kernels.data.samplers import (
    MultiScaleBatchSampler,
    SingleScaleBatchSampler,
    VariableBatchSampler,
)
from mobilevit_kernels.data.scale_sampler import ScaleBatchSampler
from mobilevit_kernels.data.scales import Scale, scale_list
from mobilevit_kernels.data.seeding import derived_seed, seeded

__all__ = [
    "MultiScaleBatchSampler",
    "Scale",
    "ScaleBatchSampler",
    "SingleScaleBatchSampler",
    "SizedDataset",
    "VariableBatchSampler",
    "derived_seed",
    "scale_list",
    "seeded",
]

"""The sampler and the dataset in torch's DataLoader, with and without workers."""

import random
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mobilevit_kernels.data import SizedDataset, VariableBatchSampler, derived_seed, seeded

OPTIONS = {"base_size": 32, "base_batch_size": 4, "min_size": 16, "max_size": 48, "divisor": 16}
SAMPLES = [(float(index), index) for index in range(29)]


def noisy(image: float, size: tuple[int, int]) -> Tensor:
    """A map of the size, its first pixel the image, with noise of all three generators."""
    out = torch.rand(1, *size) + random.random() + np.random.rand()
    out[0, 0, 0] = image
    return out


def pieces(workers: int, **loading: Any) -> tuple[VariableBatchSampler, SizedDataset, DataLoader]:
    sampler = VariableBatchSampler(len(SAMPLES), **OPTIONS)
    dataset = SizedDataset(SAMPLES, noisy, seed=5)
    return sampler, dataset, DataLoader(dataset, batch_sampler=sampler, num_workers=workers, **loading)


def epochs(workers: int, count: int, **loading: Any) -> list[list[tuple[Tensor, Tensor]]]:
    sampler, dataset, loader = pieces(workers, **loading)
    results = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        dataset.set_epoch(epoch)
        results.append([(images, labels) for images, labels in loader])
    return results


def check_equal(actual: list[Any], expected: list[Any]) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_size_reaches_the_transform(workers: int) -> None:
    sampler, _, loader = pieces(workers)
    batches = list(loader)
    assert len(batches) == len(loader) == len(sampler)
    for (images, labels), scale in zip(batches, sampler.scales_of_epoch(0), strict=True):
        assert images.shape == (scale.batch, 1, scale.height, scale.width)
        assert images[:, 0, 0, 0].tolist() == labels.tolist()
    assert set(torch.cat([labels for _, labels in batches]).tolist()) == set(range(29))


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_nothing(persistent: bool) -> None:
    alone = epochs(0, 2)
    check_equal(epochs(2, 2, persistent_workers=persistent), alone)
    assert not torch.equal(alone[0][0][0].flatten()[:200], alone[1][0][0].flatten()[:200])


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_in_mid_epoch(workers: int) -> None:
    """The loop counts its batches: the workers have asked the sampler for more."""
    sampler, dataset, loader = pieces(workers)
    sampler.set_epoch(1)
    dataset.set_epoch(1)
    whole = [(images, labels) for images, labels in loader]
    for done in (1, len(whole) - 1):
        consumed = list(islice(loader, done))
        assert len(consumed) == done
        state = sampler.state_dict(done)
        if workers:
            assert done < sampler.state_dict()["batches"] <= len(whole) or done == len(whole) - 1
        again, fresh, resumed = pieces(workers)
        again.load_state_dict(state)
        fresh.set_epoch(again.epoch)
        check_equal(list(resumed), [list(batch) for batch in whole[done:]])


def test_random_state_comes_back() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(1, 2):
        print(torch.rand(3), random.random(), np.random.rand(), 1 / 0)
    with seeded(1, 2):
        inside = torch.rand(3), random.random(), np.random.rand()
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    with seeded(1, 2):
        assert torch.equal(torch.rand(3), inside[0])
        assert (random.random(), np.random.rand()) == inside[1:]


def test_seeds_depend_on_every_part_and_their_order() -> None:
    parts = [(0,), (1,), (0, 1), (1, 0), (0, 1, 2), (2**40,)]
    assert len({derived_seed(*part) for part in parts}) == len(parts)


def test_bad_seed_and_epoch() -> None:
    with pytest.raises(ValueError, match="seed: expected an int of at least 0, got -1"):
        SizedDataset(SAMPLES, noisy, seed=-1)
    with pytest.raises(TypeError, match="epoch: expected an int, got 0.5"):
        SizedDataset(SAMPLES, noisy).set_epoch(0.5)

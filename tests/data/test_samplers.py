"""What the batch samplers hand out: which samples, at which sizes, on which rank, in which order."""

import random
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobilevit_kernels.data import (
    MultiScaleBatchSampler,
    Scale,
    ScaleBatchSampler,
    SingleScaleBatchSampler,
    VariableBatchSampler,
)

SMALL = {"base_size": 64, "base_batch_size": 8, "min_size": 32, "max_size": 96}
Batches = list[list[tuple[int, int, int]]]


def indices(batches: Batches) -> list[int]:
    return [index for batch in batches for _, _, index in batch]


def sizes(batches: Batches) -> list[tuple[int, int, int]]:
    """(height, width, images) of every batch, which has one size only."""
    (*shapes,) = ({(height, width) for height, width, _ in batch} for batch in batches)
    assert all(len(shape) == 1 for shape in shapes)
    return [(*shape.pop(), len(batch)) for shape, batch in zip(shapes, batches, strict=True)]


problems = st.fixed_dictionaries(
    {
        "num_samples": st.integers(1, 300),
        "base_size": st.tuples(st.integers(16, 96), st.integers(16, 96)),
        "base_batch_size": st.integers(1, 40),
        "min_size": st.just(16),
        "max_size": st.integers(16, 128),
        "num_scales": st.integers(1, 6),
        "divisor": st.sampled_from([1, 8, 32]),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 2**40),
    }
)


@given(problem=problems, epoch=st.integers(0, 1000), world_size=st.integers(1, 5))
def test_every_sample_and_every_rank(problem: dict[str, Any], epoch: int, world_size: int) -> None:
    samplers = [VariableBatchSampler(**problem, rank=r, world_size=world_size) for r in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    lengths = [len(sampler) for sampler in samplers]
    ranks = [list(sampler) for sampler in samplers]
    assert [len(batches) for batches in ranks] == lengths
    for batches in ranks:
        assert sizes(batches) == sizes(ranks[0])
        assert set(sizes(batches)) <= {tuple(scale) for scale in samplers[0].scales}
    drawn = [indices(batches) for batches in ranks]
    assert set().union(*drawn) == set(range(problem["num_samples"]))
    # Less than a batch is added to a rank's share, and less than a sample per rank to the list.
    share = -(-problem["num_samples"] // world_size)
    assert share <= len(drawn[0]) < share + sizes(ranks[0])[-1][2]


@given(num_samples=st.integers(1, 100), world_size=st.integers(1, 4), batch=st.integers(1, 40))
def test_wrap_around(num_samples: int, world_size: int, batch: int) -> None:
    """In the dataset's order the batches can be written down."""
    share = -(-num_samples // world_size)
    for rank in range(world_size):
        sampler = SingleScaleBatchSampler(
            num_samples, 32, batch, shuffle=False, rank=rank, world_size=world_size
        )
        mine = [(rank + world_size * place) % num_samples for place in range(share)]
        count = -(-share // batch)
        repeated = mine * (count * batch // share + 1)
        expected = [repeated[batch * number : batch * (number + 1)] for number in range(count)]
        assert [[index for _, _, index in drawn] for drawn in sampler] == expected


@given(num_samples=st.integers(1, 60), world_size=st.integers(1, 4), batch=st.integers(1, 40))
def test_evaluation_gives_each_sample_once_at_one_size(num_samples: int, world_size: int, batch: int) -> None:
    samplers = [
        SingleScaleBatchSampler(num_samples, (32, 48), batch, False, 0, rank, world_size, wrap=False)
        for rank in range(world_size)
    ]
    ranks = [list(sampler) for sampler in samplers]
    assert [len(batches) for batches in ranks] == [len(sampler) for sampler in samplers]
    assert Counter(i for batches in ranks for i in indices(batches)) == Counter(range(num_samples))
    assert {size[:2] for batches in ranks for size in sizes(batches)} == {(32, 48)}
    assert all(len(drawn) == batch for batches in ranks for drawn in batches[:-1])


@given(problem=problems, epoch=st.integers(0, 50))
def test_resumes_at_every_batch(problem: dict[str, Any], epoch: int) -> None:
    sampler = VariableBatchSampler(**problem)
    sampler.set_epoch(epoch)
    whole = list(sampler)
    for done in range(len(whole) + 1):
        fresh = VariableBatchSampler(**problem)
        fresh.load_state_dict(sampler.state_dict(done))
        fresh.set_epoch(epoch)
        assert list(fresh) == whole[done:]
        assert list(fresh) == whole
        assert len(fresh) == len(whole)


@pytest.mark.parametrize("done", [0, 1, 5])
def test_state_counts_what_was_handed_out(done: int) -> None:
    sampler, again = VariableBatchSampler(100, **SMALL), VariableBatchSampler(100, **SMALL)
    again.set_epoch(3)
    whole = list(again)
    sampler.set_epoch(3)
    assert list(islice(sampler, done)) == whole[:done]
    fresh = VariableBatchSampler(100, **SMALL)
    fresh.load_state_dict(sampler.state_dict())
    assert (fresh.epoch, list(fresh)) == (3, whole[done:])


def test_state_of_a_finished_epoch_goes_on_with_the_next() -> None:
    sampler = VariableBatchSampler(100, **SMALL)
    list(sampler)
    fresh = VariableBatchSampler(100, **SMALL)
    fresh.load_state_dict(sampler.state_dict())
    resumed = []
    for epoch in range(fresh.epoch, 2):
        fresh.set_epoch(epoch)
        resumed += list(fresh)
    sampler.set_epoch(1)
    assert resumed == list(sampler)


def test_state_is_the_same_on_all_ranks_and_plain_data() -> None:
    states = [VariableBatchSampler(9, **SMALL, rank=r, world_size=2).state_dict(1) for r in (0, 1)]
    assert states[0] == states[1]
    assert eval(repr(states[0])) == states[0]


def test_epochs_and_seeds_differ() -> None:
    drawn = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = VariableBatchSampler(200, **SMALL, seed=seed)
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert indices(drawn[first]) != indices(drawn[second])
        assert sizes(drawn[first]) != sizes(drawn[second])


def test_all_scales_are_equally_likely() -> None:
    sampler = VariableBatchSampler(100_000, **SMALL)
    counts = Counter(sampler.scales_of_epoch(0))
    expected = len(sampler) / len(sampler.scales)
    # Four standard deviations of the binomial distribution.
    assert all(abs(counts[scale] - expected) < 4 * expected**0.5 for scale in sampler.scales)


def test_fixed_batch_forms() -> None:
    sampler = MultiScaleBatchSampler(100, base_size=64, batch_size=7, min_size=32, max_size=96)
    drawn = sizes(list(sampler))
    assert {batch for _, _, batch in drawn} == {7}
    assert {height for height, _, _ in drawn} == {32, 64, 96}
    assert len(sampler) == 15
    assert sizes(list(SingleScaleBatchSampler(20, (32, 64), 7))) == 3 * [(32, 64, 7)]


def test_no_global_random_state_is_touched() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    list(VariableBatchSampler(50, **SMALL))
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    first = list(VariableBatchSampler(50, **SMALL))
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    assert list(VariableBatchSampler(50, **SMALL)) == first


@pytest.mark.parametrize("frames", ["sampler", "batch_sampler"])
def test_frameworks_find_set_epoch(frames: str) -> None:
    """Lightning calls loader.batch_sampler.sampler.set_epoch, accelerate loader.batch_sampler.set_epoch."""
    sampler = VariableBatchSampler(100, **SMALL)
    loader = torch.utils.data.DataLoader(range(100), batch_sampler=sampler)
    (loader.batch_sampler.sampler if frames == "sampler" else loader.batch_sampler).set_epoch(4)
    assert sampler.epoch == 4
    assert len(loader) == len(list(sampler))


def test_states_of_other_samplers_are_refused() -> None:
    state = VariableBatchSampler(100, **SMALL).state_dict()
    for other in (
        VariableBatchSampler(101, **SMALL),
        VariableBatchSampler(100, **SMALL, seed=1),
        VariableBatchSampler(100, **SMALL, shuffle=False),
        VariableBatchSampler(100, **SMALL, rank=0, world_size=2),
        SingleScaleBatchSampler(100, 64, 8),
    ):
        with pytest.raises(ValueError, match=r"state: expected \w+ .*, that of this sampler, got "):
            other.load_state_dict(state)


def test_bad_input() -> None:
    for arguments, message in (
        ({"num_samples": 0}, "num_samples: expected an int of at least 1, got 0"),
        ({"seed": -1}, "seed: expected an int of at least 0, got -1"),
        ({"rank": 0}, "rank, world_size: expected both or neither, got rank 0, world_size None"),
        ({"rank": 2, "world_size": 2}, "rank: expected less than world_size 2, got 2"),
        ({"rank": -1, "world_size": 2}, "rank: expected an int of at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            VariableBatchSampler(**{"num_samples": 10, **arguments})
    with pytest.raises(ValueError, match="scales: expected at least one, got none"):
        ScaleBatchSampler(10, [])
    with pytest.raises(ValueError, match="scales: batch: expected an int of at least 1, got 0"):
        ScaleBatchSampler(10, [Scale(32, 32, 0)])
    sampler = VariableBatchSampler(10)
    with pytest.raises(ValueError, match="epoch: expected an int of at least 0, got -1"):
        sampler.set_epoch(-1)
    with pytest.raises(ValueError, match="batches: expected at most 1, the batches of the epoch, got 2"):
        sampler.state_dict(2)
    with pytest.raises(
        ValueError, match=r"state\['batches'\]: expected at most the batches of epoch 0, got 2"
    ):
        sampler.load_state_dict({**sampler.state_dict(), "batches": 2})

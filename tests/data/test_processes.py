"""Two processes against one with the joined batch: samples, gradients, sharded weights."""

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from parallel_training import (
    BATCH,
    PROCESSES,
    SAMPLES,
    Results,
    batches,
    gradients,
    make_model,
    trained,
    work,
)
from torch import Tensor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch is built without gloo"),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """What each process computed."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(work, (folder,), nprocs=PROCESSES)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def check_close(actual: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-9) -> None:
    assert actual.keys() == expected.keys()
    scale = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=rtol, atol=rtol * scale, msg=name)


def test_the_samples_are_those_of_one_process(ranks: list[Results]) -> None:
    joined = [indices.tolist() for _, _, indices in batches(PROCESSES * BATCH)]
    assert len(joined) == len(ranks[0]["indices"]) == len(ranks[1]["indices"])
    for number, expected in enumerate(joined[:-1]):
        # Each rank takes every second sample.
        merged = itertools.chain(*zip(*(rank["indices"][number] for rank in ranks), strict=True))
        assert list(merged) == expected


def test_no_process_is_idle_and_sizes_are_in_step(ranks: list[Results]) -> None:
    shapes = [[shape for shape, _ in rank["variable"]] for rank in ranks]
    assert shapes[0] == shapes[1]
    assert len(set(shapes[0])) > 2
    drawn = {index for rank in ranks for _, indices in rank["variable"] for index in indices}
    assert drawn == set(range(SAMPLES))


def test_gradients_are_those_of_the_joined_batch(ranks: list[Results]) -> None:
    """With BatchNorm frozen, for otherwise each process normalizes with the statistics of its own half."""
    model = make_model(frozen=True)
    for number, batch in enumerate(batches(PROCESSES * BATCH)[:-1]):
        expected = gradients(model, model, batch)
        for rank in ranks:
            check_close(rank["gradients frozen=True"][number], expected)


def test_gradients_with_batch_norm_are_the_mean_of_the_halves(ranks: list[Results]) -> None:
    """One process that takes the same halves one after the other, each with its own statistics."""
    model = make_model(frozen=False)
    for number, (images, labels, indices) in enumerate(batches(PROCESSES * BATCH)[:-1]):
        halves = [
            gradients(model, model, (images[rank::2], labels[rank::2], indices[rank::2])) for rank in (0, 1)
        ]
        expected = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
        for rank in ranks:
            check_close(rank["gradients frozen=False"][number], expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_sharded_training_ends_at_the_weights_of_one_process(ranks: list[Results], recompute: bool) -> None:
    """FSDP2, two steps of AdamW, without and with gradient checkpointing."""
    model = make_model(frozen=True)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(model, batches(PROCESSES * BATCH))
    expected = {name: p.detach() for name, p in model.named_parameters()}
    assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-3
    for rank in ranks:
        # Adam divides by the root of the squared gradient, which is tiny for some weights.
        check_close(rank[f"sharded recompute={recompute}"], expected, rtol=1e-6)

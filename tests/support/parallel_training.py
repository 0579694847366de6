"""Two gloo processes that train on the same samples as one: what each of them computes."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from mobilevit_kernels.data import SingleScaleBatchSampler, SizedDataset, VariableBatchSampler
from mobilevit_kernels.models import create_model

PROCESSES = 2
SAMPLES, CLASSES, SIDE, BATCH = 22, 5, 32, 4
Batch = tuple[Tensor, Tensor, Tensor]
Results = dict[str, Any]


class Noise:
    """Random images, as (index, label, index): the transform draws the pixels."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        return index, index % CLASSES, index


def pixels(_: int, size: tuple[int, int]) -> Tensor:
    """The image of a sample, which the dataset's seed determines."""
    return torch.rand(3, *size, dtype=torch.float64)


def batches(images: int, epoch: int = 0, variable: bool = False) -> list[Batch]:
    """(images, labels, indices) of an epoch, of this process."""
    kind = VariableBatchSampler if variable else SingleScaleBatchSampler
    sizes = {"min_size": 16, "max_size": 48, "divisor": 16} if variable else {}
    sampler = kind(SAMPLES, SIDE, images, **sizes, seed=3)
    dataset = SizedDataset(Noise(), pixels, seed=4)
    sampler.set_epoch(epoch)
    return list(DataLoader(dataset, batch_sampler=sampler))


def make_model(frozen: bool) -> nn.Module:
    """A model of random weights in float64; frozen: BatchNorm normalizes with its running statistics."""
    torch.manual_seed(0)
    model = create_model("mobilevit_xxs", num_classes=CLASSES).double()
    return model.train(not frozen)


def gradients(model: nn.Module, network: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
    """Of the mean cross entropy of a batch, by parameter."""
    images, labels, _ = batch
    F.cross_entropy(network(images), labels).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def trained(model: nn.Module, batches: list[Batch]) -> None:
    """Two steps of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for images, labels, _ in batches[:2]:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def shared_gradients(frozen: bool) -> list[dict[str, Tensor]]:
    """Of every batch, under DistributedDataParallel."""
    model = make_model(frozen)
    network = DistributedDataParallel(model)
    return [gradients(model, network, batch) for batch in batches(BATCH)]


def sharded_weights(recompute: bool) -> dict[str, Tensor]:
    """Full weights after training under FSDP2, the parts and the rest sharded over the processes.

    The parts are the stages, or the blocks, which gradient checkpointing recomputes.
    """
    model = make_model(frozen=True)
    model.set_grad_checkpointing(recompute)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    stages = list(model.stages.children())
    for part in [block for stage in stages for block in stage.children()] if recompute else stages:
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    local = sum(p.to_local().numel() for p in model.parameters())
    whole = sum(p.numel() for p in model.parameters())
    if not local < 0.6 * whole:
        raise AssertionError(f"expected half of {whole} weights in each process, got {local}")
    trained(model, batches(BATCH))
    return {name: p.full_tensor().detach() for name, p in model.named_parameters()}


def work(rank: int, folder: Path) -> None:
    """What one of the processes does; saves its results in ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    results: Results = {}
    for frozen in (True, False):
        results[f"gradients frozen={frozen}"] = shared_gradients(frozen)
    results["indices"] = [indices.tolist() for _, _, indices in batches(BATCH)]
    results["variable"] = [
        (tuple(images.shape), indices.tolist())
        for epoch in range(3)
        for images, _, indices in batches(BATCH, epoch, variable=True)
    ]
    for recompute in (False, True):
        results[f"sharded recompute={recompute}"] = sharded_weights(recompute)
    torch.save(results, folder / f"rank{rank}.pt")
    # What holds the group must be gone: it would end gloo's threads while they wait for the interpreter's lock.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()

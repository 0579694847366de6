"""Trains a MobileViT by its paper's recipe, on scikit-learn's handwritten digits or on folders of images.

python examples/train.py --model mobilevit_xxs --output runs/digits
python examples/train.py --model mobilevitv2_100 --data IMAGENET --workers 16 --output runs/v2
torchrun --nproc-per-node 2 examples/train.py --output runs/two

A run that was stopped, killed even, goes on with the same command and --resume, to the same weights. best.pt holds the
averaged weights of the best epoch, for `mobilevit classify IMAGE --weights OUTPUT/best.pt`.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from train_data import DIGITS, Data, load_data
from train_recipes import averaged, make_optimizer, make_schedule, recipe_of, scaled
from train_run import (
    Log,
    Progress,
    import_summary_writer,
    join_processes,
    leave_processes,
    load_state,
    save_state,
    share_buffers,
)

import mobilevit_kernels
from mobilevit_kernels.data import SingleScaleBatchSampler, VariableBatchSampler, derived_seed
from mobilevit_kernels.models.checkpoints import save_checkpoint

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LABEL_SMOOTHING = 0.1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="mobilevit_xxs", choices=mobilevit_kernels.list_models(), metavar="NAME"
    )
    parser.add_argument("--data", default=DIGITS, help="digits, or a folder with train/CLASS and val/CLASS")
    parser.add_argument(
        "--output", type=Path, default=Path("training_output"), help="folder of logs and checkpoints"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --output, if there is one"
    )
    parser.add_argument("--epochs", type=int, help="default: 20 for digits, else 300")
    parser.add_argument("--size", type=int, help="side of the images in pixels (digits: 64, else 256)")
    parser.add_argument(
        "--batch-size", type=int, help="images per process at that size (digits: 32, else 128)"
    )
    parser.add_argument(
        "--lr", type=float, help="peak learning rate (digits: 1e-3, else the recipe's, for this batch size)"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="bf16 and fp16 compute under autocast"
    )
    parser.add_argument("--limit", type=int, help="use only so many images of each part, to try things out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that read images, per process")
    parser.add_argument(
        "--checkpoint-every", type=int, default=500, metavar="UPDATES", help="besides each epoch's end"
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="write the logs for TensorBoard too: OUTPUT/tensorboard"
    )
    args = parser.parse_args()
    if args.tensorboard:
        import_summary_writer()
    small = args.data == DIGITS
    args.epochs = args.epochs or (20 if small else 300)
    args.size = args.size or (64 if small else 256)
    args.batch_size = args.batch_size or (32 if small else 128)
    args.lr = args.lr or (1e-3 if small else None)
    return args


class Training:
    """A run: everything that changes while it goes on, and how.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rank, self.processes, self.device = join_processes()
        recipe = recipe_of(args.model)
        torch.manual_seed(args.seed)
        dropout = {"drop_rate": recipe.drop_rate, "transformer_dropout": recipe.transformer_dropout}
        draft = mobilevit_kernels.create_model(args.model)
        crop, interpolation = draft.pretrained_cfg["crop_pct"], draft.pretrained_cfg["interpolation"]
        self.data: Data = load_data(args, recipe.strong, interpolation, crop)
        model = mobilevit_kernels.create_model(args.model, num_classes=len(self.data.classes), **dropout)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.averaged = averaged(self.model)
        self.sampler = self.make_sampler(recipe.multi_scale)
        self.updates = sum(len(self.sampler.scales_of_epoch(epoch)) for epoch in range(args.epochs))
        self.recipe = scaled(recipe, args.batch_size * self.processes, self.updates, args.lr)
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.schedule = make_schedule(self.optimizer, self.recipe, self.updates)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.precision == "fp16")
        self.step, self.best = 0, -1.0
        self.progress = Progress(self.rank == 0)

    def make_sampler(self, multi_scale: bool) -> VariableBatchSampler | SingleScaleBatchSampler:
        """The batches of this process: sizes from 5/8 to 5/4 of the base, as 160 to 320 are of 256, or one size."""
        size, batch, count = self.args.size, self.args.batch_size, len(self.data.train)
        if not multi_scale:
            return SingleScaleBatchSampler(count, size, batch, seed=self.args.seed)
        sizes = {"min_size": size * 5 // 8, "max_size": size * 5 // 4, "divisor": max(1, size // 8)}
        return VariableBatchSampler(count, size, batch, **sizes, seed=self.args.seed)

    @property
    def identity(self) -> dict[str, Any]:
        """What a run must share with the one that it resumes."""
        names = ("model", "data", "epochs", "size", "batch_size", "lr", "precision", "seed", "limit")
        return {"processes": self.processes, **{name: getattr(self.args, name) for name in names}}

    def state(self, batches: int) -> dict[str, Any]:
        """All that goes on after this many batches of the sampler's epoch; random numbers follow from the step."""
        return {
            "arguments": self.identity,
            "state_dict": self.model.state_dict(),
            "state_dict_ema": self.averaged.module.state_dict(),
            "averaged": int(self.averaged.n_averaged),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sampler": self.sampler.state_dict(batches),
            "step": self.step,
            "best": self.best,
        }

    def restore(self, path: Path) -> None:
        """Puts everything where ``state`` left it."""
        state = load_state(path, self.identity)
        self.model.load_state_dict(state["state_dict"])
        self.averaged.module.load_state_dict(state["state_dict_ema"])
        self.averaged.n_averaged.fill_(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.sampler.load_state_dict(state["sampler"])
        self.step, self.best = state["step"], state["best"]

    def update(self, network: nn.Module, images: Tensor, labels: Tensor) -> float:
        """One step of the optimizer; returns the loss before it."""
        # Dropout and mixing then do not depend on what ran before: a resumed run draws the same.
        torch.manual_seed(derived_seed(self.args.seed, self.step, self.rank))
        images = images.to(self.device, memory_format=torch.channels_last)
        images, targets = self.data.mix(images, labels.to(self.device))
        loss = F.cross_entropy(self.logits(network, images), targets, label_smoothing=LABEL_SMOOTHING)
        value = loss.item()
        if not math.isfinite(value):
            raise SystemExit(
                f"the loss of update {self.step} (epoch {self.sampler.epoch}, images {list(images.shape)}, learning "
                f"rate {self.schedule.get_last_lr()[0]:.2e}) is {value}; the last checkpoint is from before it. "
                "Try a lower --lr or --precision fp32"
            )
        self.scaler.scale(loss).backward()
        if self.recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.averaged.update_parameters(self.model)
        self.step += 1
        return value

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Float32 logits, computed in the precision of the run."""
        dtype = PRECISIONS[self.args.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return network(images).float()

    @torch.no_grad()
    def accuracies(self) -> list[float]:
        """Share of the held-out images that the weights, and the averaged weights, classify right."""
        networks = [self.model.eval(), self.averaged.module.eval()]
        share_buffers(*networks)
        sampler = SingleScaleBatchSampler(
            len(self.data.held_out), self.args.size, self.args.batch_size, shuffle=False, wrap=False
        )
        right = torch.zeros(2, device=self.device)
        for images, labels in DataLoader(
            self.data.held_out, batch_sampler=sampler, num_workers=self.args.workers
        ):
            images, labels = images.to(self.device, memory_format=torch.channels_last), labels.to(self.device)
            right += torch.stack([(self.logits(net, images).argmax(1) == labels).sum() for net in networks])
        if dist.is_initialized():
            dist.all_reduce(right)
        self.model.train()
        return (right / len(self.data.held_out)).tolist()


def main() -> None:
    args = parse_arguments()
    run = Training(args)
    last = args.output / "last.pt"
    if args.resume and last.exists():
        run.restore(last)
    elif last.exists():
        raise SystemExit(f"{last} exists: continue that run with --resume, or choose another --output")
    args.output.mkdir(parents=True, exist_ok=True)
    fit(run)
    leave_processes()


def fit(run: Training) -> None:
    """All epochs that are left."""
    network = DistributedDataParallel(run.model) if run.processes > 1 else run.model
    workers = run.args.workers
    loader = DataLoader(
        run.data.train, batch_sampler=run.sampler, num_workers=workers, persistent_workers=workers > 0
    )
    logs = open_logs(run) if run.rank == 0 else None
    for epoch in range(run.sampler.epoch, run.args.epochs):
        train_epoch(run, network, loader, epoch, logs)


def open_logs(run: Training) -> tuple[Log, Log]:
    """The tables of updates and epochs, cut to where the run goes on, and what `mobilevit classify` has to know."""
    config = {"architecture": run.args.model, "num_classes": len(run.data.classes)}
    config |= {"pretrained_cfg": run.data.evaluation, "label_names": run.data.classes}
    (run.args.output / "config.json").write_text(json.dumps(config, indent=1))
    updates = ("update", "epoch", "height", "width", "images", "lr", "loss")
    epochs = ("epoch", "accuracy", "averaged")
    return (
        Log(run.args.output, "updates", updates, run.step, run.args.tensorboard),
        Log(run.args.output, "epochs", epochs, run.sampler.epoch, run.args.tensorboard),
    )


def train_epoch(
    run: Training, network: nn.Module, loader: DataLoader, epoch: int, logs: tuple[Log, Log] | None
) -> None:
    """The rest of an epoch, its evaluation, its checkpoints; ``logs`` of the first process only."""
    run.sampler.set_epoch(epoch)
    run.data.train.set_epoch(epoch)
    last, total = run.args.output / "last.pt", len(run.sampler)
    # A run that was stopped between the last batch and the evaluation has nothing left here.
    start = run.sampler.state_dict()["batches"]
    network.train()
    for done, (images, labels) in enumerate(loader, start + 1):
        lr, step = run.schedule.get_last_lr()[0], run.step
        loss = run.update(network, images, labels)
        run.progress.show(epoch, done, total, len(images) * run.processes, loss, lr)
        if logs:
            logs[0].add(
                step, epoch, *images.shape[2:], len(images) * run.processes, f"{lr:.4e}", f"{loss:.6f}"
            )
            if run.step % run.args.checkpoint_every == 0:
                save_state(last, run.state(done))
    plain, average = run.accuracies()
    better, run.best = average > run.best, max(average, run.best)
    run.sampler.set_epoch(epoch + 1)
    if logs:
        print(f"epoch {epoch}: held-out accuracy {plain:.2%}, of averaged weights {average:.2%}", flush=True)
        logs[1].add(epoch, f"{plain:.6f}", f"{average:.6f}")
        if better:
            save_checkpoint(run.averaged.module.state_dict(), run.args.output / "best.pt")
        save_state(last, run.state(0))


if __name__ == "__main__":
    main()

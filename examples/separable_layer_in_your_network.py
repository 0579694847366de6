"""Separable self-attention inside a network of your own, trained under autocast on real handwritten digits.

The op does both projections itself, so the layer only owns the weights. Cost is linear in the number of tokens.

python examples/separable_layer_in_your_network.py --steps 200
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit_kernels import separable_attn


class SeparableLayer(nn.Module):
    """Pre-norm separable self-attention with a residual connection, ``[B, C, H, W]`` -> the same.

    Args:
        channels: C.
        patch_size: tokens attend to those at the same position of each patch; H and W are multiples of it.
    """

    def __init__(self, channels: int, patch_size: int = 2) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Linear(channels, 1 + 2 * channels)  # rows: query (1), key (C), value (C)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        attended = separable_attn(
            self.norm(x), self.qkv.weight, self.qkv.bias, self.out.weight, self.out.bias, self.patch_size
        )
        return x + attended


def build_network(channels: int = 32) -> nn.Module:
    """A small classifier of 8 x 8 images with two attention layers."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.SiLU(),
        SeparableLayer(channels),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.SiLU(),
        SeparableLayer(channels),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 10),
    ).to(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32, device=args.device)[:, None] / 16
    labels = torch.tensor(digits.target, device=args.device)
    order = torch.randperm(len(labels), device=args.device)
    train, held_out = order[:1500], order[1500:]

    network = build_network().to(args.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(args.steps):
        batch = train[torch.randint(len(train), (args.batch_size,), device=args.device)]
        with torch.autocast(args.device, dtype=torch.bfloat16):
            loss = F.cross_entropy(network(images[batch]).float(), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == args.steps - 1:
            print(f"step {step:>4}  loss {loss.item():.3f}")
    with torch.inference_mode():
        accuracy = (network(images[held_out]).argmax(1) == labels[held_out]).float().mean().item()
    print(f"held-out accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()

"""Puts a timm model on the fused kernels: one line, same weights, same logits.

python examples/accelerate_timm.py --model mobilevit_s --repeats 20
"""

import argparse
import copy
import statistics
import time

import timm
import torch

import mobilevit_kernels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mobilevit_s", help="any MobileViT v1 or v2 of timm")
    parser.add_argument("--pretrained", action="store_true", help="download timm's weights")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()

    torch.manual_seed(0)
    plain = timm.create_model(args.model, pretrained=args.pretrained).eval()
    fused = mobilevit_kernels.accelerate(copy.deepcopy(plain))

    image = torch.rand(1, 3, args.size, args.size)
    with torch.inference_mode():
        expected, actual = plain(image), fused(image)
        milliseconds = in_turn({"timm": plain, "accelerated": fused}, image, args.repeats)

    difference = (actual - expected).abs().max() / expected.abs().max()
    print(f"{args.model}: largest difference {difference:.1e} of the largest logit")
    for name, median in milliseconds.items():
        print(f"  {name:<12}{median:8.1f} ms")


def in_turn(models: dict[str, torch.nn.Module], image: torch.Tensor, repeats: int) -> dict[str, float]:
    """Median milliseconds of each model. They alternate, so that a busy machine slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            start = time.perf_counter()
            model(image)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()

"""Compiles a model with torch.compile and exports it with a dynamic batch; the fused ops stay single nodes.

torch.compile takes about a minute on two cores the first time; ``--backend aot_eager`` shows the same in seconds.

python examples/compile_and_export.py --model mobilevitv2_050 --output model.pt2
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.export import Dim

import mobilevit_kernels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mobilevit_xxs", help="any of mobilevit_kernels.list_models()")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--output", type=Path, help="keep the exported program here")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = mobilevit_kernels.create_model(args.model).eval()
    images = torch.rand(2, 3, args.size, args.size)
    with torch.inference_mode():
        expected = model(images)

    compiled = torch.compile(model, fullgraph=True, backend=args.backend)
    with torch.inference_mode():
        report("compiled", compiled(images), expected)

    program = torch.export.export(model, (images,), dynamic_shapes=({0: Dim("batch", min=1, max=64)},))
    fused = [str(node.target) for node in program.graph.nodes if str(node.target).startswith("mobilevit.")]
    print(f"exported: {len(fused)} nodes of {', '.join(sorted(set(fused)))}")
    with tempfile.TemporaryDirectory() as folder:
        path = args.output or Path(folder) / "model.pt2"
        torch.export.save(program, path)
        loaded = torch.export.load(path).module()
    more = torch.cat([images, images.flip(-1)])
    with torch.inference_mode():
        report("exported, another batch size", loaded(more)[:2], expected)


def report(name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Prints how far two sets of logits are apart."""
    difference = (actual - expected).abs().max() / expected.abs().max()
    print(f"{name}: largest difference {difference:.1e} of the largest logit")


if __name__ == "__main__":
    main()

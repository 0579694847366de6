"""Classifies a photograph from Python, with weights of timm, cvnets, Hugging Face or the official MobileViTv3.

python examples/classify_photo.py photo.jpg --weights mobilevit_s.safetensors
"""

import argparse
from pathlib import Path

import torch

import mobilevit_kernels
from mobilevit_kernels.cli.images import open_image
from mobilevit_kernels.cli.preprocess import default_preprocess
from mobilevit_kernels.models.checkpoints import detect_format, infer_model_name, read_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("--weights", type=Path, help="checkpoint (default: random weights, to see it run)")
    args = parser.parse_args()

    if args.weights:
        state_dict = read_checkpoint(args.weights)
        name, kind = infer_model_name(state_dict), detect_format(state_dict)
        model = mobilevit_kernels.create_model(name)
        print(mobilevit_kernels.load_checkpoint(model, state_dict))
    else:
        torch.manual_seed(0)
        name, kind = "mobilevit_xs", "timm"
        model = mobilevit_kernels.create_model(name)
        print("random weights: the classes below mean nothing")

    # Each library prepares its images differently: channel order, size and filter of the resize.
    preprocess = default_preprocess(kind, name)
    batch = preprocess(open_image(args.image))[None]
    model = model.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        probabilities = model(batch.contiguous(memory_format=torch.channels_last)).softmax(-1)[0]
    values, indices = probabilities.topk(5)
    for value, index in zip(values.tolist(), indices.tolist(), strict=True):
        print(f"{value:7.2%}  class {index}")


if __name__ == "__main__":
    main()

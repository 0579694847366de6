"""``mobilevit convert``: a checkpoint under the key names of another library."""

import argparse
import warnings
from pathlib import Path

from torch import Tensor

from mobilevit_kernels.cli.errors import UserError
from mobilevit_kernels.cli.preprocess import default_preprocess
from mobilevit_kernels.cli.weights import CHECKPOINT_ERRORS, checkpoint_message, read_state_dict
from mobilevit_kernels.models.checkpoints import Format, convert_state_dict, infer_model_name, save_checkpoint

# The first convolution of a model in timm's, cvnets' and Hugging Face's names.
_STEM_SUFFIXES = ("stem.conv.weight", "conv_1.block.conv.weight", "conv_stem.convolution.weight")


def run(args: argparse.Namespace) -> int:
    """Converts and writes; returns 0."""
    refuse_overwrite(args.output, args.force)
    state_dict, source = read_state_dict(args.input)
    try:
        name = infer_model_name(state_dict)
        converted, notes = convert(state_dict, args.to)
        if args.flip_channels:
            converted = flip_stem_channels(converted)
    except CHECKPOINT_ERRORS as error:
        raise UserError(checkpoint_message(args.input, error)) from error
    print(f"{args.input}: {source}, {describe(name, state_dict)}")
    try:
        save_checkpoint(converted, args.output)
    except CHECKPOINT_ERRORS as error:
        raise UserError(checkpoint_message(args.output, error)) from error
    print(f"{args.output}: {args.to}, {describe(name, converted)}")
    for note in (*notes, *channel_order_notes(name, source, args.to, args.flip_channels)):
        print(f"note: {note}")
    return 0


def convert(state_dict: dict[str, Tensor], target: Format) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the renamed state dict, and what the conversion warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        converted = convert_state_dict(state_dict, target)
    return converted, [str(warning.message) for warning in caught]


def refuse_overwrite(output: Path, force: bool) -> None:
    """Raises UserError where ``output`` exists without ``force``, or its folder does not exist."""
    if output.exists() and not force:
        raise UserError(f"{output}: exists already; --force overwrites it")
    if not output.parent.is_dir():
        raise UserError(f"{output}: the folder {output.parent} does not exist")


def describe(name: str, state_dict: dict[str, Tensor]) -> str:
    """Model name, number of entries and of elements."""
    elements = sum(tensor.numel() for tensor in state_dict.values())
    return f"{name}, {len(state_dict)} entries, {elements / 1e6:.2f} M values"


def flip_stem_channels(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reverses the input channels of the first convolution, whatever its name: the only weight over an image.

    Raises:
        UserError: there is not exactly one such convolution.
    """
    stems = [key for key in state_dict if key.endswith(_STEM_SUFFIXES)]
    if len(stems) != 1 or state_dict[stems[0]].dim() != 4 or state_dict[stems[0]].shape[1] != 3:
        raise UserError(f"--flip-channels: expected one first convolution over 3 channels, got {stems}")
    return {**state_dict, stems[0]: state_dict[stems[0]].flip(1).contiguous()}


def channel_order_notes(name: str, source: str, target: str, flipped: bool) -> list[str]:
    """Warns where the target library's own image pipeline would feed the weights channels in the wrong order.

    Hugging Face's published weights are cvnets' with other names, so their order is that of cvnets, whatever its
    image processor does.
    """
    trained = default_preprocess("cvnets" if source == "hf" else source, name).channel_order
    fed = default_preprocess(target, name).channel_order
    if (trained != fed) == flipped:
        return []
    kept, advice = (
        ("reversed", "leave --flip-channels out") if flipped else ("kept as they are", "add --flip-channels")
    )
    return [
        f"{source} weights of {name} take {trained.upper()} images by default, {target}'s own image pipeline "
        f"gives {fed.upper()}, and the first convolution's channels were {kept}. If the weights are of that kind, "
        f"{advice} to use OUT with that pipeline."
    ]

"""Reads and writes checkpoint files."""

import argparse
import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mobilevit_kernels.models.checkpoints.atomic import replaced_file
from mobilevit_kernels.models.checkpoints.unwrap import Weights, unwrap

PathLike = str | os.PathLike[str]

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_SAFETENSORS_SUFFIX = ".safetensors"
_ZIP_MAGIC, _PICKLE_MAGIC = b"PK\x03\x04", b"\x80"
_FOREIGN_MAGIC = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself (fetch it with `git lfs pull`)",
    b"<": "an HTML or XML page, not a checkpoint (a download that failed?)",
    b"\x89HDF": "an HDF5 file; Keras weights are not supported",
}
_CHUNK = 1 << 20
_REASON_LENGTH = 200


def _harmless_globals() -> list[Any]:
    """Plain data that training scripts keep beside the weights: timm its arguments, cvnets its best metric."""
    scalar = np.float64(0).__reduce__()[0]
    scalar_names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    dtypes = [type(np.dtype(kind)) for kind in ("float32", "float64", "int64", "bool")]
    return [argparse.Namespace, np.dtype, *((scalar, name) for name in scalar_names), *dtypes]


def read_checkpoint(path: PathLike, use_ema: bool = True) -> dict[str, Tensor]:
    """Reads the weights of a checkpoint file, without running code from it.

    Args:
        path: a file of torch.save (.pt, .pth, .bin, .ckpt, ...), a .safetensors file, or a folder that transformers'
            ``save_pretrained`` wrote. Training forms are unwrapped: {state_dict, state_dict_ema},
            {model_state_dict, ema_state_dict}, {model: ...}.
        use_ema: take the exponential moving average of the weights where the file has one.

    Returns:
        Name -> tensor on the CPU, with names and dtypes as in the file, less the prefixes of wrappers ("module.",
        "_orig_mod.", "model."). The tensors do not share memory with the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated, corrupt or no checkpoint, or needs code to be read.
    """
    return read_weights(path, use_ema).state_dict


def read_weights(path: PathLike, use_ema: bool = True) -> Weights:
    """As ``read_checkpoint``; also says which entry of a training form held the weights."""
    file = _resolve(Path(path))
    weights = unwrap(_read(file), str(file), use_ema)
    # The file is mapped, not read: a copy of the weights stays valid when the file is overwritten.
    return weights._replace(
        state_dict={key: value.detach().clone() for key, value in weights.state_dict.items()}
    )


def _resolve(path: Path) -> Path:
    if path.is_dir():
        file = next((path / name for name in _FOLDER_FILES if (path / name).is_file()), None)
        if file is None:
            raise ValueError(f"{path}: is a folder without {' or '.join(_FOLDER_FILES)}")
        path = file
    if not path.exists():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    return path


def _read(file: Path) -> Any:
    with file.open("rb") as stream:
        head = stream.read(64)
    if file.suffix.lower() == _SAFETENSORS_SUFFIX:
        return _read_safetensors(file)
    if head.startswith(_ZIP_MAGIC):
        _check_archive(file)
        return _read_torch(file, mmap=True)
    if head.startswith(_PICKLE_MAGIC):
        return _read_torch(file, mmap=False)
    if head[8:9] == b"{":
        return _read_safetensors(file)
    kind = next((kind for magic, kind in _FOREIGN_MAGIC.items() if head.lstrip().startswith(magic)), None)
    raise ValueError(f"{file}: is {kind or 'neither a file of torch.save nor of safetensors'}")


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: truncated, corrupt or no safetensors file ({error})") from error


def _read_torch(file: Path, mmap: bool) -> Any:
    with _damage_explained(file), torch.serialization.safe_globals(_harmless_globals()):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def _check_archive(file: Path) -> None:
    """Compares the checksums of a zip file, which torch.load does not; 0 means saved without one."""
    with _damage_explained(file), zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        for record in records:
            if record.CRC != 0:
                _read_through(archive, record)
    names = {record.filename.rpartition("/")[2] for record in records}
    if "constants.pkl" in names:
        raise ValueError(f"{file}: is a TorchScript archive; save the state_dict() of the model instead")
    if "data.pkl" not in names:
        raise ValueError(f"{file}: is a zip file without weights of torch.save")


def _read_through(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    with archive.open(record) as stream:
        while stream.read(_CHUNK):
            pass


@contextlib.contextmanager
def _damage_explained(file: Path) -> Iterator[None]:
    """Turns what readers raise on a damaged file, which can be any exception, into a ValueError."""
    try:
        yield
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file}: {_pickle_reason(error)}") from error
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:_REASON_LENGTH]
        raise ValueError(f"{file}: truncated or corrupt ({type(error).__name__}: {reason})") from error


def _pickle_reason(error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return "truncated, corrupt, or a pickle that torch.save did not write"
    return (
        f"holds pickled code or objects ({found.group(1)}), which are not loaded because they can run anything; "
        "save only the model's state_dict()"
    )


def save_checkpoint(state_dict: Mapping[str, Tensor], path: PathLike) -> None:
    """Writes weights to a file, atomically: a failure leaves an older file of that name as it was.

    Args:
        state_dict: name -> tensor, any device; stored contiguous, dtypes kept.
        path: .safetensors, or .pt, .pth, .bin or .ckpt for torch.save.

    Raises:
        ValueError: another suffix, an empty state dict, or values that are not tensors.
        OSError: the folder is missing or cannot be written.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix != _SAFETENSORS_SUFFIX and suffix not in _TORCH_SUFFIXES:
        known = ", ".join((*_TORCH_SUFFIXES, _SAFETENSORS_SUFFIX))
        raise ValueError(f"path: expected a file name that ends in one of {known}, got {str(file)!r}")
    if not state_dict:
        raise ValueError("state_dict: expected at least one tensor, got none")
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"state_dict: expected only tensors, {key!r} is a {type(value).__name__}")
    # Copies: safetensors refuses tensors that share memory, and torch.save writes the whole storage behind a view.
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in state_dict.items()
    }
    with replaced_file(file) as stream:
        if suffix == _SAFETENSORS_SUFFIX:
            stream.write(save(tensors, metadata={"format": "pt"}))
        else:
            torch.save(tensors, stream)

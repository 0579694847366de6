"""Everything that can be wrong with a checkpoint file: a clear error that names it, and no code is run."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from mobilevit_kernels.models.checkpoints import read_checkpoint, save_checkpoint


def small_state() -> dict[str, torch.Tensor]:
    return {"stem.conv.weight": torch.ones(16, 3, 3, 3), "stem.bn.num_batches_tracked": torch.tensor(7)}


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint not found: .*absent\.pt"):
        read_checkpoint(tmp_path / "absent.pt")


def test_folder_without_weights(tmp_path):
    with pytest.raises(ValueError, match=r"folder without model\.safetensors or pytorch_model\.bin"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_empty_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.touch()
    with pytest.raises(ValueError, match=f"a{suffix}: the file is empty"):
        read_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.9, 0.999])
def test_truncated_torch_file(tmp_path, legacy, fraction):
    path = tmp_path / "a.pt"
    torch.save(small_state(), path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ValueError, match=r"a\.pt: truncated"):
        read_checkpoint(path)


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_truncated_safetensors(tmp_path, fraction):
    path = tmp_path / "a.safetensors"
    save_checkpoint(small_state(), path)
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(fraction * len(content)))])
    with pytest.raises(ValueError, match=r"a\.safetensors: truncated, corrupt or no safetensors file"):
        read_checkpoint(path)


def test_flipped_bit_in_a_weight(tmp_path):
    """torch.load alone returns the wrong number."""
    path = tmp_path / "a.pt"
    torch.save(small_state(), path)
    content = bytearray(path.read_bytes())
    position = content.index(np.float32(1.0).tobytes() * 8)
    content[position] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["stem.conv.weight"], small_state()["stem.conv.weight"])
    with pytest.raises(ValueError, match=r"a\.pt: truncated or corrupt \(BadZipFile: Bad CRC-32"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_never_escape_as_other_errors(tmp_path):
    """Random damage to small files gives the weights or a ValueError, whatever the unpickler makes of it."""
    path = tmp_path / "a.pt"
    generator = np.random.default_rng(0)
    for legacy in (False, True):
        torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=not legacy)
        content = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(150):
            damaged = content.copy()
            damaged[generator.integers(0, len(content), 3)] = generator.integers(0, 256, 3)
            path.write_bytes(damaged.tobytes())
            assert _outcome(path).startswith(("read", f"{path}: "))


def _outcome(path):
    try:
        read_checkpoint(path)
    except ValueError as error:
        return str(error)
    return "read"


class _Payload:
    """Would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_refused_and_not_run(tmp_path, legacy):
    path = tmp_path / "a.pt"
    torch.save(
        {**small_state(), "x": _Payload(tmp_path / "ran")}, path, _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(
        ValueError, match=r"a\.pt: holds pickled code or objects \(posix\.mkdir\), .*state_dict\(\)"
    ):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_pickled_model_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"holds pickled code or objects \(torch\.nn\.modules\.linear\.Linear\)"
    ):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: is a TorchScript archive; save the state_dict\(\)"):
        read_checkpoint(tmp_path / "a.pt")


def test_other_zip_file(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    with pytest.raises(ValueError, match=r"a\.npz: is a zip file without weights of torch\.save"):
        read_checkpoint(tmp_path / "a.npz")


def test_encrypted_or_unreadable_zip_record(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"not a pickle")
    with pytest.raises(ValueError, match=r"a\.pt: truncated"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"a Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "an HTML or XML page"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "an HDF5 file; Keras weights are not supported"),
        (b"\xff\xd8\xff\xe0 a photograph", "neither a file of torch.save nor of safetensors"),
    ],
)
def test_foreign_files(tmp_path, content, kind):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.pt: is {kind}"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "expected a state dict .*, it is a list"),
        (torch.ones(1), "it is a Tensor"),
        ({}, "the state dict is empty"),
        ({"n_averaged": torch.ones(1)}, "holds no tensors"),
        ({"a": torch.ones(1), "b": 3}, "expected only tensors in the state dict, 'b' is a int"),
        ({1: torch.ones(1)}, "expected names of tensors as keys, got 1"),
        ({"state_dict": {"a": "text"}}, "'a' is a str"),
        ({"a": torch.ones(1), "module.a": torch.ones(1)}, "two tensors are named 'a'"),
    ],
)
def test_content_that_is_no_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a\.pt: .*{message}"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_dict_that_holds_itself_ends(tmp_path):
    content: dict = {}
    content["model"] = content
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="'model' is a dict"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_a_permission_error(tmp_path):
    save_checkpoint(small_state(), tmp_path / "a.pt")
    (tmp_path / "a.pt").chmod(0)
    with pytest.raises(PermissionError):
        read_checkpoint(tmp_path / "a.pt")


def test_plain_pickle_of_objects(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": _Payload(tmp_path / "ran")}, protocol=2))
    with pytest.raises(ValueError, match=r"a\.pt: "):
        read_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()

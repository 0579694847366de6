"""Reading and writing of checkpoint files that are in order, in every form they come in."""

import argparse
import os
import stat

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mobilevit_kernels.models.checkpoints import files, read_checkpoint, save_checkpoint

_CONTAINERS = ("state_dict", "state_dict_ema", "model_state_dict", "ema_state_dict", "model", "model_ema")


def small_state(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "stem.conv.weight": torch.full((16, 3, 3, 3), value),
        "stem.bn.num_batches_tracked": torch.tensor(7),
    }


def assert_state(actual, value=1.0):
    expected = small_state(value)
    assert set(actual) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key
        assert actual[key].dtype == tensor.dtype


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".SafeTensors"])
def test_what_is_saved_is_read(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save_checkpoint(small_state(), path)
    assert_state(read_checkpoint(path))
    assert_state(read_checkpoint(str(path)))
    assert os.listdir(tmp_path) == [path.name]


def test_saved_files_are_plain_to_others(tmp_path):
    save_checkpoint(small_state(), tmp_path / "a.pt")
    save_checkpoint(small_state(), tmp_path / "a.safetensors")
    assert_state(torch.load(tmp_path / "a.pt", weights_only=True))
    assert_state(safetensors.torch.load_file(tmp_path / "a.safetensors"))
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses files without it


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_views_shared_and_channels_last_tensors_are_saved(tmp_path, suffix):
    base = torch.randn(64, 32, 3, 3)
    state = {
        "a": base[:2],
        "b": base[:2],
        "c": base.contiguous(memory_format=torch.channels_last),
        "d": nn.Parameter(torch.randn(3)),
        "e": torch.randn(2).to(torch.bfloat16),
    }
    path = tmp_path / f"a{suffix}"
    save_checkpoint(state, path)
    read = read_checkpoint(path)
    assert all(torch.equal(read[key], state[key]) for key in state)
    assert read["c"].is_contiguous()
    assert not read["d"].requires_grad
    assert path.stat().st_size < 4 * base.numel() + 2 * 4 * base[:2].numel() + 10_000


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ({"state_dict": 1, "state_dict_ema": 2, "epoch": 3, "arch": "mobilevit_xs", "version": 2}, 2),
        ({"model_state_dict": 1, "ema_state_dict": 2, "optim_state_dict": {"state": {}}}, 2),
        ({"model_state_dict": 1, "ema_state_dict": {}, "epoch": 1}, 1),
        ({"model_state_dict": 1, "ema_state_dict": None}, 1),
        ({"model": 1}, 1),
        ({"model": 1, "model_ema": 2}, 2),
        ({"model": {"state_dict": 1}}, 1),
        ({"state_dict": 1, "optimizer": {"lr": 0.1}}, 1),
    ],
)
def test_training_forms(tmp_path, form, value):
    def fill(key, entry):
        if isinstance(entry, dict):
            return {inner: fill(inner, value) for inner, value in entry.items()}
        return small_state(entry) if key in _CONTAINERS and entry else entry

    torch.save(fill("", form), tmp_path / "a.pt")
    assert_state(read_checkpoint(tmp_path / "a.pt"), value)


def test_averages_can_be_refused(tmp_path):
    torch.save({"state_dict": small_state(1.0), "state_dict_ema": small_state(2.0)}, tmp_path / "a.pt")
    assert_state(read_checkpoint(tmp_path / "a.pt", use_ema=False), 1.0)


def test_plain_data_beside_the_weights_is_fine(tmp_path):
    """timm keeps its arguments and metric, cvnets its best metric: neither runs code."""
    extra = {
        "args": argparse.Namespace(lr=0.1),
        "metric": np.float64(78.1),
        "best": np.float32(1.5),
        "n": np.int64(2),
    }
    torch.save({"state_dict": small_state(), **extra}, tmp_path / "a.pth.tar")
    assert_state(read_checkpoint(tmp_path / "a.pth.tar"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    torch.save({prefix + key: value for key, value in small_state().items()}, tmp_path / "a.pt")
    assert_state(read_checkpoint(tmp_path / "a.pt"))


def test_averaged_model_of_torch(tmp_path):
    model = nn.Conv2d(3, 4, 1)
    torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), tmp_path / "a.pt")
    assert sorted(read_checkpoint(tmp_path / "a.pt")) == ["bias", "weight"]


def test_legacy_torch_format(tmp_path):
    torch.save(small_state(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert_state(read_checkpoint(tmp_path / "a.pt"))


def test_files_saved_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(small_state(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_state(read_checkpoint(tmp_path / "a.pt"))


def test_safetensors_under_another_suffix(tmp_path):
    save_checkpoint(small_state(), tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    assert sorted(read_checkpoint(tmp_path / "a.bin")) == sorted(small_state())


def test_folder_that_transformers_saved(tmp_path, hf_model):
    model = hf_model("mobilevit_xxs")
    model.save_pretrained(tmp_path)
    read = read_checkpoint(tmp_path)
    assert all(torch.equal(read[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tensors_outlive_their_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save_checkpoint(small_state(), path)
    read = read_checkpoint(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert sorted(read) == sorted(small_state())
    assert torch.equal(read["stem.conv.weight"], small_state()["stem.conv.weight"])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_failed_save_keeps_the_older_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a{suffix}"
    save_checkpoint(small_state(), path)

    def disk_full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "fsync", disk_full)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(small_state(2.0), path)
    monkeypatch.undo()
    assert sorted(read_checkpoint(path)) == sorted(small_state())
    assert read_checkpoint(path)["stem.conv.weight"].max() == 1.0
    assert os.listdir(tmp_path) == [path.name]


def test_saved_files_have_ordinary_permissions(tmp_path):
    save_checkpoint(small_state(), tmp_path / "a.pt")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "a.pt").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


@pytest.mark.parametrize(
    ("state", "name", "message"),
    [
        (small_state(), "a.onnx", r"path: expected a file name that ends in one of \.pt, .*got '.*a\.onnx'"),
        ({}, "a.pt", "state_dict: expected at least one tensor"),
        ({"a": 1}, "a.pt", "state_dict: expected only tensors, 'a' is a int"),
    ],
)
def test_bad_arguments_of_save(tmp_path, state, name, message):
    with pytest.raises(ValueError, match=message):
        save_checkpoint(state, tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_saving_into_a_missing_folder(tmp_path, suffix):
    with pytest.raises(FileNotFoundError):
        save_checkpoint(small_state(), tmp_path / "absent" / f"a{suffix}")

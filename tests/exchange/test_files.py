"""Foreign files: tensors and plain values come out of them, or an error that says what is wrong."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from intone.errors import Damaged, UserError
from intone.exchange.files import positive_number, read_json_object, read_pt, read_safetensors, whole_number

WEIGHTS = {"a": torch.arange(600, dtype=torch.float32).view(20, 30), "b": torch.ones(7, dtype=torch.bfloat16)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model_000007.pt"


def test_named_tensors_come_out_as_they_went_in(path):
    torch.save({f"_orig_mod.{name}": value for name, value in WEIGHTS.items()}, path)
    read = read_pt(path)
    assert list(read) == ["a", "b"]
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in WEIGHTS.items())


class Calls:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_call_in_a_checkpoint_is_refused_by_its_name_and_not_made(path, tmp_path):
    torch.save({"a": WEIGHTS["a"], "b": Calls(f"touch {tmp_path / 'ran'}")}, path)
    with pytest.raises(UserError, match=r"asks for posix\.system: a checkpoint needs tensors and nothing else"):
        read_pt(path)
    assert not (tmp_path / "ran").exists()


def test_a_class_of_a_library_is_refused_by_its_name(path):
    torch.save({"a": zipfile.ZipInfo("x")}, path)
    with pytest.raises(UserError, match=r"asks for zipfile\.ZipInfo"):
        read_pt(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_damaged(path, share):
    torch.save(WEIGHTS, path)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(Damaged, match="is cut off or damaged"):
        read_pt(path)


def test_one_changed_bit_in_the_weights_is_noticed(path):
    torch.save(WEIGHTS, path)
    content = bytearray(path.read_bytes())
    place = content.index(np.arange(40, 50, dtype=np.float32).tobytes())
    content[place + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match="does not have its checksum"):
        read_pt(path)


def test_a_compressed_archive_is_none_that_torch_wrote(path, tmp_path):
    torch.save(WEIGHTS, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(Damaged, match="is compressed"):
        read_pt(path)


def test_a_bare_pickle_is_no_checkpoint(path):
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(Damaged, match="not a zip file"):
        read_pt(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([WEIGHTS["a"]], "holds no named tensors but a list"),
        ({}, "holds no named tensors but a dict"),
        ({"state": {}, "param_groups": []}, "holds 'state', a dict: not the weights of a model alone"),
        ({3: WEIGHTS["a"]}, "holds '3', a Tensor"),
        ({"a": WEIGHTS["a"], "_orig_mod.a": WEIGHTS["a"]}, "one weight twice"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, "claims 4,000,000,000,000 bytes"),
    ],
)
def test_what_is_no_state_of_a_model_is_refused(path, content, message):
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        read_pt(path)


def test_safetensors_that_are_cut_off_are_damaged(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(WEIGHTS, file)
    assert set(read_safetensors(file)) == {"a", "b"}
    os.truncate(file, file.stat().st_size - 9)
    with pytest.raises(Damaged, match="is cut off or damaged"):
        read_safetensors(file)


@pytest.mark.parametrize("content", ['{"a": 1', "[1]", "", "\xff", "[" * 100_000])
def test_settings_that_are_no_object_are_refused(tmp_path, content):
    file = tmp_path / "meta_000007.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"meta_000007\.json"):
        read_json_object(file)


@pytest.mark.parametrize("value", [0, -3, True, 1.0, "4", None, 2**31, [1]])
def test_what_is_no_whole_number_from_one_is_refused(tmp_path, value):
    with pytest.raises(UserError, match="n_layer is not a whole number from 1 but"):
        whole_number(value, "n_layer", tmp_path)


@pytest.mark.parametrize("value", [0, -1.0, True, "4", None, float("nan"), float("inf")])
def test_what_is_no_number_above_zero_is_refused(tmp_path, value):
    with pytest.raises(UserError, match="rope_theta is not a number above 0 but"):
        positive_number(value, "rope_theta", tmp_path)

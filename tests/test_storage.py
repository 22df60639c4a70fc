"""Files are whole or absent, and damage is noticed."""

import contextlib
import json

import pytest
import torch

from seqmatch_lib.errors import StorageError
from seqmatch_lib.storage import digest_tensors, load_tensors, read_json, save_tensors, write_atomically, write_json


def test_json_round_trip_and_checksum(tmp_path):
    path = tmp_path / "deep" / "value.json"
    write_json(path, {"a": 1, "b": [1.5, None, "é"]})
    assert read_json(path) == {"a": 1, "b": [1.5, None, "é"]}
    path.write_text(path.read_text().replace("1.5", "1.6"))
    with pytest.raises(StorageError, match="value.json does not match its checksum"):
        read_json(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": 1}'])
def test_what_is_no_json_of_ours_is_named(tmp_path, content):
    path = tmp_path / "value.json"
    path.write_text(content)
    with pytest.raises(StorageError, match="value.json"):
        read_json(path)


def test_tensors_round_trip(tmp_path, generator):
    path = tmp_path / "set.safetensors"
    tensors = {"x": torch.randn(3, 4, generator=generator), "y": torch.arange(5), "z": torch.tensor(0.5).double()}
    save_tensors(path, tensors, {"name": "set", "list": [1, 2]})
    loaded, metadata = load_tensors(path)
    assert metadata == {"name": "set", "list": [1, 2]}
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_every_damaged_byte_of_a_tensor_file_is_noticed(tmp_path):
    path = tmp_path / "set.safetensors"
    save_tensors(path, {"x": torch.arange(6.0)}, {"name": "set"})
    whole = path.read_bytes()
    unnoticed = []
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with contextlib.suppress(StorageError):
            tensors, metadata = load_tensors(path)
            if metadata != {"name": "set"} or not torch.equal(tensors["x"], torch.arange(6.0)):
                unnoticed.append(position)
    assert not unnoticed


@pytest.mark.parametrize("length", [0, 7, 100])
def test_a_truncated_tensor_file_is_named(tmp_path, length):
    path = tmp_path / "set.safetensors"
    save_tensors(path, {"x": torch.arange(6.0)}, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StorageError, match="set.safetensors"):
        load_tensors(path)
    with pytest.raises(StorageError, match="absent.safetensors does not exist"):
        load_tensors(tmp_path / "absent.safetensors")


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_digest_depends_on_name_dtype_shape_and_value():
    base = {"x": torch.zeros(4)}
    others = [{"y": torch.zeros(4)}, {"x": torch.zeros(4).double()}, {"x": torch.zeros(2, 2)}, {"x": torch.ones(4)}]
    digests = {digest_tensors(tensors) for tensors in [base, *others]}
    assert len(digests) == 5
    assert digest_tensors(base) == digest_tensors({"x": torch.zeros(4)})


def test_json_is_readable_by_anyone(tmp_path):
    write_json(tmp_path / "value.json", {"a": 1})
    assert json.loads((tmp_path / "value.json").read_text())["a"] == 1

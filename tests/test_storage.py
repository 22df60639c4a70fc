"""Files are whole or absent, and damage is noticed."""

import contextlib
import errno
import json
import os
import shutil
import threading

import pytest
import torch
from filelock import FileLock, Timeout
from helpers import flip
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from seqmatch_lib.errors import StorageError
from seqmatch_lib.store.files import (
    acquire_lock,
    digest_tensors,
    load_tensors,
    read_json,
    remove_leftovers,
    save_tensors,
    write_atomically,
    write_json,
)


def test_json_round_trip_and_checksum(tmp_path):
    path = tmp_path / "deep" / "value.json"
    write_json(path, {"a": 1, "b": [1.5, None, "é"]})
    assert read_json(path) == {"a": 1, "b": [1.5, None, "é"]}
    assert json.loads(path.read_text())["a"] == 1, "anyone can read it"
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
        path.write_bytes(flip(whole, position))
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


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "the disk quota is used up; free some space"),
        (errno.EFBIG, "files of this size are not permitted; raise the limit with ulimit -f"),
        (errno.EROFS, "its folder is read-only; make the folder writable"),
        (errno.EACCES, "permission is denied; make the folder writable"),
        (errno.EIO, "Input/output error; remove the cause"),
    ],
)
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, code, words):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(code, os.strerror(code))

    with pytest.raises(StorageError, match=f"value.json cannot be written: {words} and repeat the command"):
        write_atomically(path, fail)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match=r"runs/value.json cannot be written: .*exist"):
        write_json(tmp_path / "runs" / "value.json", {})
    with pytest.raises(StorageError, match=r"runs/one.lock cannot be written: .*exist"):
        acquire_lock(tmp_path / "runs" / "one.lock")
    (tmp_path / "two.lock").mkdir()
    with pytest.raises(StorageError, match=r"two.lock cannot be written: Is a directory"):
        acquire_lock(tmp_path / "two.lock")


def test_a_held_lock_is_another_matter(tmp_path):
    with acquire_lock(tmp_path / "one.lock"), pytest.raises(Timeout):
        FileLock(tmp_path / "one.lock", is_singleton=False).acquire(timeout=0)
    with acquire_lock(tmp_path / "one.lock", timeout=0):
        pass


def test_what_cannot_be_read_is_told(tmp_path):
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(StorageError, match=f"{path} cannot be read"):
            read_json(path)


def test_leftovers_of_killed_writers_are_removed_by_their_names(tmp_path):
    names = [".one.json.12.tmp", ".one.npy.12.tmp", ".one-2.json.7.tmp", ".two.json.12.tmp", "one.json", "one.tmp"]
    for name in names:
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path, "one.")
    assert {path.name for path in tmp_path.iterdir()} == set(names[2:])
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names[4:])
    remove_leftovers(tmp_path / "absent")


def test_equal_tensors_make_equal_files_that_others_may_read(tmp_path, generator):
    tensors = {"x": torch.randn(3, 5, generator=generator), "flag": torch.tensor([True]), "half": torch.ones(3).half()}
    paths = [tmp_path / f"{index}.safetensors" for index in range(5)]
    for path in paths:
        save_tensors(path, tensors, {"name": "é"})
    assert len({path.read_bytes() for path in paths}) == 1
    (tmp_path / "other").touch()
    assert paths[0].stat().st_mode == (tmp_path / "other").stat().st_mode
    loaded = load_file(paths[0])  # by the format's own library
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    save_file(tensors, paths[1], metadata=header_of(paths[0]))  # as files were written before
    assert load_tensors(paths[1])[1] == {"name": "é"}


def test_a_file_that_is_replaced_while_it_is_read_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "stage-1.safetensors"
    sets = [{"x": torch.zeros(10)}, {"x": torch.ones(20_000)}]
    for index, tensors in enumerate(sets):
        save_tensors(tmp_path / str(index), tensors, {})
    done = threading.Event()

    def replace():
        while not done.is_set():
            for index in range(2):
                os.link(tmp_path / str(index), tmp_path / "next")
                os.replace(tmp_path / "next", path)

    shutil.copy(tmp_path / "0", path)
    writer = threading.Thread(target=replace)
    writer.start()
    try:
        found = {len(load_tensors(path)[0]["x"]) for _ in range(2000)}
    finally:
        done.set()
        writer.join()
    assert found == {10, 20_000}


def header_of(path):
    with safe_open(path, framework="pt") as handle:
        return handle.metadata()


def test_digest_depends_on_name_dtype_shape_and_value():
    base = {"x": torch.zeros(4)}
    others = [{"y": torch.zeros(4)}, {"x": torch.zeros(4).double()}, {"x": torch.zeros(2, 2)}, {"x": torch.ones(4)}]
    digests = {digest_tensors(tensors) for tensors in [base, *others]}
    assert len(digests) == 5
    assert digest_tensors(base) == digest_tensors({"x": torch.zeros(4)})

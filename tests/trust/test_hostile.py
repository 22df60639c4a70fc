"""Files and names made to do harm: nothing in them runs, and nothing is written outside the folder it was asked for.

`fuzzing.py` damages files at random; these attacks are made by hand. A canary is a file that only an attack makes.
"""

import ast
import functools
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import papermill
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuzz_engine import limits
from fuzz_layouts import read_layout
from fuzz_own_files import set_metadata, write_teacher
from fuzz_samples import NAMES, PLAIN, make_set
from fuzz_settings import NOTEBOOK, fits_parameter, read_parameter, write_notebook
from helpers import encode, write_class_folders
from PIL import EpsImagePlugin, Image
from test_cli import fails_in_one_line
from test_data import random_pixels, write_shard

import seqmatch_lib
from seqmatch_lib.__main__ import main
from seqmatch_lib.data.datasets import DATASETS, DatasetSpec, load_dataset
from seqmatch_lib.data.readers import MAX_PIXELS, read_image_files, read_shards
from seqmatch_lib.errors import ConfigError, DataError, StorageError
from seqmatch_lib.exchange.formats import export_sequence
from seqmatch_lib.methods.teachers import TrajectorySet
from seqmatch_lib.report.notebooks import run_notebook
from seqmatch_lib.runs.config import parse_override
from seqmatch_lib.store.files import load_tensors, save_tensors, write_json
from seqmatch_lib.subsets import SubsetSequence

EVIL_NAMES = ["../../evil", "/tmp/evil", "x" * 10_000, "", ".", "..", "a/b\\c", "\0", "evil\n", "é"]


class Touch:
    """What makes a canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_the_canary_lives(tmp_path):
    pickle.loads(pickle.dumps(Touch(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


# --- .pt files


PICKLES = {
    "zip": lambda value, path: torch.save(value, path),
    "legacy": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "bare": lambda value, path: path.write_bytes(pickle.dumps(value)),
}


def export_unsummed(folder: Path, kind: str = "mtt") -> None:
    """Writes one subset in a layout of others, without the checksums that would tell of any change."""
    export_sequence(SubsetSequence(make_set(soft=kind == "datm").subsets[:1]), kind, folder, PLAIN, NAMES)
    (folder / "SHA256SUMS").unlink()


@pytest.mark.parametrize("form", PICKLES)
@pytest.mark.parametrize(
    ("kind", "name"),
    [("mtt", "images_best.pt"), ("mtt", "labels_best.pt"), ("mtt", "best_lr.pt"), ("datm", "lr_best.pt"), ("idc", "data.pt")],
)
def test_a_pickle_that_runs_a_command_is_not_run(tmp_path, form, kind, name):
    folder, canary = tmp_path / "set", tmp_path / "canary"
    export_unsummed(folder, kind)
    PICKLES[form](Touch(canary) if kind != "idc" else [Touch(canary), torch.zeros(1)], folder / name)
    with pytest.raises(StorageError, match=rf"{name} is damaged or holds more than tensors \(.*\); it is not read"):
        read_layout(kind, folder)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["images_best.pt", "labels_best.pt", "best_lr.pt"])
def test_a_tensor_that_claims_to_be_larger_than_its_file_is_refused(tmp_path, name):
    export_unsummed(tmp_path)
    torch.save(torch.zeros(1).expand(10**12), tmp_path / name)
    with pytest.raises(StorageError, match=f"{name} holds an unusual tensor"):
        read_layout("mtt", tmp_path)


@pytest.mark.parametrize("prefix", [b"", b"PK"])
def test_a_few_bytes_that_ask_for_gigabytes_are_refused(tmp_path, prefix):
    export_unsummed(tmp_path)
    path = tmp_path / "images_best.pt"
    ask = prefix + pickle.PROTO + b"\x02" + pickle.BINUNICODE + (2**31 - 2).to_bytes(4, "little")
    path.write_bytes(ask + path.read_bytes())  # the end of the file is that of a zip, by which Python would know one
    assert zipfile.is_zipfile(path)
    tracemalloc.start()
    try:
        with pytest.raises(StorageError, match="no file of torch 1.6 or newer; load it with the torch that wrote it"):
            read_layout("mtt", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_set_that_torch_saved_in_its_old_format_is_refused_with_the_remedy(tmp_path):
    export_unsummed(tmp_path)
    PICKLES["legacy"](torch.zeros(3), tmp_path / "labels_best.pt")
    with pytest.raises(StorageError, match="save it with a newer"):
        read_layout("mtt", tmp_path)


def rewrite(path: Path, change, compression: int = zipfile.ZIP_STORED) -> None:
    """Changes the parts of a file that torch saved."""
    with zipfile.ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, change(name, content))


def test_a_file_that_unfolds_to_any_size_is_refused(tmp_path):
    export_unsummed(tmp_path)
    path = tmp_path / "images_best.pt"
    torch.save(torch.zeros(10**7), path)
    rewrite(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    with pytest.raises(StorageError, match=r"images_best.pt .*its parts have 40,\d+,\d+ bytes, more than the file"):
        read_layout("mtt", tmp_path)


def test_a_storage_longer_than_its_record_is_refused(tmp_path):
    """The pickle says 200 numbers, the record beside it holds 6: reading on would show this process's memory."""
    export_unsummed(tmp_path)
    path = tmp_path / "labels_best.pt"
    torch.save(torch.arange(6), path)
    rewrite(path, lambda name, content: content.replace(b"K\x06", b"K\xc8") if name.endswith("data.pkl") else content)
    with pytest.raises(StorageError, match=r"labels_best.pt is damaged"):
        read_layout("mtt", tmp_path)


# --- safetensors


def head(header: Any, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    """Returns a safetensors file with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def floats(shape: list[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": list(offsets)}


META = {"__metadata__": {"metadata": "{}", "sha256_metadata": "0", "sha256_tensors": "0"}}


HEADERS = {
    "length beyond 63 bits": head(META, length=2**63),
    "greatest length": head(META, length=2**64 - 1),
    "longer than the file": head(META, length=10**6),
    "terabytes of one tensor": head(META | {"a": floats([10**12], 0, 4 * 10**12)}),
    "shape whose size overflows": head(META | {"a": floats([2**62, 2**62], 0, 16)}),
    "end beyond the file": head(META | {"a": floats([4], 8, 24)}),
    "end before the start": head(META | {"a": floats([4], 16, 0)}),
    "negative start": head(META | {"a": floats([4], -16, 0)}),
    "two tensors at one place": head(META | {"a": floats([4], 0, 16), "b": floats([4], 0, 16)}),
    "tensors that overlap": head(META | {"a": floats([2], 0, 8), "b": floats([2], 4, 12), "c": floats([1], 12, 16)}),
    "one name twice": head(
        json.dumps(META)[:-1].encode() + b', "a": %b, "a": %b}' % ((json.dumps(floats([4], 0, 16)).encode(),) * 2)
    ),
    "name of a path": head(META | {"../../evil": floats([4], 0, 16)}),
    "metadata that are a number": head({"__metadata__": {"metadata": 1}}),
    "nested metadata": head({"__metadata__": {"metadata": "[" * 100_000, "sha256_metadata": "0", "sha256_tensors": "0"}}),
    "nested lists": head(b"[" * 10_000),
    "nothing": head({}),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_hostile_safetensors_header_is_refused(tmp_path, content):
    (tmp_path / "set.safetensors").write_bytes(content)
    with limits(), pytest.raises(StorageError, match=r"set\.safetensors"):
        load_tensors(tmp_path / "set.safetensors")
    assert below(tmp_path) == {tmp_path / "set.safetensors"}


# --- teachers


def test_a_pickled_array_in_the_place_of_a_teacher_is_not_unpickled(tmp_path):
    canary = tmp_path / "canary"
    np.save(tmp_path / "teacher-000.npy", np.array([Touch(canary)] * 2, dtype=object), allow_pickle=True)
    write_json(tmp_path / "teacher-000.json", {"rows": ["0", "0"], "train_loss": [1.0], "seconds": 1.0})
    with pytest.raises(StorageError, match=r"teacher-000\.npy is damaged"):
        TrajectorySet(tmp_path, 1).segment(0, 0, 1)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("old", "new"), [("'<f4'", "'<i4'"), ("'<f4'", "'>f4'"), ("(5, 40)", "(5,8,5)"), ("(5, 40)", "(200, )")]
)
def test_the_head_of_a_teacher_file_cannot_give_its_rows_another_meaning(tmp_path, old, new):
    write_teacher(tmp_path)
    path = tmp_path / "teacher-000.npy"
    assert path.read_bytes().count(old.encode()) == 1
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(StorageError, match=r"teacher-000\.npy"):
        TrajectorySet(tmp_path, 1).segment(0, 0, 1)


# --- parquet


def test_a_parquet_column_cannot_name_code(tmp_path):
    """Before version 14.0.1, pyarrow unpickled what an extension type said of itself."""
    canary = tmp_path / "canary"
    kind = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Touch(canary))}
    fields = [pa.field("img", pa.struct([("bytes", pa.binary())])), pa.field("label", pa.int64(), metadata=kind)]
    table = pa.table({"img": [{"bytes": encode(random_pixels(1)[0])}], "label": [0]}, schema=pa.schema(fields))
    pq.write_table(table, tmp_path / "shard.parquet")
    read_shards([tmp_path / "shard.parquet"], (3, 32, 32))
    assert not canary.exists()


@pytest.mark.parametrize(("rows", "side"), [(300_000, 6), (2_000, 224)])
def test_a_shard_of_one_row_repeated_cannot_take_much_memory(tmp_path, rows, side):
    image = {"bytes": encode(np.zeros((side, side, 3), dtype=np.uint8))}
    table = pa.table({"img": pa.repeat(pa.scalar(image), rows), "label": pa.repeat(1, rows)})
    pq.write_table(table, tmp_path / "shard.parquet")
    assert (tmp_path / "shard.parquet").stat().st_size < 10_000
    with pytest.raises(DataError, match=r"shard\.parquet is damaged .*its [\d,]+ bytes unfold to more than"):
        read_shards([tmp_path / "shard.parquet"], (3, side, side))
    pq.write_table(table.slice(0, 100), tmp_path / "shard.parquet")
    assert read_shards([tmp_path / "shard.parquet"], (3, side, side))[0].shape == (100, 3, side, side)


def test_class_names_of_a_shard_never_lead_out_of_the_folder(tmp_path):
    data, out = tmp_path / "data", tmp_path / "a" / "b" / "out"
    images = [encode(image) for image in random_pixels(10)]
    for split in ("train", "test"):
        write_shard(data / f"cifar10/{split}-00000-of-00001.parquet", images, list(range(10)), EVIL_NAMES)
    names = load_dataset("cifar10", data).class_names
    assert names == tuple(EVIL_NAMES)
    before = below(tmp_path)
    sequence = make_set(DATASETS["cifar10"].shape, 10)
    for kind in ("folder", "parquet"):
        export_sequence(sequence, kind, out / kind, PLAIN, names)
    assert all(out in (path, *path.parents) or path in out.parents for path in below(tmp_path) - before)
    folders = sorted(path.name for path in (out / "folder" / "train").iterdir())
    assert [name[:2] for name in folders] == [f"{label}-" for label in range(10)]
    assert max(map(len, folders)) < 50
    with pytest.raises(ConfigError, match=r"2 class names are given, but the set has class 9"):
        export_sequence(sequence, "folder", out / "again", PLAIN, names[:2])


# --- folders of images


def write_classes(folder: Path, names: list[str]) -> None:
    write_class_folders(folder, dict.fromkeys(names, random_pixels(1, 6)), ("train", "test"))


def test_odd_names_of_classes_are_only_names(tmp_path):
    names = sorted(["a b", "é", "-rf", "con", "evil\nname", "$(touch evil)", "{x}", "%s", os.fsdecode(b"\xff")])
    write_classes(tmp_path / "set", names)
    dataset = load_dataset(DatasetSpec.from_folder(tmp_path / "set"))
    assert dataset.class_names == tuple(names)
    before = below(tmp_path)
    sequence = make_set((3, 6, 6), len(names))
    written = export_sequence(sequence, "folder", tmp_path / "out", PLAIN, dataset.class_names)
    assert all(tmp_path / "out" in path.parents for path in written)
    assert all((tmp_path / "out") in (path, *path.parents) for path in below(tmp_path) - before)


def test_links_are_followed_and_read_like_what_they_lead_to(tmp_path):
    write_classes(tmp_path / "set", ["cats"])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.png").write_bytes(encode(random_pixels(1, 6)[0]))
    for split in ("train", "test"):
        (tmp_path / "set" / split / "dogs").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "set" / split / "cats" / "1.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    assert load_dataset(DatasetSpec.from_folder(tmp_path / "set")).train.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", ["broken", "loop", "pipe", "device", "folder"])
def test_what_is_no_file_is_named_and_nobody_waits_for_it(tmp_path, kind):
    write_classes(tmp_path / "set", ["cats", "dogs"])
    path = tmp_path / "set" / "train" / "cats" / "1.png"
    match kind:
        case "broken":
            path.symlink_to(tmp_path / "nothing")
        case "loop":
            path.symlink_to(path)
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
    with limits(), pytest.raises(DataError, match=r"1\.png is no file, or a link to none"):
        load_dataset(DatasetSpec.from_folder(tmp_path / "set"))


def test_annotations_cannot_name_files_elsewhere(tmp_path, monkeypatch):
    root = tmp_path / "tiny-imagenet-200"
    monkeypatch.setitem(DATASETS, "tiny_imagenet", DatasetSpec("tiny_imagenet", 2, (3, 6, 6), (0.5,) * 3, (0.5,) * 3))
    for wnid in ("n01", "n02"):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / "images" / "0.JPEG").write_bytes(encode(random_pixels(1, 6)[0], "JPEG"))
    (root / "val" / "images").mkdir(parents=True)
    for name in ("/dev/zero", "../../../secret.png", "a/b.JPEG"):
        (root / "val" / "val_annotations.txt").write_text(f"{name}\tn01\n")
        with pytest.raises(DataError, match=r"val_annotations\.txt names .* outside its folder"):
            load_dataset("tiny_imagenet", tmp_path)


# --- images


def bomb(width: int, height: int) -> bytes:
    """Returns a PNG of a hundred bytes that claims to have that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(8_193, 8_192), (10_000, 10_000), (60_000, 60_000), (1, 2**31 - 1)])
def test_a_small_file_cannot_take_much_memory(tmp_path, width, height):
    assert width * height > MAX_PIXELS
    write_classes(tmp_path, ["cats", "dogs"])
    path = tmp_path / "train" / "cats" / "0.png"
    path.write_bytes(bomb(width, height))
    for size in (None, 6):
        with limits(), pytest.raises(DataError, match=r"0\.png cannot be decoded"):
            load_dataset(DatasetSpec.from_folder(tmp_path, size))
        with limits(), pytest.raises(DataError, match=r"0\.png cannot be decoded"):
            read_image_files([path], (3, 6, 6), resize=size is not None)


def test_a_strip_is_cut_before_it_is_enlarged(tmp_path):
    """Brought to 512 pixels by its shorter side, it would be 30 million pixels long."""
    Image.new("L", (1, 60_000), 7).save(tmp_path / "strip.png")
    with limits():
        images = read_image_files([tmp_path / "strip.png"], (1, 512, 512), resize=True)
    assert images.unique().tolist() == [7]


def test_postscript_is_given_to_no_interpreter(tmp_path, monkeypatch):
    """Pillow hands it to Ghostscript, whatever the file is called."""
    canary = tmp_path / "canary"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {canary}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it remembers whether there was one
    path = tmp_path / "image.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(DataError, match=r"image\.png cannot be decoded"):
        read_image_files([path], (3, 6, 6))
    assert not canary.exists()


# --- what a distilled set says of itself


def write_set(folder: Path, **changes: Any) -> Path:
    """Writes a set of digits whose metadata says other things than a run would."""
    path = folder / "set.safetensors"
    replace(make_set(DATASETS["digits"].shape, 10), metadata=set_metadata() | changes).save(path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, metadata | changes)
    return path


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a/b", "..", "a b", "x" * 300, "evil\n", "\0", 3, None])
def test_a_set_cannot_name_a_data_set_elsewhere(tmp_path, capsys, name):
    path = write_set(tmp_path, config=set_metadata()["config"] | {"dataset": name})
    before = below(tmp_path)
    for command in (["evaluate"], ["export", "--to", "folder", "--out", str(tmp_path / "out")]):
        line = fails_in_one_line(capsys, command[0], str(path), *command[1:])
        assert "dataset" in line
    assert below(tmp_path) == before


@pytest.mark.parametrize("run_id", ["../../evil", "/tmp/evil", "a/b", "..", "x" * 300, "\0", 3, None])
def test_a_set_cannot_name_a_record_elsewhere(tmp_path, capsys, run_id):
    path = write_set(tmp_path, run_id=run_id)
    before = below(tmp_path)
    line = fails_in_one_line(capsys, "evaluate", str(path), "--results", str(tmp_path / "a" / "b" / "results"))
    assert "set.safetensors is not a distilled set: run_id is" in line
    assert below(tmp_path) == before


def test_class_names_of_a_set_never_lead_out_of_the_folder(tmp_path, capsys):
    path, out = write_set(tmp_path, class_names=EVIL_NAMES), tmp_path / "a" / "b" / "out"
    before = below(tmp_path)
    assert main(["export", str(path), "--to", "folder", "--out", str(out)]) == 0
    new = below(tmp_path) - before
    assert all(out in (one, *one.parents) or one in out.parents for one in new)
    assert sum(one.suffix == ".png" for one in new) == 30
    capsys.readouterr()
    path = write_set(tmp_path, class_names=["one"])
    other = str(out.with_name("other"))
    assert "1 class names are given" in fails_in_one_line(capsys, "export", str(path), "--to", "folder", "--out", other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_subsets": 10**12}, "num_subsets is 1000000000000"),
        ({"num_subsets": "2"}, "num_subsets is '2'"),
        ({"formations": [{"factor": 10**6, "decode": "single"}] * 2}, "1000000 tiles a side, more than images of"),
        ({"formations": [{"factor": 1, "command": "x"}] * 2}, "is not a distilled set"),
        ({"class_names": {"a": 1}}, "class_names are"),
        ({"data": ["x"]}, "is not a distilled set"),
        ({"config": []}, "settings must be a table"),
    ],
)
def test_what_a_set_says_must_make_sense(tmp_path, capsys, changes, message):
    path = write_set(tmp_path, **changes)
    with limits():
        line = fails_in_one_line(capsys, "export", str(path), "--to", "parquet", "--out", str(tmp_path / "out"))
    assert message in line
    assert not (tmp_path / "out").exists()


# --- names that are typed


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a/b", "a b", "..", ""])
def test_a_data_set_of_a_run_cannot_lie_elsewhere(tmp_path, capsys, monkeypatch, name):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    before = below(tmp_path)
    arguments = ["run", "digits-ipc10-random", "--scale", "smoke", "--results", "r", "--set", f"dataset={name}"]
    line = fails_in_one_line(capsys, *arguments)
    assert "dataset" in line
    assert "letters, digits" in line
    assert below(tmp_path) == before


def test_a_folder_of_images_must_be_fit_for_names_of_files(tmp_path, capsys):
    write_classes(tmp_path / "my photos", ["cats", "dogs"])
    before = below(tmp_path)
    arguments = ["run", "cifar10-ipc1-idc", "--scale", "smoke", "--results", str(tmp_path / "results")]
    assert "'my photos' must consist of letters" in fails_in_one_line(
        capsys, *arguments, "--images", str(tmp_path / "my photos")
    )
    assert below(tmp_path) == before


# --- parameters of notebooks


@pytest.mark.parametrize(
    "text",
    [
        'x"; import os; os.system("touch {canary}") #',
        "x'; import os; os.system('touch {canary}') #",
        'x\\"; import os; os.system("touch {canary}") #',
        'x\nimport os; os.system("touch {canary}")',
        'x\rimport os; os.system("touch {canary}")',
        'x\u2028import os; os.system("touch {canary}")',
        '"""; import os; os.system("touch {canary}"); """',
        '__import__("os").system("touch {canary}")',
        "{{canary.__class__}} %s $HOME `touch {canary}`",
        "x\\",
        "\ud800 \0 é",
        '["a", __import__("os").system("touch {canary}")]',
    ],
)
def test_a_parameter_of_a_notebook_is_text_whatever_it_says(tmp_path, text):
    canary = tmp_path / "canary"
    text = text.replace("{canary}", str(canary))
    write_notebook(tmp_path)
    found = read_parameter(tmp_path, ("scale", text))
    assert fits_parameter(found)
    namespace: dict[str, Any] = {}
    exec(found[2][0], namespace)
    assert namespace.keys() == {"scale", "__builtins__"}
    assert namespace["scale"] == parse_override(f"scale={text}")[1]
    assert not canary.exists()


def test_a_parameter_must_be_one_of_the_notebook(tmp_path):
    write_notebook(tmp_path)
    for name in ("import os #", "scale, os", "__builtins__", "Scale"):
        with pytest.raises(ConfigError, match="unknown parameter of"):
            run_notebook(tmp_path / "one.ipynb", tmp_path / "out.ipynb", {name: 1})


def test_braces_in_the_path_of_a_notebook_are_no_places_for_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr(papermill, "execute_notebook", functools.partial(papermill.execute_notebook, prepare_only=True))
    folder = tmp_path / "a" / "b" / "{scale} {0.__class__}"
    folder.mkdir(parents=True)
    write_notebook(folder)
    run_notebook(folder / "one.ipynb", folder / "{scale}.ipynb", dict.fromkeys(NOTEBOOK, "../../evil"))
    assert below(tmp_path) - below(folder) == {tmp_path / "a", tmp_path / "a" / "b", folder}
    assert {path.name for path in below(folder)} == {"one.ipynb", "{scale}.ipynb"}


# --- the library itself


MODULES_THAT_RUN_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "runpy"}
CALLS_THAT_RUN_CODE = {"eval", "exec", "compile", "__import__"}
STARTS_OF_OS = ("os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn")


def find_dangers(source: str) -> list[str]:
    """Returns what in a module could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in MODULES_THAT_RUN_CODE]
        if not isinstance(node, ast.Call):
            continue
        called, words = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        if called in CALLS_THAT_RUN_CODE or called.startswith(STARTS_OF_OS):
            found.append(called)
        if called.endswith("torch.load") and ast.unparse(words.get("weights_only", ast.Constant(None))) != "True":
            found.append("torch.load without weights_only=True")
        found += [f"{called}({word}=…)" for word in ("allow_pickle", "shell") if word in words]
    return found


def test_the_library_runs_nothing_that_it_reads():
    """Of what it calls, torchvision's CIFAR reader unpickles: after the md5 sums of the originals were compared.

    `test_a_changed_cifar_batch_is_refused_before_it_is_unpickled` in test_data.py holds that to be so.
    """
    files = sorted(Path(seqmatch_lib.__file__).parent.rglob("*.py"))
    assert {path.name: find_dangers(path.read_text()) for path in files if find_dangers(path.read_text())} == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=trusted)", "import pickle",
        "from pickle import loads", "import yaml", "eval(text)", "exec(text)", "os.system(text)",
        "np.load(path, allow_pickle=True)", "subprocess.run(text, shell=True)", "__import__(name)",
    ],
)  # fmt: skip
def test_the_check_of_the_library_finds_what_it_looks_for(source):
    assert find_dangers(source)
    assert not find_dangers("torch.load(path, weights_only=True); network.eval(); re.compile(text); subprocess.run([git])")

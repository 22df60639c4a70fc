"""Fuzzing of everything that reads what others may have written: files, settings, and what is typed.

`python tests/fuzzing.py --inputs 100000` gives that many damaged and hostile inputs to the readers of the library, and prints
what came of them, reader by reader. The same seed gives the same inputs. `fuzz_engine.py` says what counts as a fault.
"""

import argparse
import ast
import contextlib
import csv
import hashlib
import io
import json
import math
import pickle  # the format of CIFAR-10's originals
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
import numpy as np
import pandas as pd
import papermill
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuzz_engine import TEXTS, VALUES, WORDS, Target, changed, count_faults, file_target, format_table, fuzz_apart
from helpers import CLASSES, SHAPE
from hypothesis import strategies as st
from papermill.parameterize import parameterize_notebook
from PIL import Image

from seqmatch_lib.__main__ import EXIT_ERROR
from seqmatch_lib.__main__ import main as command_line
from seqmatch_lib.bench_report import SCHEMA, load_benchmark, newest_benchmark
from seqmatch_lib.checkpoint import StageCheckpoint, StageProgress, read_progress
from seqmatch_lib.checksums import check_files, write_checksums
from seqmatch_lib.config import RunConfig, parse_override
from seqmatch_lib.data import DATASETS, DatasetSpec, ImageDataset, import_torchvision, load_dataset
from seqmatch_lib.data_files import read_image_files
from seqmatch_lib.errors import SeqMatchError
from seqmatch_lib.exchange import FORMATS, export_sequence, import_sequence
from seqmatch_lib.judging import Judgement, load_judgements
from seqmatch_lib.methods.base import Trainable
from seqmatch_lib.notebooks import run_notebook
from seqmatch_lib.preprocessing import Normalisation
from seqmatch_lib.results import RunRecord, format_records, load_record
from seqmatch_lib.storage import load_tensors, read_json, save_tensors, write_json
from seqmatch_lib.synthetic import SubsetSequence, SyntheticSubset, load_sequence, save_sequence
from seqmatch_lib.tables import load_published
from seqmatch_lib.trajectories import TrajectorySet

ROOT = Path(__file__).parents[1]
PLAIN = Normalisation((0.5,), (0.25,))
LRS = (0.01, 0.02)
NAMES = ("airplane", "../../evil", "é")


def generator() -> torch.Generator:
    """Returns the same random numbers for all valid files."""
    return torch.Generator().manual_seed(0)


def pixels(count: int, *size: int) -> np.ndarray:
    """Returns random pixels."""
    return np.random.default_rng(0).integers(0, 256, (count, *size), dtype=np.uint8)


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    """Returns the content of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def make_set(shape: tuple[int, int, int] = SHAPE, classes: int = CLASSES, soft: bool = False) -> SubsetSequence:
    """Returns a small distilled set of two subsets, whose colours lie between black and white."""
    subsets = []
    for ipc, lr in zip((2, 1), LRS, strict=True):
        labels = torch.arange(classes).repeat_interleave(ipc)
        images = PLAIN(255 * torch.rand(len(labels), *shape, generator=generator()))
        subsets.append(SyntheticSubset(images, torch.eye(classes)[labels].softmax(1) if soft else labels, lr))
    return SubsetSequence(tuple(subsets))


@cache
def settings_of(preset: str) -> dict[str, Any]:
    """Returns the settings of a preset at smoke scale."""
    return RunConfig.from_preset(preset, "smoke").as_dict()


@cache
def small_config(kind: str) -> RunConfig:
    """Returns the configuration that `make_set` is an instance of."""
    overrides = {"ipc": 3, "subset_ipcs": [2, 1]} | ({"idc.factor": 1} if kind == "idc" else {})
    return RunConfig.from_preset(f"digits-ipc10-seqmatch_{'idc' if kind == 'idc' else 'mtt'}", "smoke", overrides=overrides)


# --- files of ours, all of them with checksums


def write_value(folder: Path) -> None:
    """Writes JSON of all kinds, most of it numbers and words, which may change without a trace in the syntax."""
    numbers = {name: [number**2, -number / 7] for number, name in enumerate("abcdefghijklmnop")}
    write_json(folder / "value.json", {"a": [1, 2.5, None, True, "é"], "b": {"c": -1e-9, "d": 10**20}, "more": numbers})


@cache
def sample_record() -> dict[str, Any]:
    """Returns a record of this repository, shortened."""
    record = next(load_record(path) for path in sorted((ROOT / "paper_results" / "runs").rglob("*seqmatch_mtt*.json")))
    stages = [stage | {"losses": stage["losses"][:3], "scores": stage["scores"][:2]} for stage in record.stages]
    return asdict(replace(record, stages=stages))


@cache
def sample_judgement() -> dict[str, Any]:
    """Returns a judgement of the record's set."""
    record = sample_record()
    common = {name: record[name] for name in ("run_id", "synthetic_sha256", "seed", "config", "device", "device_name")}
    common |= {name: record[name] for name in ("threads", "torch", "python", "git_commit", "dirty")}
    accuracy = {"convnet": {"mean": 50.0, "std": 1.0, "n": 2, "values": [49.0, 51.0]}}
    return asdict(
        Judgement(schema=1, joint=False, accuracy=accuracy, random_baseline=None, data="fingerprint", seconds=1.5, **common)
    )


def make_trainable() -> Trainable:
    """Returns a subset with its optimisers, before its first step."""
    subset = make_set().subsets[0]
    images, lr = subset.images.clone().requires_grad_(), torch.tensor(0.01, requires_grad=True)
    optimizers = {
        "images": torch.optim.SGD([images], lr=1.0, momentum=0.5),
        "lr": torch.optim.SGD([lr], lr=1e-5, momentum=0.5),
    }
    return Trainable(images, subset.labels, lr, optimizers)


def write_checkpoint(folder: Path) -> None:
    """Writes a stage after one step, with a scored iterate and a method's own state."""
    trainable = make_trainable()
    (trainable.images.square().sum() + trainable.lr).backward()
    for optimizer in trainable.optimizers.values():
        optimizer.step()
    trainable.iteration, trainable.losses = 1, [0.5]
    progress = StageProgress(trainable)
    progress.consider(40.0)
    StageCheckpoint(folder / "stage-1.safetensors", "owner").save(progress, {"start": torch.arange(4.0)})


def read_checkpoint(folder: Path) -> Any:
    """Reads it, and returns all that a run goes on from."""
    path = folder / "stage-1.safetensors"
    if not path.is_file():
        raise SeqMatchError(f"{path}: a stage without a checkpoint begins anew")
    progress, state = StageCheckpoint(path, "owner").load(make_trainable())
    trainable = progress.trainable
    memory = [dict(optimizer.state[optimizer.param_groups[0]["params"][0]]) for optimizer in trainable.optimizers.values()]
    numbers = (trainable.iteration, trainable.losses, progress.scores, progress.seconds, progress.peak_memory_mb)
    return trainable.images, trainable.labels, trainable.lr, memory, numbers, progress.best, state


def read_judged(folder: Path) -> list[Judgement]:
    """Reads all judgements, if there are any."""
    found = load_judgements(folder)
    if not found:
        raise SeqMatchError(f"{folder}: nothing has been judged")
    return found


def read_begun(folder: Path) -> Any:
    """Reads how far a run is, if it has begun."""
    found = read_progress(folder)
    if not found:
        raise SeqMatchError(f"{folder}: no stage has begun")
    return found


def fits_checkpoint(value: Any) -> bool:
    """Whether a run can go on from it."""
    images, labels, lr, _, (iteration, losses, *_), *_ = value
    return (
        images.shape == (6, *SHAPE) and labels.shape == (6,) and lr.dim() == 0 and iteration >= 0 and len(losses) == iteration
    )


def write_teacher(folder: Path) -> None:
    """Writes one teacher of four epochs."""
    rows = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    np.save(folder / "teacher-000.npy", rows)
    checksums = [hashlib.sha256(row).hexdigest() for row in rows]
    write_json(folder / "teacher-000.json", {"rows": checksums, "train_loss": [1.0] * 4, "seconds": 1.0})


def read_teacher(folder: Path) -> Any:
    """Reads every row."""
    teachers = TrajectorySet(folder, 1)
    return [teachers.segment(0, 0, epoch) for epoch in range(1, 5)], teachers.seconds, teachers.train_losses(0)


def write_benchmark(folder: Path) -> None:
    """Writes what `newest_benchmark` looks at."""
    write_json(folder / "cpu-quick.json", {"schema": SCHEMA, "measured_at": "2025-01-01T00:00:00", "quick": True})


OUR_FILES = [
    file_target("json", write_value, lambda folder: read_json(folder / "value.json"), checksummed=True, share=3),
    file_target(
        "run record",
        lambda folder: write_json(folder / "record.json", sample_record()),
        lambda folder: load_record(folder / "record.json"),
        checksummed=True,
        share=2,
    ),
    file_target(
        "judgement",
        lambda folder: write_json(folder / "judgements" / "digits" / "one.json", sample_judgement()),
        read_judged,
        checksummed=True,
    ),
    file_target(
        "benchmark",
        write_benchmark,
        lambda folder: load_benchmark(newest_benchmark(folder)),
        checksummed=True,
    ),
    file_target(
        "tensors",
        lambda folder: save_tensors(folder / "x.safetensors", {"a": torch.arange(6.0), "b": torch.tensor(1)}, {"c": [1]}),
        lambda folder: load_tensors(folder / "x.safetensors"),
        checksummed=True,
        share=3,
    ),
    file_target(
        "distilled set",
        lambda folder: save_sequence(folder / "set.safetensors", make_set()),
        lambda folder: load_sequence(folder / "set.safetensors"),
        checksummed=True,
        share=3,
    ),
    file_target("checkpoint", write_checkpoint, read_checkpoint, checksummed=True, share=2),
    file_target("progress", write_checkpoint, read_begun, checksummed=True),
    file_target("teacher", write_teacher, read_teacher, checksummed=True, share=2),
]


# --- data sets


SHARDS = DatasetSpec("svhn", 2, (3, 6, 6), (0.5,) * 3, (0.25,) * 3)
TINY = DatasetSpec("tiny_imagenet", 2, (3, 8, 8), (0.5,) * 3, (0.25,) * 3)
FASHION = DatasetSpec("fashion_mnist", 10, (1, 6, 6), (0.5,), (0.25,))
CIFAR = DatasetSpec("cifar10", 10, (3, 32, 32), (0.5,) * 3, (0.25,) * 3)


def write_shards(folder: Path) -> None:
    """Writes a data set as parquet."""
    for split in ("train", "test"):
        images = [{"bytes": encode(image), "path": f"{row}.png"} for row, image in enumerate(pixels(4, 6, 6, 3))]
        table = pa.table({"img": images, "label": [0, 1, 0, 1]}).replace_schema_metadata({"class_names": '["cat", "dog"]'})
        path = folder / "svhn" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)


def write_summed_shards(folder: Path) -> None:
    """Writes the same with its checksums."""
    write_shards(folder)
    write_checksums(folder, sorted(folder.rglob("*.parquet")))


def fits_dataset(dataset: ImageDataset) -> bool:
    """Whether a data set is one that can be trained on."""
    shape, classes = dataset.spec.shape, dataset.spec.num_classes
    return len(dataset.class_names) == classes and all(
        split.images.dtype is torch.uint8
        and split.images.shape == (len(split.labels), *shape)
        and split.labels.dtype is torch.int64
        and 0 <= split.labels.min() <= split.labels.max() < classes
        for split in (dataset.train, dataset.test)
    )


def contents_of(dataset: ImageDataset) -> Any:
    """Returns what a data set holds; its notices say more where a line of the checksums is lost."""
    return dataset.train, dataset.test, dataset.class_names, dataset.fingerprint


def write_summed_files(folder: Path) -> None:
    """Writes two files and their checksums."""
    (folder / "below").mkdir()
    paths = [folder / "one", folder / "below" / "two"]
    for path in paths:
        path.write_bytes(path.name.encode())
    write_checksums(folder, paths)


def read_summed_files(folder: Path) -> list[bytes]:
    """Reads them if their checksums are there and right."""
    paths = [folder / "one", folder / "below" / "two"]
    if not all(path.is_file() for path in paths) or check_files(folder, paths):
        raise SeqMatchError(f"{folder} holds files that nobody answers for")
    return [path.read_bytes() for path in paths]


def write_image(kind: str) -> Callable[[Path], None]:
    """Returns what writes an image file of 12 x 9 pixels."""
    return lambda folder: (folder / "image").write_bytes(encode(pixels(1, 9, 12, 3)[0], kind)) and None


def read_image(shape: tuple[int, int, int], resize: bool) -> Callable[[Path], Any]:
    """Returns what decodes it."""
    return lambda folder: read_image_files([folder / "image"], shape, resize)


def image_targets(kind: str) -> list[Target]:
    """Returns the targets of one image format: as it is, in colour, and brought to another size, in grey."""
    small = (1, 8, 8)
    return [
        file_target(
            kind, write_image(kind), read_image((3, 9, 12), False), accepts=lambda x: x.shape == (1, 3, 9, 12), share=2
        ),
        file_target(
            f"{kind}, resized", write_image(kind), read_image(small, True), accepts=lambda x: x.shape == (1, *small), share=2
        ),
    ]


def write_pictures(folder: Path) -> None:
    """Writes an image folder of two classes."""
    for split in ("train", "test"):
        for number, name in enumerate(("cats", "dogs")):
            (folder / split / name).mkdir(parents=True)
            for image, kind in zip(pixels(2, 6, 6, 3) // (number + 1), ("PNG", "BMP"), strict=True):
                (folder / split / name / f"{kind}.{kind.lower()}").write_bytes(encode(image, kind))


def write_tiny(folder: Path) -> None:
    """Writes the layout of Tiny ImageNet's archive."""
    root, rows = folder / "tiny-imagenet-200", []
    images = [encode(image, "JPEG") for image in pixels(2, 8, 8, 3)]
    (root / "val" / "images").mkdir(parents=True)
    for wnid, image in zip(("n01", "n02"), images, strict=True):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / "images" / "0.JPEG").write_bytes(image)
        (root / "val" / "images" / f"{wnid}.JPEG").write_bytes(image)
        rows.append(f"{wnid}.JPEG\t{wnid}\t0\t0\t7\t7\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))


def write_fashion(folder: Path) -> None:
    """Writes the files of Fashion-MNIST."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        for name, array in (("images-idx3", pixels(10, 6, 6)), ("labels-idx1", np.arange(10, dtype=np.uint8))):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (raw / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())


@cache
def cifar_files() -> dict[str, bytes]:
    """Returns the content of CIFAR-10's files, shortened."""
    batch = {"data": pixels(10, 3072), "labels": list(range(10))}
    files = {"data_batch_1": batch, "test_batch": batch, "batches.meta": {"label_names": list("abcdefghij")}}
    return {name: pickle.dumps(content) for name, content in files.items()}


def write_cifar(folder: Path) -> None:
    """Writes them."""
    for name, content in cifar_files().items():
        path = folder / "cifar-10-batches-py" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def read_cifar(folder: Path) -> Any:
    """Reads them, with their checksums in the place of the originals'."""
    kind = import_torchvision().datasets.CIFAR10
    sums = {name: hashlib.md5(content).hexdigest() for name, content in cifar_files().items()}
    lists = {"train_list": [["data_batch_1", sums["data_batch_1"]]], "test_list": [["test_batch", sums["test_batch"]]]}
    with patch.multiple(kind, **lists, meta=kind.meta | {"md5": sums["batches.meta"]}):
        return contents_of(load_dataset(CIFAR, folder))


DATA_FILES = [
    file_target("shards", write_shards, lambda folder: load_dataset(SHARDS, folder), accepts=fits_dataset, share=3),
    file_target(
        "shards, summed", write_summed_shards, lambda folder: contents_of(load_dataset(SHARDS, folder)), checksummed=True
    ),
    file_target(
        "SHA256SUMS",
        write_summed_files,
        read_summed_files,
        checksummed=True,
        share=2,
    ),
    *[target for kind in ("PNG", "JPEG", "WEBP", "BMP") for target in image_targets(kind)],
    file_target(
        "image folder",
        write_pictures,
        lambda folder: load_dataset(DatasetSpec.from_folder(folder, image_size=6)),
        accepts=fits_dataset,
    ),
    file_target(
        "image folder, own size",
        write_pictures,
        lambda folder: load_dataset(DatasetSpec.from_folder(folder)),
        accepts=fits_dataset,
    ),
    file_target(
        "Tiny ImageNet",
        write_tiny,
        lambda folder: load_dataset(TINY, folder),
        accepts=fits_dataset,
        names=("tiny-imagenet-200/val/val_annotations.txt", "tiny-imagenet-200/train/n01/images/0.JPEG"),
    ),
    file_target("Fashion-MNIST", write_fashion, lambda folder: load_dataset(FASHION, folder), accepts=fits_dataset),
    file_target("CIFAR-10, pickled", write_cifar, read_cifar, checksummed=True, share=0.3),
]


# --- distilled sets of others


def read_layout(kind: str, folder: Path) -> SubsetSequence:
    """Imports the set."""
    lrs = LRS if kind in ("idc", "folder") else ()
    return import_sequence([folder], kind, small_config(kind), PLAIN, SHAPE, CLASSES, lrs)


def fits_set(sequence: SubsetSequence) -> bool:
    """Whether a set is one that networks can be trained on; said independently of `check_sequence`."""
    sizes = [len(subset.images) for subset in sequence.subsets]
    return sizes == [2 * CLASSES, CLASSES] and all(
        subset.images.shape[1:] == SHAPE
        and subset.images.dtype is torch.float32
        and bool(subset.images.isfinite().all())
        and len(subset.labels) == len(subset.images)
        and (
            (
                subset.labels.dtype is torch.float32
                and subset.labels.shape[1:] == (CLASSES,)
                and bool(subset.labels.isfinite().all())
            )
            or (
                subset.labels.dtype is torch.int64
                and subset.labels.shape[1:] == ()
                and 0 <= subset.labels.min() <= subset.labels.max() < CLASSES
            )
        )
        and 0 < subset.lr < math.inf
        for subset in sequence.subsets
    )


def layout_targets(kind: str) -> list[Target]:
    """Returns the targets of one layout, with its checksums and without."""

    def write(folder: Path) -> None:
        export_sequence(make_set(soft=kind == "datm"), kind, folder, PLAIN, NAMES)

    def write_unsummed(folder: Path) -> None:
        write(folder)
        (folder / "SHA256SUMS").unlink()

    def read(folder: Path) -> SubsetSequence:
        sequence = read_layout(kind, folder)
        return replace(sequence, metadata={})  # it names the folder

    return [
        file_target(f"layout {kind}", write_unsummed, read, accepts=fits_set, share=1.5),
        file_target(f"layout {kind}, summed", write, read, checksummed=True, share=0.7),
    ]


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool,
          torch.complex64, torch.float8_e4m3fn)  # fmt: skip
FILLS = st.sampled_from([0.0, 1.0, 2.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 1e18])
SIZES = st.one_of(
    st.sampled_from([(6, *SHAPE), (3, *SHAPE), (6,), (3,), (6, 6, 6), (6, 3), (3, 3), (), (0,), (0, *SHAPE), (6, 0)]),
    st.lists(st.integers(0, 7), max_size=5).map(tuple),
)


@st.composite
def odd_tensors(draw: st.DrawFn) -> torch.Tensor:
    """Draws a tensor of any dtype and shape."""
    size, dtype, fill = draw(SIZES), draw(st.sampled_from(DTYPES)), draw(FILLS)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.full(size, fill, dtype=torch.float32).to(dtype)
    return torch.full(size, int(fill) if math.isfinite(fill) else 2**62, dtype=torch.int64).to(dtype)


@st.composite
def odd_objects(draw: st.DrawFn) -> Any:
    """Draws what `torch.save` might be given."""
    tensor = draw(odd_tensors())
    kind = draw(
        st.sampled_from(["plain", "expanded", "sparse", "list", "dict", "parameter", "view", "meta", "numbers", "deep"])
    )
    match kind:
        case "expanded":
            return torch.zeros(1).expand(draw(st.sampled_from([10**12, 10**6, 3])))
        case "sparse" if tensor.dim() and tensor.dtype is torch.float32:
            return tensor.to_sparse()
        case "list":
            return [tensor, draw(odd_tensors()), draw(odd_tensors())][: draw(st.integers(0, 3))]
        case "dict":
            return {"images": tensor, 1: [tensor]}
        case "parameter" if tensor.is_floating_point():
            return torch.nn.Parameter(tensor)
        case "view":
            return torch.stack([tensor, tensor])[1].transpose(0, -1) if tensor.dim() else tensor
        case "meta":
            return torch.empty(3, device="meta")
        case "numbers":
            return draw(st.one_of(st.integers(), st.floats(), st.text(), st.none()))
        case "deep":
            return [[[[tensor]]]] * 3
    return tensor


def write_mtt(folder: Path) -> None:
    """Writes the layout of MTT without checksums."""
    export_sequence(make_set(), "mtt", folder, PLAIN, NAMES)
    (folder / "SHA256SUMS").unlink()


def write_idc(folder: Path) -> None:
    """Writes the layout of IDC without checksums."""
    export_sequence(make_set(), "idc", folder, PLAIN, NAMES)
    (folder / "SHA256SUMS").unlink()


def read_odd_mtt(folder: Path, drawn: tuple[str, Any, bool]) -> SubsetSequence:
    """Puts an object in the place of one of the files, and imports the set."""
    name, value, zipped = drawn
    path = folder / "S_1" / name
    whole = path.read_bytes()
    try:
        save(value, path, zipped)
        return read_layout("mtt", folder)
    finally:
        path.write_bytes(whole)


def read_odd_idc(folder: Path, drawn: tuple[Any, Any, bool]) -> SubsetSequence:
    """The same with one or both of the pair that IDC saves; Ellipsis stands for the valid one."""
    sequence, pair = make_set(), list(drawn[:2])
    for place, parts in enumerate(zip(*((PLAIN.inverse(one.images), one.labels) for one in sequence.subsets), strict=True)):
        pair[place] = torch.cat(parts) if pair[place] is ... else pair[place]
    save(pair, folder / "data_com_best.pt", drawn[2])
    return read_layout("idc", folder)


def save(value: Any, path: Path, zipped: bool) -> None:
    """Saves an object as torch does now, or as it did before 2020."""
    with contextlib.suppress(RuntimeError, NotImplementedError):  # not every object fits the old format
        torch.save(value, path, _use_new_zipfile_serialization=zipped)


COLUMN = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-2, 4)), min_size=9, max_size=9),
    st.lists(st.floats(width=32), min_size=9, max_size=9),
    st.lists(st.text(max_size=3), min_size=9, max_size=9),
    st.lists(st.lists(st.floats(width=32), max_size=4), min_size=9, max_size=9),
    st.lists(st.sampled_from([2**63 - 1, 2**40]), min_size=9, max_size=9),
    st.just([0, 0, 1, 1, 2, 2, 0, 1, 2]),
    st.lists(st.booleans(), min_size=9, max_size=9),
)
JSON_TEXTS = st.one_of(VALUES.map(json.dumps), TEXTS, st.just("[" * 100_000), st.just("[0.01, 0.02]"))


@st.composite
def odd_tables(draw: st.DrawFn) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Draws columns, and the metadata of their schema."""
    images = [{"bytes": encode(image[:, :, 0]), "path": "x"} for image in pixels(9, 6, 6, 3)]
    columns: dict[str, Any] = {"img": images, "label": [0, 0, 1, 1, 2, 2, 0, 1, 2], "subset": [1] * 6 + [2] * 3}
    for _ in range(draw(st.integers(0, 2))):
        columns[draw(st.sampled_from(["label", "subset", "soft_label", "img"]))] = draw(COLUMN)
    metadata = {"lrs": "[0.01, 0.02]", "class_names": '["a", "b", "c"]'}
    for name in draw(st.lists(st.sampled_from(["lrs", "class_names"]), max_size=2)):
        metadata[name] = draw(JSON_TEXTS)
    return columns, metadata


def write_table(path: Path, drawn: tuple[dict[str, list[Any]], dict[str, str]]) -> None:
    """Writes them as parquet."""
    columns, metadata = drawn
    encoded = {name: text.encode("utf-8", "surrogatepass") for name, text in metadata.items()}
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(encoded), path)


def read_odd_layout(folder: Path, drawn: Any) -> SubsetSequence:
    """Imports a set from such a table."""
    write_table(folder / "train-00000-of-00001.parquet", drawn)
    return read_layout("parquet", folder)


def read_odd_shards(folder: Path, drawn: Any) -> ImageDataset:
    """Loads a data set from such tables."""
    for split in ("train", "test"):
        write_table(folder / "svhn" / f"{split}-00000-of-00001.parquet", drawn)
    return load_dataset(replace(SHARDS, num_classes=3), folder)


LAYOUTS = [
    *[target for kind in FORMATS for target in layout_targets(kind)],
    Target(
        "layout mtt, other values",
        st.tuples(st.sampled_from(["images_best.pt", "labels_best.pt", "best_lr.pt"]), odd_objects(), st.booleans()),
        read_odd_mtt,
        write_mtt,
        accepts=fits_set,
    ),
    Target(
        "layout idc, other values",
        st.tuples(st.one_of(st.just(...), odd_objects()), st.one_of(st.just(...), odd_objects()), st.booleans()),
        read_odd_idc,
        write_idc,
        accepts=fits_set,
    ),
    Target("layout parquet, other values", odd_tables(), read_odd_layout, accepts=fits_set),
    Target("shards, other values", odd_tables(), read_odd_shards, accepts=fits_dataset),
]


# --- values that nobody damaged: their checksums are right


def read_odd_record(folder: Path, drawn: Any) -> RunRecord:
    """Reads a record with other values, and prints it as `show` does."""
    write_json(folder / "record.json", drawn)
    record = load_record(folder / "record.json")
    format_records([record])
    return record


def fits_record(record: RunRecord) -> bool:
    """Whether its values have the types that tables, figures and sorting expect."""
    words = (record.run_id, record.table, record.preset, record.scale, record.dataset, record.method, record.device_name)
    whole = (record.ipc, record.num_subsets, record.seed, record.threads)
    tables = (record.config, record.data, record.seconds, record.peak_memory_mb, record.accuracy_last, *record.stages)
    return (
        all(isinstance(word, str) for word in words)
        and all(type(number) is int for number in whole)
        and all(isinstance(table, dict) for table in tables)
        and all(math.isfinite(value) for value in (*record.seconds.values(), *record.peak_memory_mb.values()))
    )


def fits_judgements(judgements: list[Judgement]) -> bool:
    """The same of judgements."""
    return all(
        isinstance(one.run_id, str)
        and isinstance(one.config, dict)
        and all(isinstance(found, dict) for found in (one.accuracy, *one.accuracy.values(), one.random_baseline or {}))
        and math.isfinite(one.seconds)
        for one in judgements
    )


def read_odd_judgement(folder: Path, drawn: Any) -> list[Judgement]:
    """Reads a judgement with other values."""
    write_json(folder / "judgements" / "digits" / "one.json", drawn)
    return load_judgements(folder)


def read_odd_benchmark(folder: Path, drawn: Any) -> Any:
    """Reads a benchmark with other values."""
    write_json(folder / "one.json", drawn)
    return load_benchmark(newest_benchmark(folder))


def read_odd_checkpoint(folder: Path, drawn: tuple[Any, str, torch.Tensor | None]) -> Any:
    """Changes metadata, and one tensor, of a checkpoint, and loads it."""
    path = folder / "stage-1.safetensors"
    whole = path.read_bytes()
    metadata, name, tensor = drawn
    try:
        tensors, _ = load_tensors(path)
        if tensor is not None:
            tensors[name] = tensor
        save_tensors(path, tensors, metadata)
        return read_checkpoint(folder)
    finally:
        path.write_bytes(whole)


@cache
def checkpoint_values() -> dict[str, Any]:
    """Returns the metadata of a checkpoint."""
    seconds = {"teachers": 0.0, "distillation": 1.0, "selection": 0.0}
    memory = {"teachers": 0.0, "distillation": 9.0}
    return {
        "owner": "owner", "iteration": 1, "losses": [0.5], "scores": [[1, 40.0]], "seconds": seconds, "peak_memory_mb": memory
    }  # fmt: skip


def set_metadata() -> dict[str, Any]:
    """Returns what a run writes into its set."""
    config = settings_of("digits-ipc10-seqmatch_mtt") | {"ipc": 3, "subset_ipcs": [2, 1]}
    formations = [{"factor": 1, "decode": "single"}] * 2
    return {
        "num_subsets": 2, "formations": formations, "run_id": "digits-run", "config": config, "data": {"fingerprint": "x"},
        "class_names": [*NAMES, *"abcdefg"],
    }  # fmt: skip


def read_odd_set(folder: Path, drawn: tuple[Any, str, torch.Tensor | None, str]) -> int:
    """Exports a set with other values, as the command does that gets it from anywhere."""
    metadata, name, tensor, kind = drawn
    sequence = make_set(DATASETS["digits"].shape, 10)
    tensors = {}
    for k, subset in enumerate(sequence.subsets, start=1):
        tensors |= {f"images.{k}": subset.images, f"labels.{k}": subset.labels, f"lr.{k}": torch.tensor(subset.lr).double()}
    if tensor is not None:
        tensors[name] = tensor
    path = folder / "set.safetensors"
    save_tensors(path, tensors, metadata)
    code = command_line(["export", str(path), "--to", kind, "--out", str(folder / "out")])
    if code == EXIT_ERROR:
        raise SeqMatchError(str(path))  # told in one line; which line, other tests look at
    return code


CHECKED_VALUES = [
    Target(
        "run record, other values",
        st.deferred(lambda: changed(sample_record())),
        read_odd_record,
        accepts=fits_record,
        share=2,
    ),
    Target(
        "judgement, other values",
        st.deferred(lambda: changed(sample_judgement())),
        read_odd_judgement,
        accepts=fits_judgements,
    ),
    Target(
        "benchmark, other values",
        changed({"schema": SCHEMA, "measured_at": "2025-01-01", "quick": True}),
        read_odd_benchmark,
        share=0.5,
    ),
    Target(
        "checkpoint, other values",
        st.tuples(
            changed(checkpoint_values()),
            st.sampled_from(
                ["images", "labels", "lr", "best.images", "best.labels", "best.lr", "optimizer.images.momentum_buffer"]
            ),
            st.one_of(st.none(), odd_tensors()),
        ),
        read_odd_checkpoint,
        write_checkpoint,
        accepts=fits_checkpoint,
    ),
    Target(
        "distilled set, other values",
        st.tuples(
            st.deferred(lambda: changed(set_metadata())),
            st.sampled_from(["images.1", "labels.1", "labels.2", "lr.1"]),
            st.one_of(st.none(), odd_tensors()),
            st.sampled_from(FORMATS),
        ),
        read_odd_set,
        accepts=lambda code: code == 0,
        share=2,
    ),
]


# --- settings, and what is typed


PRESETS = ("digits-ipc10-seqmatch_mtt", "digits-ipc10-idc", "digits-ipc10-krr", "digits-ipc10-dm", "digits-ipc10-random",
           "digits-whole")  # fmt: skip


def fits_config(config: RunConfig) -> bool:
    """Whether a configuration is one that names files in place, and comes back from its own settings."""
    names = (config.dataset, config.run_id)
    plain = all(Path(name).name == name and name.isprintable() and "/" not in name for name in names)
    finite = all(math.isfinite(value) for value in _numbers_in(config.as_dict()))
    return plain and finite and RunConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def _numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [number for one in (value.values() if isinstance(value, dict) else value) for number in _numbers_in(one)]
    return [value] if isinstance(value, float) else []


VALID = (("zca", "true"), ("ipc", "10"), ("mtt.syn_steps", "4"), ("mtt.lr_img", "3"), ("training.epochs", "1_0"),
         ("network.name", "vit"), ("subset_ipcs", "[10]"), ("intervals", "[[0, 4]]"),
         ("evaluation.networks", '["vit"]'))  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(
        ["mtt.syn_steps", "mtt.lr_img", "ipc", "subset_ipcs", "intervals", "dataset", "zca", "network.name", "method"]
    ),
    TEXTS,
)
TOML = st.one_of(
    TEXTS,
    VALUES.map(lambda value: json.dumps(value)),
    st.sampled_from(
        [
            "1\nb = 2",
            "[" * 5_000,
            "9" * 5_000,
            "0x" + "f" * 5_000,
            "1979-05-27",
            "07:32:00",
            "{a.b = 1}",
            "'''",
            "1e999",
            "nan",
        ]
    ),
    st.text(alphabet="[]{}='\"\\\n0123456789.,-+_eE#abtrufls", max_size=40),
)


def read_override(folder: Path, text: str) -> Any:
    """Parses what is typed after --set, and builds a preset with it."""
    key, value = parse_override(text)
    return RunConfig.from_preset("digits-ipc10-mtt", "smoke", overrides={key: value})


NOTEBOOK = {"scale": '"smoke"', "seed": "0", "subsets": "[5, 5]", "results_dir": '"paper_results"'}


def write_notebook(folder: Path) -> None:
    """Writes a notebook of one cell with parameters."""
    cell = nbformat.v4.new_code_cell("\n".join(f"{name} = {value}" for name, value in NOTEBOOK.items()))
    cell.metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), folder / "one.ipynb")


def read_parameter(folder: Path, drawn: tuple[str, str]) -> Any:
    """Hands what is typed to a notebook, up to the cell that papermill would execute; returns what that cell says."""
    key, value = parse_override(f"{drawn[0]}={drawn[1]}")
    sources = []

    def capture(path: str, out: str, parameters: dict[str, Any], **options: Any) -> None:
        notebook = nbformat.read(path, 4)
        notebook.metadata["papermill"] = {}
        sources.extend(cell.source for cell in parameterize_notebook(notebook, parameters).cells[1:])

    with patch.object(papermill, "execute_notebook", capture):
        run_notebook(folder / "one.ipynb", folder / "out.ipynb", {key: value})
    return key, value, sources


def fits_parameter(found: tuple[str, Any, list[str]]) -> bool:
    """Whether the cell assigns the value to the parameter, as a literal, and does nothing else."""
    key, value, (source,) = found
    (statement,) = ast.parse(source).body
    (name,) = statement.targets
    return name.id == key and _same(_literal(statement.value), value)


def _literal(node: ast.expr) -> Any:
    """Returns a literal's value; NaN and infinity have no literals, so papermill writes `float('nan')`."""
    if isinstance(node, ast.Call):
        (text,) = node.args
        if node.func.id == "float" and not node.keywords and text.value in ("nan", "inf", "-inf"):
            return float(text.value)
    if isinstance(node, ast.List):
        return [_literal(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(key): _literal(one) for key, one in zip(node.keys, node.values, strict=True)}
    return ast.literal_eval(node)


def _same(found: Any, wanted: Any) -> bool:
    """Equal, in type too; dates and times of TOML reach a notebook as text."""
    if not isinstance(wanted, str | int | float | list | dict | None):
        return found == str(wanted)
    return repr(found) == repr(_plain(wanted))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value if isinstance(value, str | int | float | None) else str(value)


@cache
def published_rows() -> list[list[str]]:
    """Returns the first published accuracies."""
    with open(ROOT / "paper_results" / "published" / "accuracy.csv", newline="") as handle:
        return list(csv.reader(handle))[:8]


def write_published(folder: Path) -> None:
    """Writes them."""
    (folder / "published").mkdir()
    write_rows(folder, published_rows())


def write_rows(folder: Path, rows: list[list[Any]]) -> None:
    """Writes rows of a table as text."""
    (folder / "published").mkdir(exist_ok=True)
    with open(folder / "published" / "accuracy.csv", "w", newline="", errors="surrogatepass") as handle:
        csv.writer(handle).writerows(rows)


def read_odd_published(folder: Path, drawn: Any) -> pd.DataFrame:
    """Reads a table of other rows."""
    write_rows(folder, [row if isinstance(row, list) else [row] for row in drawn])
    return load_published(folder)


def fits_published(table: pd.DataFrame) -> bool:
    """Whether the columns are there that tables are built from."""
    numeric = all(pd.api.types.is_numeric_dtype(table[name]) for name in ("ipc", "mean", "std"))
    return {"dataset", "ipc", "method", "mean", "std", "source", "check"} <= set(table.columns) and numeric


SETTINGS = [
    Target(
        "settings",
        st.sampled_from(PRESETS).flatmap(lambda preset: changed(settings_of(preset))),
        lambda folder, drawn: RunConfig.from_dict(drawn),
        accepts=fits_config,
        share=4,
        named=False,
    ),
    Target("settings, anything", VALUES, lambda folder, drawn: RunConfig.from_dict(drawn), accepts=fits_config, named=False),
    Target(
        "--set",
        st.one_of(st.sampled_from(VALID).map("=".join), st.tuples(KEYS, TOML).map("=".join), TEXTS),
        read_override,
        accepts=fits_config,
        share=3,
        named=False,
    ),
    Target(
        "notebook parameter",
        st.tuples(st.sampled_from([*NOTEBOOK, *WORDS]), TOML),
        read_parameter,
        write_notebook,
        accepts=fits_parameter,
        share=0.7,
        named=False,
    ),
    file_target("published", write_published, load_published, accepts=fits_published),
    Target(
        "published, other rows",
        st.deferred(lambda: changed(published_rows())),
        read_odd_published,
        accepts=fits_published,
    ),
]

TARGETS = {target.name: target for target in (*OUR_FILES, *CHECKED_VALUES, *DATA_FILES, *LAYOUTS, *SETTINGS)}


def main() -> int:
    """Runs from the command line; the exit code is 1 if there was a fault."""
    parser = argparse.ArgumentParser(description="fuzzing of every reader")
    parser.add_argument("--inputs", type=int, default=100_000, help="over all targets; default: 100000")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="default: drawn, and printed")
    parser.add_argument("--target", action="append", choices=TARGETS, metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the counts as JSON")
    options = parser.parse_args()
    targets = [TARGETS[name] for name in options.target or TARGETS]
    print(f"seed: {options.seed}")
    began = time.perf_counter()
    tallies = fuzz_apart(targets, options.inputs, options.seed)
    print("\n" + format_table(tallies))
    if options.out is not None:
        counts = {name: {**tally.counts, "examples": tally.examples} for name, tally in tallies.items()}
        inputs = sum(tally.counts.total() for tally in tallies.values())
        seconds = round(time.perf_counter() - began)
        value = {
            "seed": options.seed,
            "inputs": inputs,
            "faults": count_faults(tallies),
            "seconds": seconds,
            "targets": counts,
        }
        write_json(options.out, value)
    return 1 if count_faults(tallies) else 0


if __name__ == "__main__":
    sys.exit(main())

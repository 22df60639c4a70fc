"""Fuzzing of our own files: damaged ones, and whole ones with odd values under right checksums."""

import hashlib
import math
import shutil
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_engine import Target, changed, file_target
from fuzz_layouts import odd_tensors
from fuzz_samples import NAMES, ROOT, make_set, settings_of
from helpers import SHAPE
from hypothesis import strategies as st

from seqmatch_lib.__main__ import EXIT_ERROR
from seqmatch_lib.__main__ import main as command_line
from seqmatch_lib.bench.benchmark import SCHEMA as BENCHMARK_SCHEMA
from seqmatch_lib.bench.report import load_benchmark, newest_benchmark
from seqmatch_lib.data.datasets import DATASETS
from seqmatch_lib.errors import SeqMatchError
from seqmatch_lib.exchange.formats import FORMATS
from seqmatch_lib.methods.base import Trainable
from seqmatch_lib.methods.teachers import TrajectorySet
from seqmatch_lib.runs.listing import format_records
from seqmatch_lib.runs.records import SCHEMA, Reevaluation, RunRecord, load_record, load_reevaluations
from seqmatch_lib.runs.stages import StageCheckpoint, StageProgress, read_progress
from seqmatch_lib.store.files import load_tensors, read_json, save_tensors, write_json
from seqmatch_lib.subsets import load_sequence


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
def sample_reevaluation() -> dict[str, Any]:
    """Returns a reevaluation of the record's set."""
    record = sample_record()
    common = {name: record[name] for name in ("run_id", "synthetic_sha256", "seed", "config", "device", "device_name")}
    common |= {name: record[name] for name in ("threads", "torch", "python", "git_commit", "dirty", "uncompiled")}
    accuracy = {"convnet": {"mean": 50.0, "std": 1.0, "n": 2, "values": [49.0, 51.0]}}
    return asdict(
        Reevaluation(
            schema=SCHEMA, joint=False, accuracy=accuracy, random_baseline=None, data="fingerprint", seconds=1.5, **common
        )
    )


def write_reevaluation(folder: Path, values: Any) -> None:
    """Writes values where the sample belongs; a record that names another place is left out, see `load_reevaluations`."""
    write_json(Reevaluation(**sample_reevaluation()).path(folder), values)


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
    StageCheckpoint(folder / "stage-1.safetensors", "owner").save(progress, {"start": torch.arange(4.0)}, "frozen")


def read_checkpoint(folder: Path) -> Any:
    """Reads it, and returns all that a run goes on from."""
    path = folder / "stage-1.safetensors"
    if not path.is_file():
        raise SeqMatchError(f"{path}: a stage without a checkpoint begins anew")
    progress, state = StageCheckpoint(path, "owner").load(make_trainable(), "frozen")
    trainable = progress.trainable
    memory = [dict(optimizer.state[optimizer.param_groups[0]["params"][0]]) for optimizer in trainable.optimizers.values()]
    numbers = (trainable.iteration, trainable.losses, progress.scores, progress.seconds, progress.peak_memory_mb)
    return trainable.images, trainable.labels, trainable.lr, memory, numbers, progress.best, state


def read_reevaluations(folder: Path) -> list[Reevaluation]:
    """Reads all reevaluations, if there are any."""
    found = load_reevaluations(folder)
    if not found:
        raise SeqMatchError(f"{folder}: nothing has been evaluated")
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
    write_json(folder / "cpu-quick.json", {"schema": BENCHMARK_SCHEMA, "measured_at": "2025-01-01T00:00:00", "quick": True})


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
        "reevaluation",
        lambda folder: write_reevaluation(folder, sample_reevaluation()),
        read_reevaluations,
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
        lambda folder: make_set().save(folder / "set.safetensors"),
        lambda folder: load_sequence(folder / "set.safetensors"),
        checksummed=True,
        share=3,
    ),
    file_target("checkpoint", write_checkpoint, read_checkpoint, checksummed=True, share=2),
    file_target("progress", write_checkpoint, read_begun, checksummed=True),
    file_target("teacher", write_teacher, read_teacher, checksummed=True, share=2),
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
    words = (record.run_id, record.preset, record.scale, record.dataset, record.method, record.device_name)
    whole = (record.ipc, record.num_subsets, record.seed, record.threads)
    tables = (record.config, record.data, record.seconds, record.peak_memory_mb, record.accuracy_last, *record.stages)
    return (
        all(isinstance(word, str) for word in words)
        and all(type(number) is int for number in whole)
        and all(isinstance(table, dict) for table in tables)
        and all(math.isfinite(value) for value in (*record.seconds.values(), *record.peak_memory_mb.values()))
    )


def fits_reevaluations(reevaluations: list[Reevaluation]) -> bool:
    """The same of reevaluations."""
    return all(
        isinstance(one.run_id, str)
        and isinstance(one.config, dict)
        and all(isinstance(found, dict) for found in (one.accuracy, *one.accuracy.values(), one.random_baseline or {}))
        and math.isfinite(one.seconds)
        for one in reevaluations
    )


def read_odd_reevaluation(folder: Path, drawn: Any) -> list[Reevaluation]:
    """Reads a reevaluation with other values."""
    write_reevaluation(folder, drawn)
    return load_reevaluations(folder)


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
    shutil.rmtree(folder / "out", ignore_errors=True)  # of the input before
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
        "reevaluation, other values",
        st.deferred(lambda: changed(sample_reevaluation())),
        read_odd_reevaluation,
        accepts=fits_reevaluations,
    ),
    Target(
        "benchmark, other values",
        changed({"schema": BENCHMARK_SCHEMA, "measured_at": "2025-01-01", "quick": True}),
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

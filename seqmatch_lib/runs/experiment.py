"""One run from end to end: data, distillation, evaluation, record. Every part is kept, so a killed run goes on."""

import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from seqmatch_lib.data.datasets import ImageDataset, find_dataset, load_dataset
from seqmatch_lib.engine.evaluation import EvaluationProtocol
from seqmatch_lib.engine.memory import keep_freed_memory, peak_memory_mb, reset_peak_memory
from seqmatch_lib.engine.step_functions import UNCOMPILED
from seqmatch_lib.engine.training import TrainingCheckpoint
from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.methods import Stage, get_method
from seqmatch_lib.methods.teachers import record_stage_teachers
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.distillation import distill_stages
from seqmatch_lib.runs.evaluation import check_fit, evaluate_sets
from seqmatch_lib.runs.provenance import describe_code, describe_provenance
from seqmatch_lib.runs.real_data import RealData, check_origin, prepare_data
from seqmatch_lib.runs.records import ACCURACIES, RunRecord, fields_of, load_record, record_path
from seqmatch_lib.runs.stages import StageCheckpoint, StageProgress
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.files import only_process, read_json, remove_file, remove_leftovers, write_json
from seqmatch_lib.store.sheets import write_sheet
from seqmatch_lib.subsets import (
    SubsetSequence,
    SyntheticSubset,
    check_class_sizes,
    load_sequence,
    sample_real_sequence,
    set_path,
)

NVIDIA_DRIVER = Path("/dev/nvidiactl")  # there where the driver is, also in containers that are given a GPU


def run_experiment(
    config: RunConfig,
    results_dir: Path | str,
    max_minutes: float | None = None,
    force: bool = False,
    device: torch.device | str | None = None,
    download: bool = False,
    save_seconds: float = 120.0,
    dataset: ImageDataset | None = None,
) -> RunRecord:
    """Runs a configuration, or goes on with it, or returns its record if it is finished.

    Args:
        config: what to run.
        results_dir: folder of records (`runs/`), distilled sets (`distilled/`), teachers and state.
        max_minutes: stop at the first checkpoint after this time.
        force: run again although a record exists, which is discarded. An unfinished run goes on, with a notice: the same call
            may have begun it. To begin it afresh, delete `results_dir/state/<run_id>`.
        device: defaults to the first GPU, or the CPU.
        download: whether missing data may be downloaded.
        save_seconds: how old a checkpoint may grow.
        dataset: the images; by default those that `config.dataset` names.

    Returns:
        The record, which is also in `results_dir/runs/<dataset>/<run_id>.json`; the distilled set is in
        `results_dir/distilled/<run_id>.safetensors`, and that with the selected iterate of the last subset in
        `results_dir/selected/<run_id>.safetensors`.

    Raises:
        OutOfTime: `max_minutes` have passed and the state is saved.
        SeqMatchError: something the user can act on.
    """
    keep_freed_memory()
    results_dir = Path(results_dir)
    state_dir = results_dir / "state" / config.run_id
    path = record_path(results_dir, config)
    sets = [] if config.method == "whole" else [set_path(results_dir, config.run_id)]
    sets += [set_path(results_dir, config.run_id, selected=True)] if _selects(config) else []
    remakes_sets = state_dir.is_dir() and not all(one.is_file() for one in sets)  # from what made them before
    if path.is_file() and not (force or remakes_sets):  # before any lock: it may lie where nothing can be written
        record = load_record(path)
        if dataset is None and find_dataset(config.dataset).folder is not None:
            dataset = load_dataset(config.dataset)  # a name of the user's own says little about what is in the folder
        if dataset is not None:
            _check_same_data(record.data["fingerprint"], dataset, path)
        return record
    with only_process(state_dir.with_name(f"{config.run_id}.lock")):
        dataset = dataset or load_dataset(config.dataset, download=download)  # first, so that bad data lose no record
        if force:
            _discard(path, state_dir, dataset)
        remove_leftovers(state_dir)
        for folder in (path.parent, *(one.parent for one in sets)):
            remove_leftovers(folder, f"{config.run_id}.")
        budget = Budget(max_minutes, save_seconds)
        return _execute(config, dataset, results_dir, state_dir, budget, choose_device(device))


def _selects(config: RunConfig) -> bool:
    """Whether iterates are scored, so that the selected one is a set of its own."""
    return config.options is not None and config.select_on != "none"


def _discard(record: Path, state_dir: Path, dataset: ImageDataset) -> None:
    """Removes what is left of a finished run, or of one on other images; an unfinished run goes on, with a notice."""
    claim = state_dir / "data.json"
    if not record.is_file() and claim.is_file() and read_json(claim)["fingerprint"] == dataset.fingerprint:
        print(f"notice: an unfinished run goes on; to begin it afresh, delete {state_dir}", file=sys.stderr)
        return
    for old in (*state_dir.glob("*"), record):  # the record last: until then the run is a finished one
        remove_file(old)


def _check_same_data(fingerprint: str, dataset: ImageDataset, path: Path) -> None:
    problem = f"{path} belongs to other images of {dataset.spec.name} than those found"
    remedy = "use another results folder, or, for `run`, --force (in Python force=True)"
    require(fingerprint == dataset.fingerprint, f"{problem}; {remedy}", StorageError)


def make_first_stage(config: RunConfig, data: RealData, results_dir: Path, budget: Budget) -> Stage:
    """Returns what the base method of a run knows in stage 1; `distill_sequence` makes the later stages from it."""
    return Stage(
        index=1,
        ipc=config.subset_ipcs[0],
        interval=config.stage_intervals[0],
        frozen=SubsetSequence(),
        images=data.train.images,
        labels=data.train.labels,
        num_classes=data.num_classes,
        preprocessing=data.preprocessing,
        data_identity=data.identity,
        network=config.network,
        teachers=config.teachers,
        recipe=config.training,
        seed=config.seed,
        folder=results_dir / "teachers" / config.dataset,
        budget=budget,
    )


def record_shared_teachers(config: RunConfig, results_dir: Path, max_minutes: float | None = None) -> Path:
    """Records the teachers of a run's first stage, or goes on with them; they depend neither on its method nor on its seed.

    Returns:
        Their folder; runs that need the same ones find them there.

    Raises:
        ConfigError: the method uses no teachers.
        OutOfTime: `max_minutes` have passed and the state is saved.
    """
    budget = Budget(max_minutes)
    require(config.uses_teachers, f"method {config.method!r} uses no teachers; give a preset of one that does, such as mtt")
    keep_freed_memory()
    data = prepare_data(load_dataset(config.dataset), config.zca, config.select_on, choose_device())
    data.check_networks([config.network])
    return record_stage_teachers(make_first_stage(config, data, results_dir, budget)).folder


def open_run(
    config: RunConfig, results_dir: Path | str, device: torch.device | str | None = None
) -> tuple[RealData, SubsetSequence, list[Stage]]:
    """Returns the data, the distilled set and the stages of a finished run, from the folder where it was run.

    All are on the device, by default the first GPU, or the CPU; `record_stage_teachers(stage)` opens a stage's teachers.

    Raises:
        StorageError: the run has left no set there.
        DataError: the set was distilled from other images than those found.
    """
    keep_freed_memory()  # a run is opened to train on its data
    results_dir, device = Path(results_dir), choose_device(device)
    sequence = load_sequence(set_path(results_dir, config.run_id)).to(device)
    data = prepare_data(load_dataset(config.dataset), config.zca, config.select_on, device)
    check_origin(sequence, data)
    first = make_first_stage(config, data, results_dir, Budget())
    stages = [
        replace(first, index=k, ipc=ipc, interval=interval, frozen=SubsetSequence(sequence.subsets[: k - 1]))
        for k, (ipc, interval) in enumerate(zip(config.subset_ipcs, config.stage_intervals, strict=True), start=1)
    ]
    return data, sequence, stages


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """Returns the device asked for, or the first GPU, or the CPU; says so where that leaves a GPU of the machine unused."""
    if device is None and not torch.cuda.is_available():
        _tell_of_unseen_gpu()
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@cache
def _tell_of_unseen_gpu() -> None:
    """Prints a notice, once a process, if this machine has a GPU that torch cannot use."""
    if NVIDIA_DRIVER.exists():
        problem = f"notice: this machine has an NVIDIA GPU that torch {torch.__version__} cannot use, so the CPU computes"
        print(
            f"{problem}; install a torch built for CUDA, and for no newer one than the driver's (nvidia-smi)", file=sys.stderr
        )


def _execute(
    config: RunConfig, dataset: ImageDataset, results_dir: Path, state_dir: Path, budget: Budget, device: torch.device
) -> RunRecord:
    """Runs what is missing, writes the record unless there is one already, and returns it."""
    UNCOMPILED.clear()
    select_on = "none" if config.method == "whole" else config.select_on  # "whole" holds nothing out
    data = prepare_data(dataset, config.zca, select_on, device)
    check_fit(config, data)
    if config.options is not None:  # it distils, with a network that need not be among those of the evaluation
        data.check_networks([config.network])
    check_class_sizes(data.train.labels, data.num_classes, config.ipc, dataset)  # now, not when the baseline is drawn
    # after the check, so that a run refused for too few images can begin with more
    commit, dirty = describe_code()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    start = _first_notes(state_dir / "start.json", {"git_commit": commit, "dirty": dirty, "started_at": now})
    claim = state_dir / "data.json"
    _check_same_data(_first_notes(claim, {"fingerprint": dataset.fingerprint})["fingerprint"], dataset, claim)
    stages = _distill(config, data, results_dir, state_dir, budget)
    last, selected = _make_sequences(config, data, stages)
    path = record_path(results_dir, config)
    earlier = load_record(path) if path.is_file() else None
    problem = f"{path} records another set than the one just distilled in place of the missing set"
    same = earlier is None or earlier.synthetic_sha256 == last.sha256()
    require(same, f"{problem}; delete that record and give the same command again", StorageError)
    if config.method != "whole":
        _save_sets(config, data, results_dir, last, selected)
    if earlier is not None:  # only its sets were missing
        return earlier
    accuracies, seconds = _evaluate(config, data, last, selected, state_dir, budget)
    record = _make_record(config, data, stages, last, accuracies, seconds, start)
    record.save(results_dir)
    return record


def _save_sets(config: RunConfig, data: RealData, results_dir: Path, last: SubsetSequence, selected: SubsetSequence) -> None:
    """Writes the set, with a sheet of its pictures if it is whitened, and the set with the selected iterate."""
    path = set_path(results_dir, config.run_id)
    last.save(path)
    if config.zca:
        pictures = [data.preprocessing.inverse(subset.images) for subset in last.subsets]
        write_sheet(path.with_suffix(".png"), pictures, data.num_classes)
    if _selects(config):
        selected.save(set_path(results_dir, config.run_id, selected=True))


def _first_notes(path: Path, notes: dict[str, Any]) -> dict[str, Any]:
    """Returns the notes that the run began with: these if there are none, which a resumed run will find."""
    if not path.is_file():
        write_json(path, notes)
    return read_json(path)


def _distill(config: RunConfig, data: RealData, results_dir: Path, state_dir: Path, budget: Budget) -> list[StageProgress]:
    """Distils all stages; references have none."""
    if config.options is None:
        return []
    protocol = EvaluationProtocol(data.num_classes, config.training, config.seed)
    also_test = config.evaluation.score_test and config.select_on == "validation"  # else these are the test images
    splits = [data.selection, data.test] if also_test else [data.selection]
    unfinished = state_dir / "scoring.safetensors"

    def score(sequence: SubsetSequence) -> list[float]:
        owner = {"set": sequence.sha256(), "network": config.network.name}
        # apart: its saves are none of the iterations so far, which a stopped process repeats before it goes on with the score
        checkpoint = TrainingCheckpoint(unfinished, owner, budget.apart())
        accuracies = protocol.score(sequence, splits, config.network, checkpoint)
        remove_file(unfinished)
        return accuracies

    return distill_stages(
        get_method(config.base_method)(config.options),
        make_first_stage(config, data, results_dir, budget),
        config.subset_ipcs,
        config.stage_intervals,
        lambda index: StageCheckpoint(state_dir / f"stage-{index}.safetensors", config.hash),
        None if data.selection is None else score,
        config.evaluation.num_selections,
    )


def _make_sequences(config: RunConfig, data: RealData, stages: list[StageProgress]) -> tuple[SubsetSequence, SubsetSequence]:
    """Returns the sequence with the last iterate of S_K, and the one with its selected iterate."""
    metadata = {"run_id": config.run_id, "config": config.as_dict(), "data": data.summary, "class_names": data.class_names}
    if not stages:
        reference = SubsetSequence(_reference(config, data).subsets, metadata)
        return reference, reference
    earlier = tuple(stage.selected for stage in stages[:-1])
    last = SubsetSequence((*earlier, stages[-1].last), metadata)
    return last, SubsetSequence((*earlier, stages[-1].selected), metadata | {"last_sha256": last.sha256()})


def _reference(config: RunConfig, data: RealData) -> SubsetSequence:
    """Returns what a set is compared with: random real images in subsets of the same sizes, or all of them."""
    train, lr = data.train, config.evaluation.real_lr
    if config.method == "whole":
        return SubsetSequence((SyntheticSubset(train.images, train.labels, lr),))
    return sample_real_sequence(train, data.num_classes, config.subset_ipcs, lr, config.seed)


def _evaluate(
    config: RunConfig, data: RealData, last: SubsetSequence, selected: SubsetSequence, state_dir: Path, budget: Budget
) -> tuple[dict[str, Any], float]:
    """Returns the four accuracies of the record, and the seconds they took."""
    reset_peak_memory(data.test.images.device)
    sequences = {"accuracy_last": last, "accuracy_selected": selected}
    if len(last) > 1:
        sequences["accuracy_joint"] = last.joint()
    if config.method != "whole":
        sequences["random_baseline"] = _reference(config, data)
    accuracies, seconds = evaluate_sets(sequences, config, data, state_dir, budget)
    of_first = {name: next(iter(found.values())) | {"by_network": found} for name, found in accuracies.items()}
    return dict.fromkeys(ACCURACIES.values()) | of_first, seconds


def _make_record(
    config: RunConfig,
    data: RealData,
    stages: list[StageProgress],
    last: SubsetSequence,
    accuracies: dict[str, Any],
    evaluation_seconds: float,
    start: dict[str, Any],
) -> RunRecord:
    device = data.test.images.device
    seconds, memory = Counter({"evaluation": evaluation_seconds}), {"evaluation": peak_memory_mb(device)}
    for stage in stages:
        seconds.update(stage.seconds)
        memory |= {phase: max(value, memory.get(phase, 0.0)) for phase, value in stage.peak_memory_mb.items()}
    return RunRecord(
        **fields_of(config, "run_id", "preset", "scale", "dataset", "method", "ipc", "num_subsets", "seed"),
        config_hash=config.hash,
        **accuracies,
        selected_on=config.select_on if stages else "none",
        stages=[
            _describe_stage(stage, ipc, subset.lr)
            for stage, ipc, subset in zip(stages, config.subset_ipcs, last.subsets, strict=bool(stages))
        ],
        data=data.summary,
        seconds={phase: round(value, 1) for phase, value in seconds.items()},
        peak_memory_mb=memory,
        synthetic_sha256=last.sha256(),
        **(describe_provenance(device) | start),
    )


def _describe_stage(stage: StageProgress, ipc: int, lr: float) -> dict[str, Any]:
    """Returns what the record says of one stage, with the step size of its subset; losses are rounded to 6 digits."""
    on_test = {"test_scores": [list(score) for score in stage.test_scores]} if stage.test_scores else {}
    return {
        "ipc": ipc,
        "lr": lr,
        "iterations": stage.trainable.iteration,
        "losses": [float(f"{loss:.6g}") for loss in stage.trainable.losses],
        "scores": [list(score) for score in stage.scores],
        **on_test,
    }

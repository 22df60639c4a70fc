"""One run from end to end: data, distillation, evaluation, record. Every part is kept, so a killed run goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from tqdm import tqdm

from seqmatch_lib.data.datasets import ImageDataset, Split, find_dataset, fit_preprocessing, load_dataset, split_validation
from seqmatch_lib.data.preprocessing import Preprocessing
from seqmatch_lib.engine.evaluation import Accuracy, evaluate_networks, score_sequence
from seqmatch_lib.engine.memory import keep_freed_memory, peak_memory_mb, reset_peak_memory
from seqmatch_lib.engine.training_checkpoint import TrainingCheckpoint
from seqmatch_lib.errors import ConfigError, StorageError, require
from seqmatch_lib.methods import Stage, get_method
from seqmatch_lib.methods.mtt import record_stage_teachers
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.distillation import distill_stages
from seqmatch_lib.runs.records import SCHEMA, RunRecord, describe_code, describe_environment, load_record
from seqmatch_lib.runs.stages import StageCheckpoint, StageProgress
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.files import acquire_lock, read_json, remove_file, remove_leftovers, write_json
from seqmatch_lib.subsets import (
    SubsetSequence,
    SyntheticSubset,
    check_class_sizes,
    load_sequence,
    sample_real_sequence,
    save_sequence,
)

VALIDATION_FRACTION = 0.1


@dataclass(frozen=True)
class RealData:
    """The real images of a run, preprocessed, on the device.

    Args:
        train: (images, labels) that teachers learn and synthetic images start from.
        selection: (images, labels) that select iterates, or None.
        test: (images, labels) of the whole test split.
        num_classes: number of classes.
        preprocessing: what was done to the pixels.
        identity: JSON values that decide `train`.
        summary: what the record says of the data.
        class_names: one a class.
    """

    train: tuple[torch.Tensor, torch.Tensor]
    selection: tuple[torch.Tensor, torch.Tensor] | None
    test: tuple[torch.Tensor, torch.Tensor]
    num_classes: int
    preprocessing: Preprocessing
    identity: dict[str, Any]
    summary: dict[str, Any]
    class_names: list[str]


def prepare_data(dataset: ImageDataset, zca: bool, select_on: str, device: torch.device) -> RealData:
    """Splits and preprocesses a data set; ZCA is fitted on the whole training set, as in the public code."""
    preprocessing = fit_preprocessing(dataset.spec, dataset.train.images, zca)

    def ready(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        return preprocessing(split.images).to(device), split.labels.to(device)

    train, selection = dataset.train, None
    if select_on == "validation":
        train, validation = split_validation(train, VALIDATION_FRACTION)
        selection = ready(validation)
    test = ready(dataset.test)
    held_out = len(dataset.train) - len(train)
    identity = {
        "dataset": dataset.spec.name,
        "fingerprint": dataset.fingerprint,
        "preprocessing": preprocessing.describe(),
        "held_out": held_out,
    }
    summary = identity | {
        "source": dataset.source,
        "train_images": len(train),
        "test_images": len(dataset.test),
        "notices": list(dataset.notices),
    }
    selection = test if select_on == "test" else selection
    names = list(dataset.class_names)
    return RealData(ready(train), selection, test, dataset.spec.num_classes, preprocessing, identity, summary, names)


def run_experiment(
    config: RunConfig,
    results_dir: Path | str = "paper_results",
    data_root: Path | str | None = None,
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
        data_root: folder of the data sets; see `load_dataset`.
        max_minutes: stop at the first checkpoint after this time.
        force: run again although a record exists.
        device: defaults to the first GPU, or the CPU.
        download: whether missing data may be downloaded.
        save_seconds: how old a checkpoint may grow.
        dataset: the images, where they were not to be looked up by `config.dataset`.

    Returns:
        The record, which is also in `results_dir/runs/<table>/<run_id>.json`; the distilled set is in
        `results_dir/distilled/<run_id>.safetensors`.

    Raises:
        OutOfTime: `max_minutes` have passed and the state is saved.
        SeqMatchError: something the user can act on.
    """
    keep_freed_memory()
    results_dir = Path(results_dir)
    state_dir = results_dir / "state" / config.run_id
    record_path = results_dir / "runs" / config.dataset / f"{config.run_id}.json"
    set_path = results_dir / "distilled" / f"{config.run_id}.safetensors"
    # a set that was deleted is made again from what made it, if that is still there
    has_set = config.method == "whole" or set_path.is_file() or not state_dir.is_dir()
    if record_path.is_file() and has_set and not force:  # before any lock: it may lie where nothing can be written
        record = load_record(record_path)
        if dataset is None and find_dataset(config.dataset).folder is not None:
            dataset = load_dataset(config.dataset)  # a name of the user's own says little about what is in the folder
        if dataset is not None:
            _check_same_data(record.data["fingerprint"], dataset, record_path)
        return record
    with _only_process(state_dir.with_name(f"{config.run_id}.lock")):
        if force:
            _remove_state(state_dir, record_path)
        remove_leftovers(state_dir)
        for path in (record_path, set_path):
            remove_leftovers(path.parent, path.name)
        dataset = dataset or load_dataset(config.dataset, data_root, download)
        run = _Run(config, results_dir, state_dir, Budget(max_minutes, save_seconds), choose_device(device))
        record = run.execute(dataset)
        if record_path.is_file():
            return load_record(record_path)
        record.save(record_path)
    return record


def _check_same_data(fingerprint: str, dataset: ImageDataset, path: Path) -> None:
    require(
        fingerprint == dataset.fingerprint,
        f"{path} belongs to other images of {dataset.spec.name} than those found; use another --results folder, or --force",
        StorageError,
    )


def make_first_stage(config: RunConfig, data: RealData, results_dir: Path, budget: Budget) -> Stage:
    """Returns what the base method of a run knows in stage 1; the strategy makes the later stages from it."""
    images, labels = data.train
    return Stage(
        index=1,
        ipc=config.subset_ipcs[0],
        interval=config.intervals[0] if config.intervals else None,
        frozen=SubsetSequence(),
        images=images,
        labels=labels,
        num_classes=data.num_classes,
        preprocessing=data.preprocessing,
        data_identity=data.identity,
        network=config.network,
        teachers=config.teachers,
        recipe=config.recipe,
        seed=config.seed,
        folder=results_dir / "teachers" / config.dataset,
        budget=budget,
    )


def record_shared_teachers(
    config: RunConfig,
    results_dir: Path | str = "paper_results",
    data_root: Path | str | None = None,
    max_minutes: float | None = None,
) -> Path:
    """Records the teachers of a run's first stage, or goes on with them; they depend neither on its method nor on its seed.

    Returns:
        Their folder; runs that need the same ones find them there.

    Raises:
        ConfigError: the method uses no teachers.
        OutOfTime: `max_minutes` have passed and the state is saved.
    """
    budget = Budget(max_minutes)
    uses_teachers = config.options is not None and get_method(config.base_method).uses_teachers
    require(
        uses_teachers, f"method {config.method!r} uses no teachers; give a preset of one that does, such as mtt", ConfigError
    )
    keep_freed_memory()
    data = prepare_data(load_dataset(config.dataset, data_root), config.zca, config.select_on, choose_device())
    return record_stage_teachers(make_first_stage(config, data, Path(results_dir), budget)).folder


def open_run(
    config: RunConfig, results_dir: Path | str = "paper_results", data_root: Path | str | None = None
) -> tuple[RealData, SubsetSequence, list[Stage]]:
    """Returns the data, the distilled set and the stages of a finished run, for whoever wants to look into it.

    Args:
        config: of the run.
        results_dir: where it was run.
        data_root: folder of the data sets; see `load_dataset`.

    Returns:
        The set and the stages are on the CPU; `record_stage_teachers(stage)` opens a stage's teachers.

    Raises:
        StorageError: the run has left no set there.
    """
    results_dir = Path(results_dir)
    sequence = load_sequence(results_dir / "distilled" / f"{config.run_id}.safetensors")
    data = prepare_data(load_dataset(config.dataset, data_root), config.zca, config.select_on, torch.device("cpu"))
    first = make_first_stage(config, data, results_dir, Budget())
    intervals = config.intervals or (None,) * config.num_subsets
    stages = [
        replace(first, index=k, ipc=ipc, interval=interval, frozen=SubsetSequence(sequence.subsets[: k - 1]))
        for k, (ipc, interval) in enumerate(zip(config.subset_ipcs, intervals, strict=True), start=1)
    ]
    return data, sequence, stages


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """Returns the device asked for, or the first GPU, or the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def _only_process(path: Path) -> Iterator[None]:
    """Holds a run's lock."""
    try:
        lock = acquire_lock(path, timeout=0)
    except Timeout as error:
        raise StorageError(f"another process is at this run ({path} is locked); wait, or use another --results") from error
    with lock:
        yield


def _remove_state(state_dir: Path, record_path: Path) -> None:
    for path in (record_path, *state_dir.glob("*")):
        remove_file(path)


class _Run:
    """The phases of one run, with the places where their results are kept."""

    def __init__(self, config: RunConfig, results_dir: Path, state_dir: Path, budget: Budget, device: torch.device) -> None:
        self.config = config
        self.results_dir = results_dir
        self.state_dir = state_dir
        self._networks_path = state_dir / "networks.safetensors"  # of those that are being evaluated
        self.budget = budget
        self.device = device
        self.recipe = config.recipe

    def execute(self, dataset: ImageDataset) -> RunRecord:
        """Runs what is missing and returns the record."""
        began = self._read_or_write_start()
        self._claim_data(dataset)
        select_on = "none" if self.config.method == "whole" else self.config.select_on  # "whole" holds nothing out
        data = prepare_data(dataset, self.config.zca, select_on, self.device)
        check_class_sizes(data.train[1], data.num_classes, self.config.ipc)  # now, not when the baseline is drawn
        stages = self._distill(data)
        last, selected = self._sequences(data, stages)
        if self.config.method != "whole":
            save_sequence(self.results_dir / "distilled" / f"{self.config.run_id}.safetensors", last)
        accuracies, seconds = self._evaluate(data, last, selected)
        memory = {"evaluation": peak_memory_mb(self.device)}
        for stage in stages:
            for phase, value in stage.seconds.items():
                seconds[phase] = seconds.get(phase, 0.0) + value
            for phase, value in stage.peak_memory_mb.items():
                memory[phase] = max(memory.get(phase, 0.0), value)
        config = self.config
        return RunRecord(
            schema=SCHEMA,
            run_id=config.run_id,
            table=config.dataset,
            preset=config.preset,
            scale=config.scale,
            dataset=config.dataset,
            method=config.method,
            ipc=config.ipc,
            num_subsets=config.num_subsets,
            seed=config.seed,
            config=config.as_dict(),
            config_hash=config.hash,
            **accuracies,
            selected_on=config.select_on if stages else "none",
            stages=[_describe_stage(stage, ipc) for stage, ipc in zip(stages, config.subset_ipcs, strict=bool(stages))],
            data=data.summary,
            seconds={phase: round(value, 1) for phase, value in seconds.items()},
            peak_memory_mb=memory,
            **describe_environment(self.device),
            synthetic_sha256=last.sha256(),
            **began,
        )

    def _read_or_write_start(self) -> dict[str, Any]:
        """Returns when and from which code the run began, which a resumed run takes over."""
        path = self.state_dir / "start.json"
        if not path.is_file():
            commit, dirty = describe_code()
            began = {"git_commit": commit, "dirty": dirty, "started_at": datetime.now(UTC).isoformat(timespec="seconds")}
            write_json(path, began)
        return read_json(path)

    def _claim_data(self, dataset: ImageDataset) -> None:
        """Notes which images the run began with; it does not go on with others."""
        path = self.state_dir / "data.json"
        if not path.is_file():
            write_json(path, {"fingerprint": dataset.fingerprint})
        _check_same_data(read_json(path)["fingerprint"], dataset, path)

    def _distill(self, data: RealData) -> list[StageProgress]:
        """Distils all stages; references have none."""
        config = self.config
        if config.options is None:
            return []
        first_stage = make_first_stage(config, data, self.results_dir, self.budget)

        splits = [data.selection, data.test] if config.evaluation.score_test else [data.selection]

        def score(sequence: SubsetSequence) -> list[float]:
            """Accuracies of one network on the selection images, and on the test images if that is asked for."""
            return score_sequence(sequence, splits, data.num_classes, config.network, self.recipe, config.seed)

        return distill_stages(
            get_method(config.base_method)(config.options),
            first_stage,
            config.subset_ipcs,
            config.intervals or [None] * config.num_subsets,
            lambda index: StageCheckpoint(self.state_dir / f"stage-{index}.safetensors", config.hash),
            score if data.selection is not None else None,
            config.evaluation.num_selections,
        )

    def _sequences(self, data: RealData, stages: list[StageProgress]) -> tuple[SubsetSequence, SubsetSequence]:
        """Returns the sequence with the last iterate of S_K, and the one with its selected iterate."""
        config = self.config
        metadata = {"run_id": config.run_id, "config": config.as_dict(), "data": data.summary, "class_names": data.class_names}
        if not stages:
            return (SubsetSequence(self._reference(data).subsets, metadata),) * 2
        earlier = tuple(stage.selected for stage in stages[:-1])
        last = SubsetSequence((*earlier, stages[-1].last), metadata)
        return last, SubsetSequence((*earlier, stages[-1].selected), metadata)

    def _reference(self, data: RealData) -> SubsetSequence:
        """Returns what a set is compared with: random real images in subsets of the same sizes, or all of them."""
        config = self.config
        lr = config.evaluation.real_lr
        if config.method == "whole":
            return SubsetSequence((SyntheticSubset(*data.train, lr),))
        return sample_real_sequence(*data.train, data.num_classes, config.subset_ipcs, lr, config.seed)

    def _evaluate(
        self, data: RealData, last: SubsetSequence, selected: SubsetSequence
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Returns the four accuracies of the record, and the seconds they took; equal sets are evaluated once."""
        reset_peak_memory(self.device)
        finished = _FinishedNetworks(self.state_dir / "evaluation.json")
        sequences = {
            "accuracy_last": last,
            "accuracy_selected": selected,
            "accuracy_joint": last.joint() if len(last) > 1 else None,
            "random_baseline": self._reference(data) if self.config.method != "whole" else None,
        }
        evaluation = self.config.evaluation
        distinct = {sequence.sha256(): sequence for sequence in sequences.values() if sequence is not None}
        total = len(distinct) * len(evaluation.networks) * evaluation.num_networks
        with tqdm(total=total, desc="evaluate", unit="network") as bar:
            for digest, sequence in distinct.items():
                for name in evaluation.networks:
                    self._evaluate_missing(data, sequence, digest, name, finished, bar)
        remove_file(self._networks_path)
        accuracies = {
            key: None if sequence is None else finished.summary(sequence.sha256(), evaluation.networks)
            for key, sequence in sequences.items()
        }
        return accuracies, {"evaluation": finished.seconds}

    def _evaluate_missing(
        self, data: RealData, sequence: SubsetSequence, digest: str, name: str, finished: "_FinishedNetworks", bar: tqdm
    ) -> None:
        """Evaluates the networks of one architecture that are not finished: at once, or each for itself if one by one."""
        count = self.config.evaluation.num_networks
        missing = [index for index in range(count) if not finished.has(digest, name, index)]
        bar.update(count - len(missing))
        groups = [missing] if missing and self.recipe.engine == "compiled" else [[index] for index in missing]
        for indices in groups:
            owner = {"set": digest, "network": name, "indices": indices}
            checkpoint = TrainingCheckpoint(self._networks_path, owner, self.budget)
            network = self.config.network.named(name)
            values = evaluate_networks(
                sequence, *data.test, data.num_classes, network, self.recipe, self.config.seed, indices, checkpoint
            )
            finished.add(digest, name, indices, values, checkpoint.seconds)
            bar.update(len(indices))
            self.budget.check()


class _FinishedNetworks:
    """The file of accuracies of the networks evaluated so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, list[float]] = read_json(path) if path.is_file() else {}

    def has(self, digest: str, name: str, index: int) -> bool:
        return f"{digest}/{name}/{index}" in self._values

    def add(self, digest: str, name: str, indices: list[int], accuracies: list[float], seconds: float) -> None:
        for index, accuracy in zip(indices, accuracies, strict=True):
            self._values[f"{digest}/{name}/{index}"] = [accuracy, seconds / len(indices)]
        write_json(self._path, self._values)

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self._values.values())

    def summary(self, digest: str, names: tuple[str, ...]) -> dict[str, Any]:
        """Returns mean, std and n of the first architecture, and those of all beneath."""
        by_network = {}
        for name in names:
            prefix = f"{digest}/{name}/"
            values = [value[0] for key, value in self._values.items() if key.startswith(prefix)]
            by_network[name] = Accuracy(tuple(values)).as_dict()
        return by_network[names[0]] | {"by_network": by_network}


def _describe_stage(stage: StageProgress, ipc: int) -> dict[str, Any]:
    """Returns what the record says of one stage; losses are rounded to 6 digits."""
    on_test = {"test_scores": [list(score) for score in stage.test_scores]} if stage.test_scores else {}
    return {
        "ipc": ipc,
        "lr": stage.last.lr,
        "iterations": stage.trainable.iteration,
        "losses": [float(f"{loss:.6g}") for loss in stage.trainable.losses],
        "scores": [list(score) for score in stage.scores],
        **on_test,
    }

"""What a run will cost: floating-point operations, seconds and memory, predicted from a benchmark's measured rates."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import log, prod
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from seqmatch_lib.bench.flops import count_network
from seqmatch_lib.bench.report import load_benchmark, newest_benchmark
from seqmatch_lib.data.datasets import DATASETS, DatasetSpec, find_dataset
from seqmatch_lib.data.multi_formation import AS_STORED
from seqmatch_lib.engine.networks import NetworkConfig
from seqmatch_lib.engine.step_functions import GRADIENT_PASSES
from seqmatch_lib.errors import ConfigError, SeqMatchError, require
from seqmatch_lib.methods import get_method
from seqmatch_lib.runs.config import RunConfig, preset_names
from seqmatch_lib.runs.listing import format_columns
from seqmatch_lib.runs.overrides import changes_of
from seqmatch_lib.runs.real_data import VALIDATION_SHARE
from seqmatch_lib.runs.records import RunRecord, load_runs
from seqmatch_lib.store.files import digest_json

ENOUGH_RECORDS = 3  # of a method and phase, to correct predictions by
START_SECONDS, LONG_SECONDS = 5, 300  # shorter phases are start-up; and what counts as a long run


class Work(NamedTuple):
    """One phase: its operations, how it is computed, and the most memory it needs.

    Args:
        flops: floating-point operations.
        rate: "inner_steps" or "training", the row of the benchmark that its speed is read from.
        variant: engine and precision, as the benchmark names them.
        bytes: data, parameters and activations.
    """

    flops: float
    rate: str
    variant: str
    bytes: float


def predict_work(config: RunConfig, dataset: DatasetSpec) -> dict[str, Work]:
    """Returns the work of each phase of a run on a data set, which need not be downloaded."""
    plan = _Plan(config, dataset)
    work = {"teachers": plan.teachers()} if config.uses_teachers else {}
    if config.options is not None:
        work |= {"distillation": plan.distillation(), "selection": plan.selection()}
    return work | {"evaluation": plan.evaluation()}


class _Plan:
    """The phases of one run, counted."""

    def __init__(self, config: RunConfig, dataset: DatasetSpec) -> None:
        self.config = config
        self.dataset = dataset
        self.forward, self.activations, self.parameters = count_network(config.network, dataset.shape, dataset.num_classes)
        held_out = config.select_on == "validation" and config.method != "whole"
        validation = VALIDATION_SHARE * dataset.train_size if held_out else 0.0
        self.train_images = dataset.train_size - validation
        self.selection_images = dataset.test_size if config.select_on == "test" else validation
        self.sizes = [dataset.num_classes * ipc for ipc in config.subset_ipcs] if config.ipc else [self.train_images]
        self.unions = [sum(self.sizes[: k + 1]) for k in range(len(self.sizes))]
        self.tiles = getattr(config.options, "formation", AS_STORED).tiles
        self.data_bytes = 4 * prod(dataset.shape) * (self.train_images + self.selection_images + dataset.test_size)
        self.training_variant = f"{config.training.engine} {config.training.precision}"
        self.training_batch = min(config.training.batch_size, self.unions[-1] * self.tiles)

    def staged(self, stages: int) -> float:
        """Operations of training one network through the first stages."""
        return GRADIENT_PASSES * self.forward * self.config.training.epochs * sum(self.unions[:stages]) * self.tiles

    def work(self, flops: float, rate: str, variant: str, vectors: float, images: float) -> Work:
        """A phase that holds so many parameter vectors, and the activations of so many images, passes and all."""
        tensors = vectors * self.parameters + images * GRADIENT_PASSES * self.activations
        return Work(flops, rate, variant, self.data_bytes + 4 * tensors)

    def teachers(self) -> Work:
        """All stages' teachers, those of stage k after training through the stages before it."""
        teachers = self.config.teachers
        flops = 0.0
        for k in range(1, len(self.sizes) + 1):
            epochs = GRADIENT_PASSES * self.forward * self.train_images * teachers.recorded_epochs(k)
            flops += teachers.num_teachers * (epochs + self.staged(k - 1))
        variant = f"{teachers.engine} {teachers.precision}"
        vectors = teachers.together * (max(teachers.epochs, teachers.later_epochs) + 3)
        return self.work(flops, "training", variant, vectors, teachers.together * teachers.batch_size)

    def distillation(self) -> Work:
        """What the method does in all stages, and the networks that it starts from."""
        effort = get_method(self.config.base_method)(self.config.options).effort(self.sizes, self.dataset.num_classes)
        starts = sum(count * self.staged(k) for k, count in enumerate(effort.starts))
        flops = effort.passes * self.forward + starts
        return self.work(flops, effort.rate, effort.variant, effort.vectors, effort.images)

    def selection(self) -> Work:
        """One network a scored iterate, trained through the stages so far."""
        evaluation = self.config.evaluation
        scores = evaluation.num_selections if self.config.select_on != "none" else 0
        flops = [self.staged(k) + self.forward * self.selection_images for k in range(1, len(self.sizes) + 1)]
        return self.work(scores * sum(flops), "training", self.training_variant, 4, self.training_batch)

    def evaluation(self) -> Work:
        """The last set, the selected one, random real images, and all subsets jointly where there are several."""
        evaluation, training = self.config.evaluation, self.config.training
        test = self.forward * self.dataset.test_size
        flops = (self.staged(len(self.sizes)) + test) * (1 if self.config.options is None else 3)
        if len(self.sizes) > 1:
            flops += self.staged(len(self.sizes)) - self.staged(len(self.sizes) - 1) + test
        together = evaluation.num_networks if training.engine == "compiled" else 1
        networks = evaluation.num_networks * len(evaluation.networks)
        return self.work(networks * flops, "training", self.training_variant, 3 * together, together * self.training_batch)


def predict_seconds(work: Work, network: NetworkConfig, benchmark: Mapping[str, Any]) -> float:
    """Returns the seconds of a phase at the rate that the benchmark measured for its variant, at the nearest width.

    Raises:
        ConfigError: the benchmark did not measure that variant.
    """
    rows = benchmark["inner_steps"] if work.rate == "inner_steps" else [*benchmark["teachers"], *benchmark["evaluation"]]
    variant = work.variant.replace("tf32", "float32") if benchmark["machine"]["device"] == "cpu" else work.variant
    rows = [row for row in rows if row["variant"] == variant and row["allocator"] == "kept"]
    message = f"the benchmark has no rate for {variant!r}; measure it with `python -m seqmatch_lib bench` on this machine"
    require(bool(rows), message)
    nearest = min(rows, key=lambda row: abs(log(row["width"] / network.width)))["width"]
    rates = [row["flops"] / row["seconds"] for row in rows if row["width"] == nearest]
    return work.flops / (sum(rates) / len(rates))


@dataclass(frozen=True)
class CostModel:
    """How long runs take on the machine of a benchmark: as long as an equal recorded run, else as long as predicted.

    A prediction is the work of a phase over the benchmark's rate, for as many threads as the run will have (a CPU's rate grows
    with them), times what recorded runs of that method and phase took over their own predictions, as a median.

    Args:
        benchmark: whose rates are used.
        records: of the same machine; those of others are left out.
    """

    benchmark: Mapping[str, Any]
    records: Sequence[RunRecord]

    @classmethod
    def load(cls, results_dir: Path, benchmark: Path | None = None, device: str = "*") -> "CostModel":
        """Reads the records of a results folder, and a benchmark: the newest there of a kind of device, unless one is given.

        Raises:
            ConfigError: there is no such benchmark.
        """
        path = benchmark or newest_benchmark(results_dir / "benchmarks", device)
        return cls(load_benchmark(path), load_runs(results_dir))

    @property
    def machine(self) -> str:
        """The machine's name."""
        return self.benchmark["machine"]["device_name"]

    def find_record(self, config: RunConfig) -> RunRecord | None:
        """Returns the record of an equal run on this machine; the seed makes no difference."""
        return self._by_settings.get(_hash_without_seed(config.as_dict()))

    def minutes(self, config: RunConfig) -> float | None:
        """Returns the minutes of an equal recorded run, else those predicted; None where the benchmark cannot tell."""
        record = self.find_record(config)
        try:
            return sum((self.predict(config) if record is None else record.seconds).values()) / 60
        except SeqMatchError:
            return None

    def predict(
        self, config: RunConfig, threads: int | None = None, dataset: DatasetSpec | None = None, without: str = ""
    ) -> dict[str, float]:
        """Returns the seconds of each phase of a run.

        Args:
            config: of the run.
            threads: that it will have; those of torch by default.
            dataset: that it is made on; by default the whole one of its name.
            without: id of a run whose record is not to be used.

        Raises:
            ConfigError: the benchmark did not measure what the run would use.
        """
        seconds = self._from_benchmark(config, threads or torch.get_num_threads(), dataset or find_dataset(config.dataset))
        return {phase: value * self._correction(config.base_method, phase, without) for phase, value in seconds.items()}

    def errors(self) -> list[float]:
        """Returns predicted over measured seconds of recorded runs of five minutes and more, each left out in turn."""
        ratios = []
        for record in self._own_records:
            measured = sum(record.seconds.values())
            if measured >= LONG_SECONDS:
                config = RunConfig.from_dict(record.config)
                with suppress(ConfigError):  # a method of one's own need not say what its steps cost
                    predicted = self.predict(config, record.threads, _dataset_of(record), without=record.run_id)
                    ratios.append(sum(predicted.values()) / measured)
        return ratios

    def _from_benchmark(self, config: RunConfig, threads: int, dataset: DatasetSpec) -> dict[str, float]:
        machine = self.benchmark["machine"]
        faster = threads / machine["threads"] if machine["device"] == "cpu" else 1.0
        work = predict_work(config, dataset)
        return {phase: predict_seconds(part, config.network, self.benchmark) / faster for phase, part in work.items()}

    def _correction(self, method: str, phase: str, without: str) -> float:
        """Returns the median of measured over predicted seconds: of this method's runs, or of all if these are few."""
        ratios = [entry for entry in self._ratios if entry.phase == phase and entry.run_id != without]
        for chosen in ([entry for entry in ratios if entry.method == method], ratios):
            if len(chosen) >= ENOUGH_RECORDS:
                return median(entry.value for entry in chosen)
        return 1.0

    @cached_property
    def _own_records(self) -> list[RunRecord]:
        here = (self.benchmark["machine"]["device"], self.machine)
        return [run for run in self.records if (run.device, run.device_name) == here and run.dataset in DATASETS]

    @cached_property
    def _by_settings(self) -> dict[str, RunRecord]:
        return {_hash_without_seed(record.config): record for record in reversed(self._own_records)}  # the first seed stays

    @cached_property
    def _ratios(self) -> "list[_Ratio]":
        ratios = []
        for record in self._own_records:
            config = RunConfig.from_dict(record.config)
            phases: dict[str, float] = {}
            with suppress(ConfigError):  # as in `errors`
                phases = self._from_benchmark(config, record.threads, _dataset_of(record))
            for phase, predicted in phases.items():
                measured = record.seconds.get(phase, 0.0)
                if measured >= START_SECONDS:
                    ratios.append(_Ratio(record.run_id, config.base_method, phase, measured / predicted))
        return ratios


class _Ratio(NamedTuple):
    """Measured over predicted seconds of one phase of a recorded run."""

    run_id: str
    method: str
    phase: str
    value: float


def _hash_without_seed(settings: Mapping[str, Any]) -> str:
    return digest_json({**settings, "seed": 0})


def _dataset_of(record: RunRecord) -> DatasetSpec:
    """Returns the data that a run had, which may have been a part of the data set."""
    data = record.data
    train_size = data["train_images"] + data["held_out"]
    return replace(find_dataset(record.dataset), train_size=train_size, test_size=data["test_images"])


def format_cost(config: RunConfig, dataset: DatasetSpec, model: CostModel, threads: int | None = None) -> str:
    """Returns what a run will cost: phase by phase, how far such predictions were off, and in all."""
    threads = threads or torch.get_num_threads()
    seconds, work = model.predict(config, threads, dataset), predict_work(config, dataset)
    lines = [f"{config.preset}, scale {config.scale}, {threads} thread{'s' * (threads > 1)} of {model.machine}", ""]
    rows = [("phase", "PFLOP", "hours", "memory GiB")]
    for phase, part in work.items():
        rows.append((phase, f"{part.flops / 1e15:.3f}", f"{seconds[phase] / 3600:.2f}", f"{part.bytes / 2**30:.1f}"))
    lines.append(format_columns(rows, left=1))
    errors = sorted(model.errors())
    if len(errors) >= ENOUGH_RECORDS:
        low, middle, high = (errors[round(share * (len(errors) - 1))] for share in (0.1, 0.5, 0.9))
        lines += [
            "",
            f"{len(errors)} recorded runs of five minutes and more, each predicted from the others: predicted over measured "
            f"time {middle:.2f} in the median, {low:.2f} to {high:.2f} for four in five",
        ]
    record = model.find_record(config)
    if record is not None:
        hours = sum(record.seconds.values()) / 3600
        lines += ["", f"recorded: {hours:.2f} hours, threads: {record.threads}, run {record.run_id}"]
    memory = max(part.bytes for part in work.values()) / 2**30
    lines += ["", f"predicted: {sum(seconds.values()) / 3600:.2f} hours, {memory:.1f} GiB of memory, "
                  f"{trajectory_bytes(config, dataset) / 2**30:.1f} GiB of teachers on disk"]  # fmt: skip
    return "\n".join(lines)


def trajectory_bytes(config: RunConfig, dataset: DatasetSpec) -> float:
    """Returns the bytes of all teacher files of a run."""
    if not config.uses_teachers:
        return 0.0
    parameters = count_network(config.network, dataset.shape, dataset.num_classes).parameters
    rows = sum(config.teachers.recorded_epochs(k) + 1 for k in range(1, config.num_subsets + 1))
    return 4.0 * parameters * config.teachers.num_teachers * rows


def format_pending(scale: str, model: CostModel) -> str:
    """Returns what has no record at a scale: a line for each data set and method, with predicted hours of one thread."""
    done = {record.preset for record in model.records if record.scale == scale and not changes_of(record)}
    groups: dict[tuple[str, str], list[RunConfig]] = {}
    for preset in preset_names():
        if preset not in done:
            config = RunConfig.from_preset(preset, scale)
            groups.setdefault((config.dataset, config.method), []).append(config)
    count = sum(len(configs) for configs in groups.values())
    lines = [f"{count} of {len(preset_names())} presets have no record at scale {scale}; hours of 1 thread of {model.machine}"]
    rows, total = [("data set", "method", "ipc", "hours")], 0.0
    for (dataset, method), configs in sorted(groups.items()):
        hours = sum(sum(model.predict(config, threads=1).values()) for config in configs) / 3600
        total += hours
        ipcs = ", ".join(str(config.ipc or "all") for config in sorted(configs, key=lambda config: config.ipc))
        rows.append((dataset, method, ipcs, f"{hours:,.1f}"))
    lines += [
        "",
        format_columns(rows, left=3),
        "",
        f"in all {total:,.0f} hours; for one of them: python -m seqmatch_lib cost PRESET --scale {scale}",
    ]
    return "\n".join(lines)

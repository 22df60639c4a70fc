"""What a run will cost: floating-point operations, seconds and memory, predicted from a benchmark's measured rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from seqmatch_lib.data.datasets import DATASETS
from seqmatch_lib.engine.networks import NetworkConfig, count_parameters, make_network
from seqmatch_lib.engine.step_functions import GRADIENT_PASSES
from seqmatch_lib.errors import ConfigError, require
from seqmatch_lib.methods import get_method
from seqmatch_lib.runs.config import RunConfig, preset_names
from seqmatch_lib.runs.records import RunRecord, changes_of

VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class DataSizes:
    """The sizes of a data set, which may be one that nobody has downloaded.

    Args:
        image_shape: (C, H, W).
        num_classes: of them.
        train_images: and `test_images`: how many.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    train_images: int
    test_images: int

    @classmethod
    def of(cls, dataset: str) -> "DataSizes":
        """Returns the sizes of the whole data set of that name."""
        require(dataset in DATASETS, f"data set {dataset!r} is unknown; use one of {', '.join(DATASETS)}")
        spec = DATASETS[dataset]
        return cls(spec.shape, spec.num_classes, spec.train_size, spec.test_size)


@dataclass(frozen=True)
class Work:
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


@lru_cache(maxsize=64)
def count_forward_flops(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """Returns the floating-point operations of one image's forward pass: products and convolutions, two a multiply-add."""
    network = make_network(config, image_shape, num_classes, torch.Generator()).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, *image_shape, device="meta"))
    return counter.get_total_flops()


@lru_cache(maxsize=64)
def count_activations(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """Returns the numbers that one image's forward pass produces, over all layers."""
    network = make_network(config, image_shape, num_classes, torch.Generator()).to("meta")
    total = 0

    def count(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel()

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.empty(1, *image_shape, device="meta"))
    return total


@lru_cache(maxsize=64)
def count_parameters_of(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """Returns P of an architecture."""
    return count_parameters(make_network(config, image_shape, num_classes, torch.Generator()))


def predict_work(config: RunConfig, sizes: DataSizes) -> dict[str, Work]:
    """Returns the work of each phase of a run.

    Args:
        config: of the run.
        sizes: sizes of its data set.
    """
    plan = _Plan(config, sizes)
    work = {}
    if config.options is not None:
        work = {"teachers": plan.teachers()} if get_method(config.base_method).uses_teachers else {}
        work |= {"distillation": plan.distillation(), "selection": plan.selection()}
    return work | {"evaluation": plan.evaluation()}


class _Plan:
    """The phases of one run, counted."""

    def __init__(self, config: RunConfig, sizes: DataSizes) -> None:
        self.config = config
        self.test_images = sizes.test_images
        self.num_classes = sizes.num_classes
        architecture = (config.network, sizes.image_shape, sizes.num_classes)
        self.forward = count_forward_flops(*architecture)
        self.activations = count_activations(*architecture)
        self.parameters = count_parameters_of(*architecture)
        held_out = config.select_on == "validation" and config.method != "whole"
        validation = VALIDATION_SHARE * sizes.train_images if held_out else 0.0
        self.train_images = sizes.train_images - validation
        self.selection_images = sizes.test_images if config.select_on == "test" else validation
        self.sizes = [sizes.num_classes * ipc for ipc in config.subset_ipcs] if config.ipc else [self.train_images]
        self.unions = [sum(self.sizes[: k + 1]) for k in range(len(self.sizes))]
        # training images in a stored one
        self.tiles = getattr(config.options, "factor", 1) ** 2
        pixels = sizes.image_shape[0] * sizes.image_shape[1] * sizes.image_shape[2]
        self.data_bytes = 4 * pixels * (self.train_images + self.selection_images + sizes.test_images)
        self.training_way = f"{config.training.engine} {config.training.precision}"

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
        effort = get_method(self.config.base_method)(self.config.options).effort(self.sizes, self.num_classes)
        starts = sum(count * self.staged(k) for k, count in enumerate(effort.starts))
        flops = effort.passes * self.forward + starts
        return self.work(flops, effort.rate, effort.variant, effort.vectors, effort.images)

    def selection(self) -> Work:
        """One network a scored iterate, trained through the stages so far."""
        evaluation = self.config.evaluation
        scores = evaluation.num_selections if self.config.select_on != "none" else 0
        each = [self.staged(k) + self.forward * self.selection_images for k in range(1, len(self.sizes) + 1)]
        return self.work(scores * sum(each), "training", self.training_way, 4, self.unions[-1])

    def evaluation(self) -> Work:
        """The last set, the selected one, random real images, and all subsets jointly where there are several."""
        evaluation, training = self.config.evaluation, self.config.training
        several = len(self.sizes) > 1
        references = self.config.options is None
        each = self.staged(len(self.sizes)) + self.forward * self.test_images
        flops = each * (1 if references else 3)
        if several:
            flops += self.staged(len(self.sizes)) - self.staged(len(self.sizes) - 1) + self.forward * self.test_images
        together = evaluation.num_networks if training.engine == "compiled" else 1
        batch = together * min(training.batch_size, self.unions[-1])
        networks = evaluation.num_networks * len(evaluation.networks)
        return self.work(networks * flops, "training", self.training_way, 3 * together, batch)


def predict_seconds(work: Work, network: NetworkConfig, benchmark: Mapping[str, Any]) -> float:
    """Returns the seconds of a phase at the rate that the benchmark measured for its variant, at the nearest width.

    Raises:
        ConfigError: the benchmark did not measure that variant.
    """
    rows = benchmark["inner_steps"] if work.rate == "inner_steps" else [*benchmark["teachers"], *benchmark["evaluation"]]
    variant = work.variant.replace("tf32", "float32") if benchmark["machine"]["device"] == "cpu" else work.variant
    rows = [row for row in rows if row["variant"] == variant and row["allocator"] == "kept"]
    require(
        bool(rows),
        f"the benchmark has no rate for {variant!r}; measure it with `python -m seqmatch_lib bench` on this machine",
        ConfigError,
    )
    nearest = min(rows, key=lambda row: abs(log(row["width"] / network.width)))["width"]
    rates = [row["flops"] / row["seconds"] for row in rows if row["width"] == nearest]
    return work.flops / (sum(rates) / len(rates))


def format_cost(config: RunConfig, sizes: DataSizes, benchmark: Mapping[str, Any]) -> str:
    """Returns a table of what a run will cost on the machine of a benchmark."""
    lines = [f"{config.preset}, scale {config.scale}, on {benchmark['machine']['device_name']}", ""]
    lines.append(f"{'phase':<14}{'FLOP':>12}{'seconds':>12}{'memory GiB':>12}  variant")
    total = 0.0
    for phase, work in predict_work(config, sizes).items():
        seconds = predict_seconds(work, config.network, benchmark)
        total += seconds
        lines.append(f"{phase:<14}{work.flops:>12.2e}{seconds:>12,.0f}{work.bytes / 2**30:>12.1f}  {work.variant}")
    lines.append(f"in all {total / 3600:.2f} hours; trajectories on disk {trajectory_bytes(config, sizes) / 2**30:.1f} GiB")
    return "\n".join(lines)


def trajectory_bytes(config: RunConfig, sizes: DataSizes) -> float:
    """Returns the bytes of all teacher files of a run."""
    if config.options is None or not get_method(config.base_method).uses_teachers:
        return 0.0
    parameters = count_parameters_of(config.network, sizes.image_shape, sizes.num_classes)
    rows = sum(config.teachers.recorded_epochs(k) + 1 for k in range(1, config.num_subsets + 1))
    return 4.0 * parameters * config.teachers.num_teachers * rows


def format_errors(records: Sequence[RunRecord], benchmark: Mapping[str, Any]) -> str:
    """Returns predicted over measured seconds of runs on the benchmark's machine, by base method, phase and threads."""
    ratios: dict[tuple[str, str, int], list[float]] = {}
    for record in records:
        if record.device_name != benchmark["machine"]["device_name"] or record.dataset not in DATASETS:
            continue
        config = RunConfig.from_dict(record.config)
        sizes = DataSizes.of(record.dataset)
        held = record.data["train_images"] + record.data["held_out"]
        sizes = DataSizes(sizes.image_shape, sizes.num_classes, held, record.data["test_images"])
        for phase, work in predict_work(config, sizes).items():
            measured = record.seconds[phase]
            if measured >= 5:  # shorter phases are start-up
                predicted = predict_seconds(work, config.network, benchmark)
                ratios.setdefault((config.base_method, phase, record.threads), []).append(predicted / measured)
    if not ratios:
        return "no run was recorded on this machine, so no error can be shown"
    lines = [f"{'method':<10}{'phase':<14}{'threads':>7}{'runs':>6}{'median':>8}{'lowest':>8}{'highest':>9}"]
    for (method, phase, threads), found in sorted(ratios.items()):
        numbers = f"{median(found):>8.2f}{min(found):>8.2f}{max(found):>9.2f}"
        lines.append(f"{method:<10}{phase:<14}{threads:>7}{len(found):>6}{numbers}")
    return "\n".join(lines)


def format_pending(scale: str, records: Sequence[RunRecord], benchmark: Mapping[str, Any], tflops: float) -> str:
    """Returns the presets without a record at a scale, with predicted operations and hours.

    Args:
        scale: one of `SCALES`.
        records: that there are; those with changed settings are other experiments.
        benchmark: whose rates are used for hours on its machine.
        tflops: an assumed rate, in 10^12 operations a second, for hours on a machine that nobody has measured.
    """
    require(tflops > 0, f"--tflops {tflops} must be positive")
    done = {(record.preset, record.scale) for record in records if not changes_of(record)}
    pending = [preset for preset in preset_names() if (preset, scale) not in done]
    machine = f"hours on {benchmark['machine']['device_name']}"
    lines = [f"{len(pending)} of {len(preset_names())} presets have no record at scale {scale}", ""]
    assumed = f"hours at {tflops:g} TFLOP/s, assumed"
    lines.append(f"{'preset':<34}{'PFLOP':>10}{machine:>30}{assumed:>34}")
    for preset in pending:
        config = RunConfig.from_preset(preset, scale)
        work = predict_work(config, DataSizes.of(config.dataset))
        seconds = sum(predict_seconds(one, config.network, benchmark) for one in work.values())
        flops = sum(one.flops for one in work.values())
        lines.append(f"{preset:<34}{flops / 1e15:>10,.1f}{seconds / 3600:>30,.1f}{flops / tflops / 3.6e15:>34,.2f}")
    return "\n".join(lines)

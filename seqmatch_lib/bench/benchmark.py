"""Speed, memory and exactness of the engines, side by side in one process, against the inner loops of public code.

Pixels are random numbers: no time depends on them. On a CPU those of public code are timed twice: with the C
library's default allocator, as their users run them, and with `keep_freed_memory`, which every run of ours sets.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from seqmatch_lib.bench.floors import list_convolutions, list_copies
from seqmatch_lib.bench.flops import count_network
from seqmatch_lib.engine.augment import DSA_STRATEGY, apply_augmentation, draw_augmentation
from seqmatch_lib.engine.inner_loop import InnerBatch, unroll
from seqmatch_lib.engine.memory import keep_freed_memory, peak_memory_mb, release_freed_memory, reset_peak_memory
from seqmatch_lib.engine.networks import NetworkConfig, flatten_parameters, make_network
from seqmatch_lib.engine.step_functions import ADJOINT_PASSES, GRADIENT_PASSES, PRECISIONS
from seqmatch_lib.engine.training import TrainingRecipe, make_trainer
from seqmatch_lib.runs.provenance import describe_code, describe_environment, processor_extensions
from seqmatch_lib.seeds import make_generator

SCHEMA = 2
IMAGE_SHAPE, NUM_CLASSES = (3, 32, 32), 10
REPEATS, ENOUGH_SECONDS = 3, 8.0  # a measurement is repeated so often, but not much longer
WIDTHS, QUICK_WIDTHS = (128, 32), (32,)  # of the networks of teachers and evaluation

TABLES = ("inner_steps", "teachers", "evaluation", "floors")  # of a benchmark
Row = dict[str, Any]


class Case(NamedTuple):
    """One size of the inner loop.

    Args:
        width: of a ConvNet of depth 3 on 32x32 images.
        batch: images an inner step; ipc is a tenth of it.
        syn_steps: steps unrolled.
        variants: of `VARIANTS` that fit into memory at this size; None for all.
    """

    width: int
    batch: int
    syn_steps: int
    variants: tuple[str, ...] | None = None


KEEPS_NO_GRAPH = ("compiled float32", "compiled tf32", "compiled bfloat16")
QUICK = (Case(32, 100, 2), Case(32, 100, 10), Case(32, 100, 80, KEEPS_NO_GRAPH))
# On a GPU it is compiling that takes long, at any width: the one of the paper's networks is measured.
QUICK_GPU, QUICK_WIDTHS_GPU = (Case(128, 100, 2), *(Case(128, 100, steps, KEEPS_NO_GRAPH) for steps in (10, 80))), (128,)
FULL = (
    *(Case(128, 100, steps) for steps in (2, 5)),
    *(Case(128, 100, steps, KEEPS_NO_GRAPH) for steps in (10, 80)),
    *(Case(32, 100, steps) for steps in (2, 10, 20, 40)),
    Case(32, 100, 80, KEEPS_NO_GRAPH),
    *(Case(32, 10 * ipc, 10) for ipc in (1, 50)),
)


class InnerLoop:
    """A network, a start, a batch of images, and the batches of an inner loop."""

    def __init__(self, case: Case, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        generator = make_generator(0, "bench")
        config = NetworkConfig(width=case.width)
        self.network = make_network(config, IMAGE_SHAPE, NUM_CLASSES, generator).to(device, dtype)
        self.start = flatten_parameters(self.network)
        images = torch.randn(case.batch, *IMAGE_SHAPE, generator=generator)
        self.images = images.to(device, dtype).requires_grad_()
        self.targets = torch.randint(NUM_CLASSES, (case.batch,), generator=generator).to(device)
        self.lr = torch.tensor(0.01, device=device, dtype=dtype, requires_grad=True)
        self.batches = []
        for _ in range(case.syn_steps):
            rows = torch.randperm(case.batch, generator=generator).to(device)
            drawn = draw_augmentation(DSA_STRATEGY, case.batch, IMAGE_SHAPE[1:], generator, device=device)
            self.batches.append(InnerBatch(rows, drawn))

    def gradient(self, variant: str) -> torch.Tensor:
        """Unrolls, goes back, and returns the gradient of the images."""
        reached = VARIANTS[variant](self.network, self.start, self.images, self.targets, self.batches, self.lr)
        return torch.autograd.grad(reached.square().sum(), [self.images, self.lr])[0]


def unroll_flat(
    network: nn.Module,
    start: torch.Tensor,
    images: torch.Tensor,
    targets: torch.Tensor,
    batches: Sequence[InnerBatch],
    lr: torch.Tensor,
) -> torch.Tensor:
    """Unrolls as the public MTT code does: one flat parameter vector, `autograd.grad` with `create_graph` at each step.

    Source: the inner loop of `distill.py` with `ReparamModule`.
    """
    names = [name for name, _ in network.named_parameters()]
    shapes = [parameter.shape for parameter in network.parameters()]
    sizes = [shape.numel() for shape in shapes]
    trail = [start.clone().requires_grad_()]
    for batch in batches:
        augmented, batch_targets = batch.take(images, targets)
        parts = zip(names, trail[-1].split(sizes), shapes, strict=True)
        logits = functional_call(network, {name: part.view(shape) for name, part, shape in parts}, (augmented,))
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, batch_targets), trail[-1], create_graph=True)
        trail.append(trail[-1] - lr * gradient)
    return trail[-1]


PUBLIC_VARIANTS = ("higher", "flat")
VARIANTS: dict[str, Callable[..., torch.Tensor]] = {"higher": unroll, "flat": unroll_flat} | {
    name: partial(unroll, engine="compiled", precision=name.split()[1]) for name in KEEPS_NO_GRAPH
}


def sizes_to_measure(quick: bool, device: torch.device) -> tuple[tuple[Case, ...], tuple[int, ...]]:
    """Returns the sizes of the inner loop, and the widths of the networks of teachers and evaluation."""
    if not quick:
        return FULL, WIDTHS
    return (QUICK_GPU, QUICK_WIDTHS_GPU) if device.type == "cuda" else (QUICK, QUICK_WIDTHS)


def ways_to_train(device: torch.device) -> list[tuple[str, str]]:
    """Returns engine and precision of each way in which teachers and evaluation are timed: all that presets have there."""
    precisions = [precision for precision in PRECISIONS if precision != "tf32" or device.type == "cuda"]
    return [("eager", "float32"), *(("compiled", precision) for precision in precisions)]


def run_benchmark(
    quick: bool = False, device: torch.device | str | None = None, report: Callable[[str, Row], None] | None = None
) -> dict[str, Any]:
    """Measures everything on one device.

    Args:
        quick: small networks alone, under three minutes on two CPU cores; on a GPU those of width 128 alone.
        device: the first GPU by default, or the CPU.
        report: called with the table and each row as soon as it is measured, since all of them take long.

    Returns:
        JSON values: `machine`, and the rows of each of `TABLES`.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    for table, row in _time_all(*sizes_to_measure(quick, device), device):
        tables[table].append(row)
        if report:
            report(table, row)
    commit, dirty = describe_code()
    return {
        "schema": SCHEMA,
        "quick": quick,
        "machine": {**describe_environment(device), "extensions": processor_extensions()},
        "git_commit": commit,
        "dirty": dirty,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **tables,
    }


def _time_all(cases: Sequence[Case], widths: Sequence[int], device: torch.device) -> Iterator[tuple[str, Row]]:
    """Yields each row with the name of its table."""
    if device.type == "cpu":  # before the allocator is changed, which cannot be undone
        yield from (("inner_steps", row) for row in _time_inner_steps(cases, PUBLIC_VARIANTS, device, "default"))
        for width in widths:
            yield "teachers", _time_plain_loop(width, device, "default")
            yield "evaluation", _time_evaluation(width, "eager", "float32", device, "default")
        keep_freed_memory()
    variants = [variant for variant in VARIANTS if variant != "compiled tf32" or device.type == "cuda"]
    yield from (("inner_steps", row) for row in _time_inner_steps(cases, variants, device, "kept"))
    for width in widths:
        yield "teachers", _time_plain_loop(width, device, "kept")
        for engine, precision in ways_to_train(device):
            yield "evaluation", _time_evaluation(width, engine, precision, device, "kept")
            for together in (1, 5) if device.type == "cuda" and engine == "compiled" else (1,):
                yield "teachers", _time_teachers(width, engine, precision, together, device)
    for width in widths:
        for precision in ("float32", "bfloat16"):
            yield "floors", _time_floors(width, precision, device)


def _time_inner_steps(cases: Sequence[Case], variants: Sequence[str], device: torch.device, allocator: str) -> Iterator[Row]:
    """Yields a row for each case and variant: seconds an inner step, forward and backward, memory, error, compile time."""
    exact: dict[tuple[int, int], torch.Tensor] = {}
    held: dict[tuple[int, int, str], float] = {}  # MiB that a variant took when it was first called at a size
    for case in cases:
        chosen = [variant for variant in variants if case.variants is None or variant in case.variants]
        error_case = Case(case.width, case.batch, 2)
        key = (case.width, case.batch)
        if chosen and key not in exact:
            exact[key] = InnerLoop(error_case, device, torch.float64).gradient("flat").float()
        for variant in chosen:
            inner_loop, short_loop = InnerLoop(case, device), InnerLoop(error_case, device)
            before = _begin_peak(device)
            began = time.perf_counter()
            error = _relative_error(short_loop.gradient(variant), exact[key])
            first = time.perf_counter() - began
            held.setdefault((*key, variant), peak_memory_mb(device) - before)
            seconds, memory = _measure(lambda inner_loop=inner_loop, variant=variant: inner_loop.gradient(variant), device)
            if _replays_graphs(variant, device):
                memory = round(memory + held[(*key, variant)], 1)
            yield {
                "width": case.width,
                "batch": case.batch,
                "syn_steps": case.syn_steps,
                "variant": variant,
                "allocator": allocator,
                "seconds": seconds / case.syn_steps,
                "first_call": first,
                "memory_mb": memory,
                "error": error,
                "flops": (GRADIENT_PASSES + ADJOINT_PASSES) * case.batch * _forward_flops(case.width),
            }


def _replays_graphs(variant: str, device: torch.device) -> bool:
    """Whether later calls work in memory that the first one took for CUDA graphs, which torch then counts no more."""
    return device.type == "cuda" and variant in KEEPS_NO_GRAPH


def _forward_flops(width: int) -> int:
    return count_network(NetworkConfig(width=width), IMAGE_SHAPE, NUM_CLASSES).flops


def _make_network(width: int, device: torch.device, *purpose: int) -> nn.Sequential:
    return make_network(NetworkConfig(width=width), IMAGE_SHAPE, NUM_CLASSES, make_generator(0, *purpose)).to(device)


def _relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours - exact).norm() / exact.norm()).item()


def _measure(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Returns the median seconds of a call, and the most memory it took beyond what was there, in MiB."""
    before = _begin_peak(device)
    call()
    memory = peak_memory_mb(device) - before
    seconds = []
    while len(seconds) < REPEATS and sum(seconds) < ENOUGH_SECONDS:
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return median(seconds), round(memory, 1)


def _begin_peak(device: torch.device) -> float:
    """Begins a new measurement of the most memory, and returns what is taken now, in MiB."""
    release_freed_memory(device)
    reset_peak_memory(device)
    return peak_memory_mb(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


BATCHES, TEACHER_BATCH = 4, 256


def _real_images(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = make_generator(0, "bench images")
    count = BATCHES * TEACHER_BATCH
    images = torch.randn(count, *IMAGE_SHAPE, generator=generator)
    return images.to(device), torch.randint(NUM_CLASSES, (count,), generator=generator).to(device)


def _teacher_row(variant: str, width: int, together: int, allocator: str, seconds: float) -> Row:
    images = BATCHES * TEACHER_BATCH * together
    flops = GRADIENT_PASSES * images * _forward_flops(width)
    return {"variant": variant, "width": width, "together": together, "allocator": allocator,
            "images_per_second": images / seconds, "seconds": seconds, "flops": flops}  # fmt: skip


def _make_epoch(
    width: int, count: int, recipe: TrainingRecipe, images: torch.Tensor, labels: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """Returns an epoch of training of `count` networks; it returns their losses."""
    networks = [_make_network(width, images.device, index) for index in range(count)]
    generators = [make_generator(1, index) for index in range(count)]
    return partial(make_trainer(networks, recipe, 0.01).epoch, images, labels, generators)


def _time_teachers(width: int, engine: str, precision: str, together: int, device: torch.device) -> Row:
    """Times an epoch of our teachers."""
    recipe = TrainingRecipe(batch_size=TEACHER_BATCH, momentum=0.0, weight_decay=0.0, engine=engine, precision=precision)
    epoch = _make_epoch(width, together, recipe, *_real_images(device))
    seconds, _ = _measure(lambda: epoch().tolist(), device)
    return _teacher_row(f"{engine} {precision}", width, together, "kept", seconds)


def _time_plain_loop(width: int, device: torch.device, allocator: str) -> Row:
    """Times an epoch as the public code's `epoch` makes it: a DataLoader, and accuracy and loss fetched at each step."""
    network = _make_network(width, device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    images, labels = _real_images(torch.device("cpu"))
    loader = DataLoader(TensorDataset(images, labels), TEACHER_BATCH, shuffle=True, generator=make_generator(2))
    generator = make_generator(1)

    def epoch() -> None:
        for batch, targets in loader:
            drawn = draw_augmentation(DSA_STRATEGY, len(batch), IMAGE_SHAPE[1:], generator, device=device)
            logits = network(apply_augmentation(batch.to(device), drawn))
            loss = F.cross_entropy(logits, targets.to(device))
            (logits.argmax(1).cpu() == targets).sum().item()
            loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    seconds, _ = _measure(epoch, device)
    return _teacher_row("plain loop", width, 1, allocator, seconds)


EVALUATION_NETWORKS, EVALUATION_IPC, EVALUATION_EPOCHS = 5, 10, 4


def _time_evaluation(width: int, engine: str, precision: str, device: torch.device, allocator: str) -> Row:
    """Times a few epochs of the networks of one evaluation at ipc 10."""
    count = EVALUATION_IPC * NUM_CLASSES
    images, labels = (tensor[:count] for tensor in _real_images(device))
    recipe = TrainingRecipe(batch_size=TEACHER_BATCH, engine=engine, precision=precision)
    epoch = _make_epoch(width, EVALUATION_NETWORKS, recipe, images, labels)

    def epochs() -> None:
        for _ in range(EVALUATION_EPOCHS):
            losses = epoch()
        losses.tolist()

    seconds, _ = _measure(epochs, device)
    flops = GRADIENT_PASSES * EVALUATION_NETWORKS * EVALUATION_EPOCHS * count * _forward_flops(width)
    return {"variant": f"{engine} {precision}", "width": width, "networks": EVALUATION_NETWORKS, "ipc": EVALUATION_IPC,
            "allocator": allocator, "seconds_per_epoch": seconds / EVALUATION_EPOCHS, "seconds": seconds,
            "flops": flops}  # fmt: skip


FLOOR_BATCH = 100


def _time_floors(width: int, precision: str, device: torch.device) -> Row:
    """Times the convolutions of an inner step of `FLOOR_BATCH` images and of its adjoint, and its passes over memory."""
    inner_loop = InnerLoop(Case(width, FLOOR_BATCH, 1), device)
    convolutions = list_convolutions(
        inner_loop.network, inner_loop.images.detach(), inner_loop.targets, getattr(torch, precision)
    )
    floors = {"convolutions": convolutions, "memory": list_copies(convolutions)}
    seconds = {name: _measure(lambda calls=calls: [call() for call in calls], device)[0] for name, calls in floors.items()}
    return {"width": width, "batch": FLOOR_BATCH, "precision": precision, **seconds}

"""Teachers: networks trained on real data, and the files that hold their parameters after every epoch.

A set of teachers is a folder: `manifest.json` says what the set is, and for each teacher there is `teacher-000.npy`,
float32 of shape (epochs + 1, P) whose row e holds the parameters after e epochs, with `teacher-000.json` beside it,
written last, holding the checksum of each row. Files are memory-mapped: a segment costs two rows of reading. While teachers
are trained, `teacher-000.safetensors`, named for the first of them, is their checkpoint.
"""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import Timeout
from torch import nn
from tqdm import tqdm

from seqmatch_lib.engine.augment import DSA_STRATEGY, check_strategy
from seqmatch_lib.engine.networks import count_parameters
from seqmatch_lib.engine.training import BatchConfig, OptimizerConfig, TrainingRecipe, check_trainer, make_trainer
from seqmatch_lib.engine.training_checkpoint import TrainingCheckpoint
from seqmatch_lib.errors import DivergenceError, StorageError, require
from seqmatch_lib.progress import progress_bar
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.files import (
    acquire_lock,
    digest_json,
    read_json,
    remove_file,
    remove_leftovers,
    write_json,
    write_parts,
)
from seqmatch_lib.store.settings import as_settings

if TYPE_CHECKING:  # stages hold the configuration of teachers
    from seqmatch_lib.methods.base import Stage


@dataclass(frozen=True)
class TeacherConfig:
    """How teachers are trained on real data; the defaults are those of the public code.

    Args:
        num_teachers: teachers of each stage.
        epochs: epochs recorded for the teachers of stage 1. The learning rate is constant, so no later epoch can
            change an earlier row: record as many as the intervals use (the published number is 50).
        later_epochs: the same for stage k >= 2, whose teachers start from a network trained on the earlier subsets.
        lr: of SGD.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        batch_size: real images a step.
        augment: DSA strategy, or "none".
        seed: of the teachers alone, so that runs with different seeds share them as published work does.
        engine: and `precision`: of `make_trainer`.
        together: teachers that engine "compiled" trains at a time.

    Source: `buffer.py` of the public MTT and SeqMatch codes.
    """

    num_teachers: int = 100
    epochs: int = 50
    later_epochs: int = 20
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 256
    augment: str = DSA_STRATEGY
    seed: int = 0
    engine: str = "eager"
    precision: str = "float32"
    together: int = 1

    def __post_init__(self) -> None:
        for name in ("num_teachers", "epochs", "later_epochs", "batch_size", "together"):
            require(getattr(self, name) >= 1, f"teachers.{name} {getattr(self, name)} must be at least 1")
        require(self.lr > 0, f"teachers.lr {self.lr} must be positive")
        require(0 <= self.momentum < 1, f"teachers.momentum {self.momentum} must lie in [0, 1)")
        require(self.weight_decay >= 0, f"teachers.weight_decay {self.weight_decay} must not be negative")
        check_strategy(self.augment)
        check_trainer(self.engine, self.precision)

    def recorded_epochs(self, stage: int) -> int:
        """Returns the epochs recorded for stage k, counted from 1."""
        return self.epochs if stage == 1 else self.later_epochs


class TrajectorySet:
    """The finished teachers of one folder, read segment by segment."""

    def __init__(self, folder: Path, num_teachers: int) -> None:
        self.folder = folder
        self._paths = [_rows_path(folder, teacher) for teacher in range(num_teachers)]
        self._manifests = [read_json(path.with_suffix(".json")) for path in self._paths]

    def __len__(self) -> int:
        return len(self._paths)

    def segment(self, teacher: int, start_epoch: int, end_epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns copies of a teacher's parameters, two (P,) float32 tensors, after `start_epoch` and `end_epoch` epochs.

        Raises:
            StorageError: an epoch that was not recorded, or a row that does not match its checksum.
        """
        return self._row(teacher, start_epoch), self._row(teacher, end_epoch)

    @property
    def seconds(self) -> float:
        """Seconds that training all teachers took, whoever trained them."""
        return sum(manifest["seconds"] for manifest in self._manifests)

    def train_losses(self, teacher: int) -> list[float]:
        """Returns the mean training loss of each recorded epoch."""
        return list(self._manifests[teacher]["train_loss"])

    def _row(self, teacher: int, epoch: int) -> torch.Tensor:
        checksums = self._manifests[teacher]["rows"]
        path = self._paths[teacher]
        require(
            0 <= epoch < len(checksums),
            f"epoch {epoch} is beyond the {len(checksums) - 1} recorded in {path}; raise teachers.epochs or lower intervals",
            StorageError,
        )
        remedy = "delete it and its .json to train the teacher again"
        try:
            with np.errstate(over="raise"):  # a damaged shape can be of any size
                rows = np.load(path, mmap_mode="r")
            # the checksums cover the rows' bytes, not the header that says how to read them
            fits = rows.dtype == np.dtype(np.float32) and rows.ndim == 2
            require(fits, f"it holds {rows.dtype.str} of shape {rows.shape}, not rows of float32", StorageError)
            row = rows[epoch].copy()
        except Exception as error:  # a damaged header can make numpy raise nearly anything
            raise StorageError(f"{path} is damaged ({error}); {remedy}") from error
        if hashlib.sha256(row).hexdigest() != checksums[epoch]:
            raise StorageError(f"epoch {epoch} of {path} does not match its checksum; {remedy}")
        return torch.from_numpy(row)


def record_stage_teachers(stage: "Stage") -> TrajectorySet:
    """Records the teachers of a stage: real training from a random start, or from a network trained on S_1 … S_{k-1}.

    Source: Algorithm 1 of SeqMatch, the line that carries the network from subset to subset; `buffer.py` of its
    public code, with the augmentation of the earlier subsets that is lost there.
    """
    epochs = stage.teachers.recorded_epochs(stage.index)
    identity: dict[str, object] = {
        "data": stage.data_identity,
        "network": as_settings(stage.network),
        "stage": stage.index,
        "epochs": epochs,
        "teachers": _without_engine(stage.teachers),
    }
    if stage.index > 1:
        identity |= {"frozen": stage.frozen.sha256(), "recipe": _without_engine(stage.recipe)}
    name = f"{stage.network.name}-stage{stage.index}-{digest_json(identity)[:8]}"

    def make_starts(teachers: list[int]) -> list[nn.Module]:
        return list(stage.start_networks(stage.teachers.seed, *(("teacher", teacher) for teacher in teachers)))

    return record_trajectories(
        stage.folder / name, identity, stage.teachers, epochs, make_starts, stage.images, stage.labels, stage.budget
    )


def _without_engine(config: TeacherConfig | TrainingRecipe) -> dict[str, object]:
    """Returns the settings that decide a result: engines differ in speed and rounding alone, precisions in more.

    The number of teachers is left out: each is trained by itself, so a run that needs more of them adds to a set.
    """
    return {key: value for key, value in as_settings(config).items() if key not in ("engine", "together", "num_teachers")}


def record_trajectories(
    folder: Path,
    identity: dict[str, Any],
    config: TeacherConfig,
    epochs: int,
    make_starts: Callable[[list[int]], list[nn.Module]],
    images: torch.Tensor,
    labels: torch.Tensor,
    budget: Budget,
) -> TrajectorySet:
    """Trains the teachers that are still missing in a folder and returns the whole set.

    Several processes may record into one folder: each teacher is trained by the one that holds its lock, the others
    take the next and wait at the end. A process that goes on for a stopped or killed one begins with the teachers that
    the other was at, after the epoch that it last saved.

    Args:
        folder: of the set; made if missing.
        identity: whatever decides the content (data, network, stage, earlier subsets), written into the manifest.
        config: how each teacher is trained.
        epochs: rows to record after row 0.
        make_starts: teacher indices -> the networks they start from, on the device of the images.
        images: (N, C, H, W) normalised real images.
        labels: (N,) int64.
        budget: asked between epochs whether time is up.

    Raises:
        StorageError: the folder holds another set.
        DivergenceError: a teacher's loss is not finite.
        OutOfTime: the budget is spent.
    """
    manifest = {"identity": identity, "torch": torch.__version__}
    _claim_folder(folder, manifest)
    waiting = _missing(folder, range(config.num_teachers))
    with progress_bar(config.num_teachers * epochs, f"teachers {folder.name}", "epoch") as bar:
        bar.update(epochs * (config.num_teachers - len(waiting)))
        while waiting:
            with ExitStack() as locks:
                group = _take_free(folder, waiting, config.together, locks)
                missing = _missing(folder, group)  # without those that another process has finished since
                bar.update(epochs * (len(group) - len(missing)))
                if missing:
                    state = _rows_path(folder, missing[0]).with_suffix(".safetensors")
                    checkpoint = TrainingCheckpoint(state, {"teachers": missing, "engine": config.engine}, budget)
                    rows, losses = _train_teachers(
                        make_starts(missing), missing, config, epochs, images, labels, checkpoint, bar
                    )
                    for index, teacher in enumerate(missing):
                        seconds = checkpoint.seconds / len(missing)
                        _write_teacher(_rows_path(folder, teacher), rows[index], losses[index], seconds)
                    remove_file(state)
            waiting = [teacher for teacher in waiting if teacher not in group]
    for state in folder.glob("teacher-*.safetensors"):  # of a process that was killed when its teachers were finished
        with suppress(StorageError):  # finished teachers may lie where nothing can be removed
            remove_file(state)
    return TrajectorySet(folder, config.num_teachers)


def _rows_path(folder: Path, teacher: int) -> Path:
    return folder / f"teacher-{teacher:03d}.npy"


def _manifest_path(folder: Path, teacher: int) -> Path:
    return _rows_path(folder, teacher).with_suffix(".json")


def _missing(folder: Path, teachers: Iterable[int]) -> list[int]:
    """Returns those of the teachers that are not finished; finished ones need no lock, and so no folder to write into."""
    return [teacher for teacher in teachers if not _manifest_path(folder, teacher).is_file()]


def _take_free(folder: Path, waiting: list[int], count: int, locks: ExitStack) -> list[int]:
    """Locks up to `count` teachers that no other process is at; if there is none, waits for the first of them."""
    taken = []
    for teacher in waiting:
        try:
            locks.enter_context(acquire_lock(_rows_path(folder, teacher).with_suffix(".lock"), timeout=0))
        except Timeout:
            continue
        taken.append(teacher)
        if len(taken) == count:
            break
    if not taken:
        locks.enter_context(acquire_lock(_rows_path(folder, waiting[0]).with_suffix(".lock")))
        taken = waiting[:1]
    for teacher in taken:
        remove_leftovers(folder, f"{_rows_path(folder, teacher).stem}.")
    return taken


def _claim_folder(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest of a new folder, or checks that an old one says the same, the torch version aside."""
    path = folder / "manifest.json"
    if not path.is_file():
        with acquire_lock(path.with_suffix(".lock")):
            remove_leftovers(folder, path.name)
            if not path.is_file():
                write_json(path, manifest)
    found = read_json(path)
    same = digest_json({**found, "torch": ""}) == digest_json({**manifest, "torch": ""})
    require(same, f"{folder} holds other teachers than this run needs; use another --results folder", StorageError)


def _train_teachers(
    networks: list[nn.Module],
    teachers: list[int],
    config: TeacherConfig,
    epochs: int,
    images: torch.Tensor,
    labels: torch.Tensor,
    checkpoint: TrainingCheckpoint,
    bar: tqdm,
) -> tuple[np.ndarray, np.ndarray]:
    """Trains teachers; returns their (teachers, epochs + 1, P) rows and their (teachers, epochs) mean training losses."""
    optimizer_config = OptimizerConfig(config.lr, config.momentum, config.weight_decay)
    trainer = make_trainer(networks, optimizer_config, config.engine, config.precision)
    batch_config = BatchConfig(config.batch_size, config.augment)
    rows = np.empty((len(networks), epochs + 1, count_parameters(networks[0])), dtype=np.float32)
    rows[:, 0] = trainer.parameters().cpu().numpy()  # a copy: a view would follow the live weights
    losses = np.empty((len(networks), epochs))
    done, saved = checkpoint.resume(1, epochs, trainer, (), images.device)
    if done:
        rows[:, : done + 1], losses[:, :done] = saved["rows"], saved["losses"]
        bar.update(done * len(teachers))
    for epoch in range(done, epochs):
        generators = [make_generator(config.seed, "teacher", teacher, "epoch", epoch) for teacher in teachers]
        losses[:, epoch] = trainer.epoch(images, labels, batch_config, generators).tolist()
        for teacher, loss in zip(teachers, losses[:, epoch], strict=True):
            require(
                np.isfinite(loss),
                f"teacher {teacher} diverged in epoch {epoch} (loss {loss}); lower teachers.lr {config.lr}",
                DivergenceError,
            )
        rows[:, epoch + 1] = trainer.parameters().cpu().numpy()
        bar.update(len(teachers))
        bar.set_postfix(teacher=teachers[0], loss=f"{losses[0, epoch]:.3f}")
        more = {"rows": torch.from_numpy(rows[:, : epoch + 2]), "losses": torch.from_numpy(losses[:, : epoch + 1])}
        checkpoint.offer(1, epoch + 1, trainer, more=more)
    return rows, losses


def _write_teacher(path: Path, rows: np.ndarray, losses: np.ndarray, seconds: float) -> None:
    """Writes the rows under their final name when all are there; the checksums, which make them count, follow."""
    header = BytesIO()  # `np.save` would not say why a write failed
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(rows))
    write_parts(path, header.getvalue(), rows.data)
    checksums = [hashlib.sha256(row).hexdigest() for row in rows]
    write_json(path.with_suffix(".json"), {"rows": checksums, "train_loss": losses.tolist(), "seconds": round(seconds, 3)})

"""Teachers: networks trained on real data, and the files of their parameters after every epoch.

A set of teachers is a folder. Its `manifest.json` identifies the set. Each teacher has a file `teacher-000.npy`, float32 of
shape (epochs + 1, P), whose row e holds the parameters after e epochs, and a file `teacher-000.json` with a checksum for each
row, which is written last. The rows are memory-mapped, so a segment reads two rows. While a group of teachers is trained,
`teacher-000.safetensors`, named after the first of them, is their checkpoint.
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

from seqmatch_lib.engine.augment import DSA_STRATEGY
from seqmatch_lib.engine.training import TrainingCheckpoint, TrainingRecipe, check_trainer, make_trainer
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

if TYPE_CHECKING:  # `base` imports this module
    from seqmatch_lib.methods.base import Stage

WAIT_SECONDS = 1.0  # for another process's teacher, before the budget is checked again


@dataclass(frozen=True)
class TeacherConfig:
    """How teachers are trained on real data; the defaults are those of the public code.

    Args:
        num_teachers: teachers of each stage.
        epochs: epochs recorded in stage 1. The learning rate is constant, so it is enough to record the epochs that the
            intervals use: 42 for start epochs up to 40 and segments of 2. The public code records 50, and never reads the
            rows beyond its intervals.
        later_epochs: epochs recorded in stages k >= 2, where teachers start from networks trained on the earlier subsets.
        lr: of SGD.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        batch_size: real images in each step.
        augment: DSA strategy, or "none".
        seed: of the teachers, separate from the run's: runs with different seeds share their teachers, as in published work.
        engine: "eager" or "compiled", see `make_trainer`.
        precision: of engine "compiled", see `StepFunctions`; engine "eager" has only "float32".
        together: teachers that are trained as one group.

    Source: `buffer.py` of the public code of MTT and SeqMatch.
    """

    num_teachers: int = 100
    epochs: int = 42
    later_epochs: int = 20
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 256
    augment: str = DSA_STRATEGY
    seed: int = 0
    engine: str = "compiled"
    precision: str = "tf32"
    together: int = 1

    def __post_init__(self) -> None:
        check_trainer("teachers", self)
        for name in ("num_teachers", "epochs", "later_epochs", "together"):
            require(getattr(self, name) >= 1, f"teachers.{name} {getattr(self, name)} must be at least 1")
        require(self.lr > 0, f"teachers.lr {self.lr} must be positive")

    def recorded_epochs(self, stage: int) -> int:
        """Returns the epochs recorded for stage k, counted from 1."""
        return self.epochs if stage == 1 else self.later_epochs

    @property
    def recipe(self) -> TrainingRecipe:
        """The settings of a trainer."""
        shared = ("momentum", "weight_decay", "batch_size", "augment", "engine", "precision")
        return TrainingRecipe(**{name: getattr(self, name) for name in shared})


class TrajectorySet:
    """The finished teachers of one folder, read segment by segment."""

    def __init__(self, folder: Path, num_teachers: int) -> None:
        self.folder = folder
        self._paths = [_teacher_path(folder, teacher, ".npy") for teacher in range(num_teachers)]
        self._manifests = [read_json(path.with_suffix(".json")) for path in self._paths]

    def __len__(self) -> int:
        return len(self._paths)

    def segment(self, teacher: int, start_epoch: int, end_epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a teacher's parameters after `start_epoch` and after `end_epoch` epochs, each (P,) float32.

        Raises:
            StorageError: an epoch is not recorded, or its row does not match its checksum.
        """
        return self._row(teacher, start_epoch), self._row(teacher, end_epoch)

    @property
    def seconds(self) -> float:
        """Seconds of training all teachers, by this or by earlier processes."""
        return sum(manifest["seconds"] for manifest in self._manifests)

    def train_losses(self, teacher: int) -> list[float]:
        """Returns the mean training loss of each recorded epoch."""
        return list(self._manifests[teacher]["train_loss"])

    def _row(self, teacher: int, epoch: int) -> torch.Tensor:
        checksums = self._manifests[teacher]["rows"]
        path = self._paths[teacher]
        problem = f"epoch {epoch} is beyond the {len(checksums) - 1} recorded in {path}"
        remedy = "raise teachers.epochs (after stage 1 teachers.later_epochs) or lower intervals"
        require(0 <= epoch < len(checksums), f"{problem}; {remedy}", StorageError)
        remedy = "delete it and its .json to train the teacher again"
        try:
            with np.errstate(over="raise"):  # a damaged shape can be of any size
                # `np.load` would take a file that begins like a zip archive for one, and leave it open
                rows = np.lib.format.open_memmap(path, mode="r")
            # the checksums cover the bytes of the rows, but not the header of the file
            fits = rows.dtype == np.dtype(np.float32) and rows.ndim == 2
            require(fits, f"it holds {rows.dtype.str} of shape {rows.shape}, not rows of float32", StorageError)
            row = rows[epoch].copy()
        except Exception as error:  # a damaged header can make numpy raise almost any error
            raise StorageError(f"{path} is damaged ({error}); {remedy}") from error
        if hashlib.sha256(row).hexdigest() != checksums[epoch]:
            raise StorageError(f"epoch {epoch} of {path} does not match its checksum; {remedy}")
        return torch.from_numpy(row)


def record_stage_teachers(stage: "Stage") -> TrajectorySet:
    """Records the teachers of a stage: networks trained on real data after they were trained on S_1 … S_{k-1}.

    Source: Algorithm 1 of SeqMatch, the line that saves the network for the next subset; `buffer.py` of its public code,
    which however loses the augmentation of the earlier subsets.

    Raises:
        ConfigError: the networks have running statistics.
    """
    stage.check_statistics("files of teachers do not hold")
    identity: dict[str, object] = {
        "data": stage.data_identity,
        "network": as_settings(stage.network),
        "stage": stage.index,
        "epochs": stage.teachers.recorded_epochs(stage.index),
        "teachers": _without_engine(stage.teachers),
    }
    if stage.index > 1:
        identity |= {"frozen": stage.frozen.sha256(), "recipe": _without_engine(stage.recipe)}
    folder = stage.folder / f"{stage.network.name}-stage{stage.index}-{digest_json(identity)[:8]}"

    def make_starts(teachers: list[int]) -> list[nn.Module]:
        return stage.start_networks(stage.teachers.seed, *(("teacher", teacher) for teacher in teachers))

    return record_trajectories(folder, identity, stage, make_starts)


def _without_engine(config: TeacherConfig | TrainingRecipe) -> dict[str, object]:
    """Returns the settings that identify teachers: without the engine, which changes only speed and rounding.

    The number of teachers is left out too: a run that needs more teachers adds them to the set.
    """
    return {key: value for key, value in as_settings(config).items() if key not in ("engine", "together", "num_teachers")}


def record_trajectories(
    folder: Path, identity: dict[str, Any], stage: "Stage", make_starts: Callable[[list[int]], list[nn.Module]]
) -> TrajectorySet:
    """Trains the teachers that are still missing in a folder and returns the whole set.

    Several processes may record into one folder: each trains the teachers whose locks it holds, and waits at the end for
    those of the others, as long as its budget lasts. The group of teachers of a stopped process is resumed after its last
    saved epoch.

    Args:
        folder: of the set; made if missing.
        identity: JSON values that determine the teachers (data, network, stage, earlier subsets), for the manifest.
        stage: real images, how each teacher is trained on them, and the budget, which is checked after every epoch and while
            waiting.
        make_starts: teacher indices -> the initial networks, on the device of the images; not called where a group goes on.

    Raises:
        StorageError: the folder holds another set.
        DivergenceError: a teacher's loss is not finite.
        OutOfTime: the budget is spent.
    """
    _claim_folder(folder, {"identity": identity, "torch": torch.__version__})
    config, epochs = stage.teachers, stage.teachers.recorded_epochs(stage.index)
    waiting = _unfinished(folder, range(config.num_teachers))
    with progress_bar(config.num_teachers * epochs, f"teachers {folder.name}", "epoch") as bar:
        bar.update(epochs * (config.num_teachers - len(waiting)))
        while waiting:
            with ExitStack() as locks:
                locked = _lock_some(folder, waiting, config.together, locks, stage.budget)
                group = _unfinished(folder, locked)  # without those that another process has finished meanwhile
                bar.update(epochs * (len(locked) - len(group)))
                if group:
                    path = _teacher_path(folder, group[0], ".safetensors")
                    checkpoint = TrainingCheckpoint(path, {"teachers": group, "engine": config.engine}, stage.budget)
                    if checkpoint.has_begun:  # then any networks do; those that `make_starts` trains first take long
                        starts = [stage.make_network(config.seed, "resumed teacher", teacher) for teacher in group]
                    else:
                        starts = make_starts(group)
                    rows, losses = _train_teachers(starts, group, stage, checkpoint, bar)
                    _write_teachers(folder, group, rows, losses, checkpoint.seconds / len(group))
                    remove_file(path)
            waiting = [teacher for teacher in waiting if teacher not in locked]
    for path in folder.glob("teacher-*.safetensors"):
        if path.with_suffix(".json").is_file():  # left by a process that was killed after it had finished this teacher
            with suppress(StorageError):  # the folder may be read-only
                remove_file(path)
    return TrajectorySet(folder, config.num_teachers)


def _teacher_path(folder: Path, teacher: int, suffix: str) -> Path:
    return folder / f"teacher-{teacher:03d}{suffix}"


def _unfinished(folder: Path, teachers: Iterable[int]) -> list[int]:
    """Returns the teachers that are not finished; finished ones need no lock, so their folder may be read-only."""
    return [teacher for teacher in teachers if not _teacher_path(folder, teacher, ".json").is_file()]


def _lock_some(folder: Path, waiting: list[int], count: int, locks: ExitStack, budget: Budget) -> list[int]:
    """Locks up to `count` teachers that no other process trains; if there are none, waits for the first teacher.

    Raises:
        OutOfTime: the budget is spent while another process trains that teacher.
    """
    locked = []
    for teacher in waiting:
        with suppress(Timeout):
            locks.enter_context(acquire_lock(_teacher_path(folder, teacher, ".lock"), timeout=0))
            locked.append(teacher)
        if len(locked) == count:
            break
    while not locked:
        budget.check()
        with suppress(Timeout):
            locks.enter_context(acquire_lock(_teacher_path(folder, waiting[0], ".lock"), timeout=WAIT_SECONDS))
            locked = waiting[:1]
    for teacher in locked:
        remove_leftovers(folder, _teacher_path(folder, teacher, ".").name)
    return locked


def _claim_folder(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest of a new folder, or checks that an existing one is equal, except for the torch version."""
    path = folder / "manifest.json"
    if not path.is_file():
        with acquire_lock(path.with_suffix(".lock")):
            remove_leftovers(folder, path.name)
            if not path.is_file():
                write_json(path, manifest)
    same = digest_json({**read_json(path), "torch": ""}) == digest_json({**manifest, "torch": ""})
    require(same, f"{folder} holds other teachers than this run needs; use another results folder", StorageError)


def _train_teachers(
    networks: list[nn.Module], teachers: list[int], stage: "Stage", checkpoint: TrainingCheckpoint, bar: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """Trains a group of teachers; returns (teachers, epochs + 1, P) parameters and (teachers, epochs) mean training losses."""
    config, epochs = stage.teachers, stage.teachers.recorded_epochs(stage.index)
    trainer = make_trainer(networks, config.recipe, config.lr)
    start = trainer.parameters().cpu().numpy()
    rows = np.empty((len(teachers), epochs + 1, start.shape[1]), dtype=np.float32)
    rows[:, 0] = start
    losses = np.empty((len(teachers), epochs))
    finished, saved = checkpoint.resume(1, epochs, trainer, (), stage.images.device)
    if finished:
        rows[:, : finished + 1], losses[:, :finished] = saved["rows"], saved["losses"]
        bar.update(finished * len(teachers))
    for epoch in range(finished, epochs):
        generators = [make_generator(config.seed, "teacher", teacher, "epoch", epoch) for teacher in teachers]
        losses[:, epoch] = trainer.epoch(stage.images, stage.labels, generators).tolist()
        for teacher, loss in zip(teachers, losses[:, epoch], strict=True):
            message = f"teacher {teacher} diverged in epoch {epoch} (loss {loss}); lower teachers.lr {config.lr}"
            require(np.isfinite(loss), message, DivergenceError)
        rows[:, epoch + 1] = trainer.parameters().cpu().numpy()
        bar.update(len(teachers))
        bar.set_postfix(teacher=teachers[0], loss=f"{losses[0, epoch]:.3f}")
        more = {"rows": torch.from_numpy(rows[:, : epoch + 2]), "losses": torch.from_numpy(losses[:, : epoch + 1])}
        checkpoint.offer(1, epoch + 1, trainer, (), more)
    return rows, losses


def _write_teachers(folder: Path, group: list[int], rows: np.ndarray, losses: np.ndarray, seconds: float) -> None:
    """Writes the rows of a group, then the .json of each teacher with their checksums, which marks it as finished.

    All rows are written before the first .json. So a process killed before that goes on from the checkpoint of the group.
    """
    manifests = []
    for teacher, own_rows, own_losses in zip(group, rows, losses, strict=True):
        header = BytesIO()  # written by hand, because the errors of `np.save` do not name the cause of a failed write
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(own_rows))
        write_parts(_teacher_path(folder, teacher, ".npy"), header.getvalue(), own_rows.data)
        checksums = [hashlib.sha256(row).hexdigest() for row in own_rows]
        manifests.append({"rows": checksums, "train_loss": own_losses.tolist(), "seconds": round(seconds, 3)})
    for teacher, manifest in zip(group, manifests, strict=True):
        write_json(_teacher_path(folder, teacher, ".json"), manifest)

"""The state of one stage of distillation: in memory, and in a file from which a killed run goes on bit for bit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from seqmatch_lib.engine.memory import peak_memory_mb
from seqmatch_lib.engine.step_functions import UNCOMPILED
from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.methods.base import Trainable, saved_like
from seqmatch_lib.store.checkpoint import Checkpoint
from seqmatch_lib.store.files import tensors_under
from seqmatch_lib.subsets import SyntheticSubset


@dataclass
class StageProgress:
    """A stage while it runs and when it is finished.

    Args:
        trainable: the subset and its optimisers.
        best: the best-scored iterate so far; None if none was scored.
        scores: (iteration, accuracy in per cent) of the scored iterates, on the images that select.
        test_scores: the same on the test images, where they are asked for; they select nothing.
        seconds: by phase: "teachers", "distillation", "selection".
        peak_memory_mb: by phase: "teachers", "distillation" (with selection).
    """

    trainable: Trainable
    best: SyntheticSubset | None = None
    scores: list[tuple[int, float]] = field(default_factory=list)
    test_scores: list[tuple[int, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"teachers": 0.0, "distillation": 0.0, "selection": 0.0})
    peak_memory_mb: dict[str, float] = field(default_factory=lambda: {"teachers": 0.0, "distillation": 0.0})

    @property
    def last(self) -> SyntheticSubset:
        """The iterate after the last iteration."""
        return self.trainable.freeze()

    @property
    def selected(self) -> SyntheticSubset:
        """The best-scored iterate, or the last one if none was scored."""
        return self.best or self.last

    def note_memory(self, phase: str) -> None:
        """Notes the peak memory of a phase; a resumed phase has the larger of its peaks."""
        peak = peak_memory_mb(self.trainable.images.device)
        self.peak_memory_mb[phase] = max(self.peak_memory_mb[phase], peak)

    def consider(self, accuracy: float, test_accuracy: float | None = None) -> None:
        """Notes the scores of the present iterate, and keeps the iterate if it beats all earlier ones in the first of them."""
        # scores are rounded, so an equal accuracy is ahead of one that was rounded down; committed records were made so
        if self.best is None or accuracy > max(score for _, score in self.scores):
            self.best = self.trainable.freeze()
        self.scores.append((self.trainable.iteration, round(accuracy, 4)))
        if test_accuracy is not None:
            self.test_scores.append((self.trainable.iteration, round(test_accuracy, 4)))


class StageCheckpoint(Checkpoint):
    """The checkpoint of one stage; its owner is the hash of the run's configuration."""

    def save(self, progress: StageProgress, state: dict[str, torch.Tensor], frozen: str) -> None:
        """Writes progress, the method's own state, and the digest of the earlier subsets, beside which it is distilled."""
        trainable, best = progress.trainable, progress.best
        own = {f"method.{key}": value.clone() for key, value in state.items()}  # apart, should some share their memory
        tensors = trainable.state() | own
        if best is not None:
            tensors |= {"best.images": best.images, "best.labels": best.labels}
            tensors["best.lr"] = torch.tensor(best.lr, dtype=torch.float64)
        notes = {
            "iteration": trainable.iteration,
            "losses": trainable.losses,
            "scores": progress.scores,
            "test_scores": progress.test_scores,
            "seconds": progress.seconds,
            "peak_memory_mb": progress.peak_memory_mb,
            "uncompiled": sorted(UNCOMPILED),
            "frozen": frozen,
        }
        self.write(tensors, notes)

    def load(self, fresh: Trainable, frozen: str) -> tuple[StageProgress, dict[str, torch.Tensor]]:
        """Returns the saved progress put into a fresh trainable, and the method's own state.

        If nothing was saved, the fresh trainable itself and an empty state.

        Raises:
            StorageError: the file is damaged, belongs to another run, or to earlier subsets of another digest than `frozen`.
        """
        saved = self.read()
        if saved is None:
            return StageProgress(fresh), {}
        tensors, notes, is_own = saved
        message = f"{self._path} belongs to a run with other settings; use another results folder or delete it"
        require(is_own, message, StorageError)
        problem = f"{self._path} was distilled with other earlier subsets than those found"
        is_beside = notes.get("frozen", frozen) == frozen  # files of older versions do not tell
        require(is_beside, f"{problem}; delete it to distil its stage again", StorageError)
        with self.restoring("this stage"):
            return self._restore(fresh, tensors, notes)

    def _restore(
        self, fresh: Trainable, tensors: dict[str, torch.Tensor], notes: dict[str, Any]
    ) -> tuple[StageProgress, dict[str, torch.Tensor]]:
        device = fresh.images.device
        losses = [float(loss) for loss in notes["losses"]]
        if type(notes["iteration"]) is not int or notes["iteration"] != len(losses):
            raise ValueError(f"iteration {notes['iteration']!r:.40} with {len(losses)} losses")
        fresh.load_state(tensors, losses)
        best = None
        if "best.images" in tensors:
            images = saved_like(tensors["best.images"], fresh.images).to(device)
            labels = saved_like(tensors["best.labels"], fresh.labels).to(device)
            best = SyntheticSubset(images, labels, tensors["best.lr"].item(), fresh.formation)
        scores, test_scores = (
            [(int(iteration), float(accuracy)) for iteration, accuracy in notes.get(name, [])]
            for name in ("scores", "test_scores")
        )
        progress = StageProgress(fresh, best, scores, test_scores)
        progress.seconds |= {phase: float(value) for phase, value in notes["seconds"].items()}
        progress.peak_memory_mb |= {phase: float(value) for phase, value in notes["peak_memory_mb"].items()}
        UNCOMPILED.update(notes.get("uncompiled", []))
        return progress, {key: value.to(device) for key, value in tensors_under(tensors, "method.").items()}


def read_progress(state_dir: Path) -> list[dict[str, Any]]:
    """Returns what a run has done so far, also while it goes on in another process: a dictionary a stage begun.

    Args:
        state_dir: `<results>/state/<run_id>`.

    Returns:
        `losses`, `scores`, `test_scores` and `seconds` of each stage, as of its last checkpoint.

    Raises:
        StorageError: a checkpoint is damaged.
    """
    stages = []
    for path in sorted(state_dir.glob("stage-*.safetensors"), key=lambda path: (len(path.name), path.name)):  # 2 before 10
        checkpoint = StageCheckpoint(path, None)
        with checkpoint.restoring("a stage"):
            _, notes, _ = checkpoint.read()
            stages.append({name: notes[name] for name in ("losses", "scores", "test_scores", "seconds")})
    return stages

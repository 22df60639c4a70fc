"""Checkpoint of networks in training: a stopped process resumes from it with bit-identical results."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from seqmatch_lib.engine.training import Trainer
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.checkpoint import Checkpoint
from seqmatch_lib.store.files import tensors_under


class TrainingCheckpoint(Checkpoint):
    """The checkpoint of one group of networks while they are trained.

    Args:
        path: of the safetensors file; the caller holds a lock under which no other process writes it.
        owner: JSON values that identify the networks and their training data. A file of another owner, left behind by a killed
            process, is ignored.
        budget: determines when to save and when to stop.

    Raises:
        StorageError: the file is damaged.
    """

    def __init__(self, path: Path, owner: dict[str, Any], budget: Budget) -> None:
        super().__init__(path, owner)
        self._budget = budget
        self._tensors: dict[str, torch.Tensor] = {}
        self._stage = self._epoch = 0
        self._began = time.perf_counter()
        tensors, notes, is_own = self.read() or ({}, {}, False)
        if is_own:
            self._tensors = tensors
            self._stage, self._epoch = notes["stage"], notes["epoch"]
            self._began -= notes["seconds"]

    @property
    def seconds(self) -> float:
        """Seconds of training so far, including those of stopped processes up to their last checkpoint."""
        return time.perf_counter() - self._began

    def resume(
        self, stage: int, epochs: int, trainer: Trainer, generators: Sequence[torch.Generator], device: torch.device
    ) -> tuple[int, dict[str, torch.Tensor]]:
        """Restores a trainer of fresh networks and the generators of its batches, if they were saved during this stage.

        Stages are counted from 1, and `epochs` is the number of epochs of this one.

        Returns:
            The number of finished epochs of the stage, and the tensors saved as `more`.

        Raises:
            StorageError: the file does not fit these networks.
        """
        if stage < self._stage:
            return epochs, {}
        if stage > self._stage:
            return 0, {}
        with self.restoring("these networks"):
            state = tensors_under(self._tensors, "trainer.")
            trainer.load_state({name: value.to(device) for name, value in state.items()})
            for index, generator in enumerate(generators):
                generator.set_state(self._tensors[f"generator.{index}"])
        more, self._tensors = tensors_under(self._tensors, "more."), {}
        return self._epoch, more

    def offer(
        self,
        stage: int,
        epoch: int,
        trainer: Trainer,
        generators: Sequence[torch.Generator] = (),
        more: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Saves the state after `epoch` epochs of a stage, and `more`, if the last save is old enough or the time is spent.

        Raises:
            OutOfTime: the time is spent, and the state is saved.
        """
        if not self._budget.wants_save():
            return
        tensors = {f"trainer.{name}": value for name, value in trainer.state().items()}
        tensors |= {f"generator.{index}": generator.get_state() for index, generator in enumerate(generators)}
        tensors |= {f"more.{name}": value for name, value in (more or {}).items()}
        self.write(tensors, {"stage": stage, "epoch": epoch, "seconds": round(self.seconds, 3)})
        self._budget.saved()

"""Networks in the middle of their training, in a file from which the training of a stopped process goes on bit for bit."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.checkpoint import Checkpoint
from seqmatch_lib.store.files import tensors_under


class Resumable(Protocol):
    """A trainer of networks, as `make_trainer` returns it."""

    def state(self) -> dict[str, torch.Tensor]:
        """Returns parameters and the optimiser's state."""

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes over what `state` returned."""


class TrainingCheckpoint(Checkpoint):
    """The checkpoint of networks that are trained side by side, for as long as they are.

    Args:
        path: of the safetensors file; whoever gives it holds a lock under which no other process writes it.
        owner: JSON values that say which networks these are, and on what they are trained; a file of another owner, left
            by a process that was killed before it could remove it, counts as none.
        budget: says when to save, and when to stop.

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
        """Seconds spent on these networks, those of stopped processes up to their last checkpoint included."""
        return time.perf_counter() - self._began

    def resume(
        self, stage: int, epochs: int, trainer: Resumable, generators: Sequence[torch.Generator], device: torch.device
    ) -> tuple[int, dict[str, torch.Tensor]]:
        """Puts a trainer to where its networks were when they were saved, if that was in this stage.

        Args:
            stage: counted from 1, of those that are trained one after the other.
            epochs: of this stage.
            trainer: of fresh networks.
            generators: that their batches are drawn with, from stage to stage.
            device: of the networks.

        Returns:
            How many epochs of the stage are done, and what the caller had saved with them.

        Raises:
            StorageError: the file does not hold such networks.
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
        trainer: Resumable,
        generators: Sequence[torch.Generator] = (),
        more: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Saves if the last save is old enough, or if the time is spent; to be called after each epoch.

        Args:
            stage: as in `resume`.
            epoch: how many of the stage are done.
            trainer: and `generators`: as they are after it.
            generators: see there.
            more: what the caller wants back.

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

"""The one kind of checkpoint: tensors and JSON notes in a file, from which a stopped process goes on bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from seqmatch_lib.errors import StorageError
from seqmatch_lib.store.files import load_tensors, save_tensors


class Checkpoint:
    """The file of one long computation.

    Args:
        path: of the safetensors file; no other process writes it meanwhile.
        owner: a JSON value that says what the state belongs to.
    """

    def __init__(self, path: Path, owner: Any) -> None:
        self._path = path
        self._owner = owner

    def write(self, tensors: dict[str, torch.Tensor], notes: dict[str, Any]) -> None:
        """Replaces the file, atomically."""
        save_tensors(self._path, tensors, {"owner": self._owner, **notes})

    def read(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], bool] | None:
        """Returns tensors, notes, and whether they are this owner's; None if there is no file.

        Raises:
            StorageError: the file is damaged.
        """
        if not self._path.is_file():
            return None
        tensors, notes = load_tensors(self._path)
        return tensors, notes, isinstance(notes, dict) and notes.get("owner") == self._owner

    @contextmanager
    def restoring(self, what: str) -> Iterator[None]:
        """Turns whatever a file of another version makes Python raise into one StorageError that says what to do."""
        try:
            yield
        except (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise StorageError(f"{self._path} is no state of {what} ({error!r}); delete it to begin that anew") from error

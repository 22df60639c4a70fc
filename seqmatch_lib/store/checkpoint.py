"""Checkpoints: tensors and JSON notes in one file, from which a stopped computation resumes."""

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
        path: of the safetensors file, which no other process may write.
        owner: a JSON value that identifies the computation.
    """

    def __init__(self, path: Path, owner: Any) -> None:
        self._path = path
        self._owner = owner

    def write(self, tensors: dict[str, torch.Tensor], notes: dict[str, Any]) -> None:
        """Replaces the file, atomically."""
        save_tensors(self._path, tensors, {"owner": self._owner, **notes})

    def read(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], bool] | None:
        """Returns tensors, notes, and whether the owner is the same; None if there is no file.

        Raises:
            StorageError: the file is damaged.
        """
        if not self._path.is_file():
            return None
        tensors, notes = load_tensors(self._path)
        return tensors, notes, isinstance(notes, dict) and notes.get("owner") == self._owner

    @contextmanager
    def restoring(self, what: str) -> Iterator[None]:
        """Turns Python's errors about content that does not fit, such as that of another version, into a StorageError."""
        try:
            yield
        except (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise StorageError(f"{self._path} does not fit {what} ({error!r}); delete it to start again") from error

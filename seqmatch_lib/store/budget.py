"""The time budget of a run: when a long computation saves its state, and when it stops."""

import time
from copy import copy
from numbers import Real

from seqmatch_lib.errors import OutOfTime, require


class Budget:
    """A time budget shared by all phases of a run.

    Args:
        max_minutes: stop at the first checkpoint after this many minutes; None for no limit.
        save_seconds: save when the last save is at least this old.
    """

    def __init__(self, max_minutes: float | None = None, save_seconds: float = 120.0) -> None:
        is_time = max_minutes is None or (isinstance(max_minutes, Real) and max_minutes > 0)
        require(is_time, f"max_minutes {max_minutes!r:.120} must be a positive number")
        self._deadline = float("inf") if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._save_seconds = save_seconds
        self._last_save = time.monotonic()

    def apart(self) -> "Budget":
        """Returns a budget with the same deadline for a part with a file of its own: its saves are no saves of the whole."""
        part = copy(self)
        part._last_save = time.monotonic()
        return part

    def wants_save(self) -> bool:
        """Whether to save now, because the last save is old enough or the time is spent."""
        return time.monotonic() >= min(self._last_save + self._save_seconds, self._deadline)

    def saved(self) -> None:
        """Notes a save; raises OutOfTime if the time is spent."""
        self._last_save = time.monotonic()
        self.check()

    def check(self) -> None:
        """Raises OutOfTime if the time is spent; to be called where no unsaved work would be lost."""
        if time.monotonic() >= self._deadline:
            raise OutOfTime

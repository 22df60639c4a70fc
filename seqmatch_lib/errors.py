"""Errors that a user can act on: each message names the value, the rule it breaks and the remedy."""


class SeqMatchError(ValueError):
    """Base of every error raised on purpose; the command line prints it in one line and exits with code 2."""

    def _render_traceback_(self) -> list[str]:
        """Returns what IPython prints below a failed cell: the message says all, so no traceback."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(SeqMatchError):
    """A preset, key or value that the configuration does not accept."""


class DataError(SeqMatchError):
    """Real data that is missing, damaged or not what its name promises."""


class StorageError(SeqMatchError):
    """A file of ours (trajectory, checkpoint, distilled set, record) that is damaged or does not fit the run."""


class DivergenceError(SeqMatchError):
    """A loss or step size that left the range in which distillation can go on."""


class NotebookError(SeqMatchError):
    """A notebook with a cell that failed."""


class OutOfTime(Exception):
    """The time budget is spent and the state is saved: not a fault, the same command goes on from here."""


def require(condition: bool, message: str, error: type[SeqMatchError] = ConfigError) -> None:
    """Raises `error(message)` unless the condition holds: one line per rule, where the rule is known."""
    if not condition:
        raise error(message)

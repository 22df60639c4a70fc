"""Errors that a user can act on: each message names the value, the rule it breaks and the remedy."""


class SeqMatchError(ValueError):
    """Base class of all errors of this library; the command line prints the message in one line and exits with code 2."""

    def _render_traceback_(self) -> list[str]:
        """Returns what IPython prints below a failed cell: the message says all, so no traceback."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(SeqMatchError):
    """A preset, key or value is not valid."""


class DataError(SeqMatchError):
    """Data are missing, damaged or of an unexpected kind."""


class StorageError(SeqMatchError):
    """A file of this library (trajectory, checkpoint, distilled set, record) is damaged or does not fit the run."""


class NotRegisteredError(ConfigError, StorageError):
    """Settings or a record name a method or network that is not registered here, or has changed; no file is damaged."""


class DivergenceError(SeqMatchError):
    """A loss is not finite, or a step size is not positive."""


class NotebookError(SeqMatchError):
    """A cell of a notebook failed."""


class OutOfTime(Exception):
    """The time budget is spent and the state is saved; the same command resumes from it."""

    def __str__(self) -> str:
        return "the time is up and the state is saved; the same call goes on from it"


def first_line(error: BaseException) -> str:
    """Returns the first line of another library's message, or the kind of its error if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def require(condition: bool, message: str, error: type[SeqMatchError] = ConfigError) -> None:
    """Raises `error(message)` unless the condition holds."""
    if not condition:
        raise error(message)

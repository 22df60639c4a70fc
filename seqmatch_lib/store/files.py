"""Files that are complete or absent: written under a temporary name, renamed, and checked against a digest when read.

A process that is killed while it writes leaves a temporary file, `.<name>.<pid>.tmp`. `remove_leftovers` removes it later;
only the holder of the lock for that file may call it, because the temporary file may belong to a running process.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save

from seqmatch_lib.errors import StorageError

REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "files of this size are not permitted; raise the limit with ulimit -f",
    errno.EROFS: "its folder is read-only; make the folder writable",
    errno.EACCES: "permission is denied; make the folder writable",
    errno.EPERM: "it is not permitted; make the folder writable",
}


@contextmanager
def explain_refusal(path: Path) -> Iterator[None]:
    """Turns an OSError of writing, except a lock's Timeout, into a StorageError with the file, the reason and the remedy."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        reason = REMEDIES.get(error.errno, f"{error.strerror or error}; remove the cause")
        raise StorageError(f"{path} cannot be written: {reason} and repeat the command, which then resumes") from error


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary path beside `path`, flushes that file to disk and renames it.

    A process killed at any moment leaves either the old file or the new one.

    Raises:
        StorageError: the file cannot be written; an old file is kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explain_refusal(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # it was renamed, or the folder is read-only
                temporary.unlink()


def remove_file(path: Path) -> None:
    """Removes a file if it is there.

    Raises:
        StorageError: it cannot be removed.
    """
    with explain_refusal(path):
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, prefix: str = "") -> None:
    """Removes the temporary files of killed processes for those files in a folder whose names begin with a prefix.

    The caller holds the lock for these files, so no running process is writing them.
    """
    for path in folder.glob(f".{escape(prefix)}*.tmp"):
        remove_file(path)


def acquire_lock(path: Path, timeout: float = -1) -> AcquireReturnProxy:
    """Acquires a lock, which the operating system releases when the process ends or is killed.

    Args:
        path: of the lock file, which stays; its folder is made if missing.
        timeout: seconds to wait for another holder; -1 for no limit.

    Returns:
        A context manager that already holds the lock and releases it at its end.

    Raises:
        Timeout: another process holds the lock.
        StorageError: the file cannot be made.
    """
    with explain_refusal(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path).acquire(timeout=timeout)


@contextmanager
def only_process(
    path: Path, taken: str = "another process works on this run", remedy: str = "wait, or use another results folder"
) -> Iterator[None]:
    """Holds the lock of a long computation, such as a run.

    Raises:
        StorageError: another process holds it; `taken` and `remedy` say so.
    """
    try:
        lock = acquire_lock(path, timeout=0)
    except Timeout as error:
        raise StorageError(f"{taken} ({path} is locked); {remedy}") from error
    with lock:
        yield


def digest_json(value: Any) -> str:
    """Returns the sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """Returns the sha256 over names, dtypes, shapes and bytes of the tensors, in the order of their names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8 in every locale."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object atomically, with its digest as an additional key `checksum`."""
    write_text(path, json.dumps({**value, "checksum": digest_json(value)}, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Raises:
        StorageError: the file cannot be read, is not JSON, or its content does not match its checksum.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        checksum = value.pop("checksum")
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}; give the path of a readable file") from error
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:  # also of too long numbers, deep lists
        remedy = "give the path of one, or, if this is a damaged record, delete it to make it again"
        raise StorageError(f"{path} is not a JSON file of this project ({error!r}); {remedy}") from error
    if checksum != digest_json(value):
        raise StorageError(f"{path} does not match its checksum: it was damaged or edited; delete it to make it again")
    return value


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """Writes tensors and JSON metadata into one safetensors file, atomically, with digests of both.

    safetensors' own `save_file` is not used: it writes metadata in random order, so equal sets would differ in bytes, and a
    killed process would leave a temporary file with a name that `remove_leftovers` does not know.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    ours = {
        "metadata": json.dumps(metadata),
        "sha256_metadata": digest_json(metadata),
        "sha256_tensors": digest_tensors(tensors),
    }
    content = memoryview(save(tensors))
    start = _data_start(content)
    header = json.dumps({"__metadata__": ours, **json.loads(bytes(content[8:start]))}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # keeps the data aligned
    write_parts(path, len(header).to_bytes(8, "little"), header, content[start:])


def write_parts(path: Path, *parts: bytes | memoryview) -> None:
    """Writes the parts one after another into one file, atomically."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as handle:
            for part in parts:
                handle.write(part)

    write_atomically(path, write)


def _data_start(content: bytes | memoryview) -> int:
    """Returns the offset of the data in a safetensors file: 8 bytes with the length of the header, then the header."""
    return 8 + int.from_bytes(content[:8], "little")


def tensors_under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Returns the tensors whose names begin with a prefix, by their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_tensors(path: Path, remedy: str = "delete it to make it again") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns the tensors and the metadata of a file of `save_tensors`; a `remedy` stands at the end of errors.

    Raises:
        StorageError: the file is missing, damaged, or not a file of this project.
    """
    if not path.is_file():
        raise StorageError(f"{path} does not exist; give the path of a .safetensors file made by a run")
    try:
        content = path.read_bytes()  # `safe_open` would open the file twice, and a running process may replace it in between
        tensors = load(content)
        header = json.loads(content[8 : _data_start(content)])["__metadata__"]
        metadata = json.loads(header["metadata"])
        intact = header["sha256_tensors"] == digest_tensors(tensors) and header["sha256_metadata"] == digest_json(metadata)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise StorageError(f"{path} is damaged or not a file of this project ({error!r}); {remedy}") from error
    if not intact:
        raise StorageError(f"{path} does not match its checksum: it was damaged; {remedy}")
    return tensors, metadata

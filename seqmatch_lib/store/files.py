"""Files that are whole or absent: written to a temporary name, renamed, and checked against their own digest.

A process killed while it writes leaves a temporary file, `.<name>.<pid>.tmp`. The process that next holds the lock under
which that file is written removes it (`remove_leftovers`); nobody else does, as it may belong to a living process.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    errno.EROFS: "its folder is read-only; make the folder writable",
    errno.EACCES: "permission is denied; make the folder writable",
    errno.EPERM: "it is not permitted; make the folder writable",
}


@contextmanager
def explain_refusal(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write into an error that names the file, the reason and the remedy.

    Raises:
        StorageError: instead of any OSError but a lock's Timeout.
    """
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        reason = REMEDIES.get(error.errno, f"{error.strerror or error}; remove the cause")
        raise StorageError(f"{path} cannot be written: {reason}, then the same command goes on from there") from error


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary path beside `path`, flushes it to disk and renames it into place.

    A process killed at any moment leaves either the old file or the new one, never half of one.

    Raises:
        StorageError: the disk is full, or the folder cannot be written; the old file, if any, is still there.
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
            with suppress(OSError):  # where nothing can be written, nothing can be removed
                temporary.unlink()


def remove_file(path: Path) -> None:
    """Removes a file if it is there.

    Raises:
        StorageError: it cannot be removed.
    """
    with explain_refusal(path):
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, prefix: str = "") -> None:
    """Removes what killed writers have left of the files in a folder whose names begin with a prefix.

    Only for the holder of the lock under which these files are written: no other process can be writing them then.
    """
    for path in folder.glob(".*.tmp"):
        if path.name.startswith(f".{prefix}"):
            remove_file(path)


def acquire_lock(path: Path, timeout: float = -1) -> AcquireReturnProxy:
    """Takes a lock, which the operating system frees when the process ends, however it ends.

    Args:
        path: of the lock file, which stays when the lock is freed; its folder is made if missing.
        timeout: seconds to wait for another holder; -1 waits without end.

    Returns:
        A context manager that holds the lock already and frees it at its end.

    Raises:
        Timeout: another process holds it.
        StorageError: the file cannot be made.
    """
    with explain_refusal(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path).acquire(timeout=timeout)


@contextmanager
def only_process(path: Path) -> Iterator[None]:
    """Holds the lock of a long computation, such as a run.

    Raises:
        StorageError: another process holds it.
    """
    try:
        lock = acquire_lock(path, timeout=0)
    except Timeout as error:
        raise StorageError(f"another process is at this run ({path} is locked); wait, or use another --results") from error
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
    """Writes a JSON object atomically, with a `checksum` key over the rest of it."""
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
        raise StorageError(f"{path} cannot be read: {error.strerror}; see that it is there and readable") from error
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:  # numbers too long, lists too deep, …
        raise StorageError(f"{path} is not a JSON file of this project ({error!r}); delete it to make it again") from error
    if checksum != digest_json(value):
        raise StorageError(f"{path} does not match its checksum: it was damaged or edited; delete it to make it again")
    return value


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """Writes tensors and JSON metadata into one safetensors file, atomically, with digests of both."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {
        "metadata": json.dumps(metadata),
        "sha256_metadata": digest_json(metadata),
        "sha256_tensors": digest_tensors(tensors),
    }
    write_parts(path, *_serialise(tensors, header))


def write_parts(path: Path, *parts: bytes | memoryview) -> None:
    """Writes bytes one after another into one file, atomically."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as handle:
            for part in parts:
                handle.write(part)

    write_atomically(path, write)


def _serialise(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> tuple[bytes, memoryview]:
    """Returns the head and the data of a safetensors file.

    Not by `save_file`: it orders metadata at random, so that equal sets differ in bytes, and has a temporary file of its
    own, which a killed process leaves behind under a name that tells nobody whose it is.
    """
    plain = memoryview(save(tensors))
    start = _data_start(plain)
    header = json.dumps({"__metadata__": metadata, **json.loads(bytes(plain[8:start]))}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that the data stay aligned
    return len(header).to_bytes(8, "little") + header, plain[start:]


def _data_start(content: bytes | memoryview) -> int:
    """Returns where the data of a safetensors file begin: after 8 bytes of the header's length, and the header in JSON."""
    return 8 + int.from_bytes(content[:8], "little")


def tensors_under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Returns the tensors whose names begin with a prefix, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote: tensors by name, and the metadata.

    Raises:
        StorageError: the file is missing, damaged, or not one of this project's.
    """
    if not path.is_file():
        raise StorageError(f"{path} does not exist; give the path of a .safetensors file made by a run")
    try:
        content = path.read_bytes()  # at once: `safe_open` opens it twice, and a running process may replace it in between
        tensors = load(content)
        header = json.loads(content[8 : _data_start(content)])["__metadata__"]
        metadata = json.loads(header["metadata"])
        intact = header["sha256_tensors"] == digest_tensors(tensors) and header["sha256_metadata"] == digest_json(metadata)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise StorageError(f"{path} is damaged or no file of this project ({error!r}); delete it to make it again") from error
    if not intact:
        raise StorageError(f"{path} does not match its checksum: it was damaged; delete it to make it again")
    return tensors, metadata

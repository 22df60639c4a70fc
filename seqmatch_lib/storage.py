"""Files that are whole or absent: written to a temporary name, renamed, and checked against their own digest."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from seqmatch_lib.errors import StorageError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary path beside `path`, flushes it to disk and renames it into place.

    A process killed at any moment leaves either the old file or the new one, never half of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object atomically, with a `checksum` key over the rest of it."""
    text = json.dumps({**value, "checksum": digest_json(value)}, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Raises:
        StorageError: the file is not JSON, or its content does not match its checksum.
    """
    try:
        value = json.loads(path.read_text())
        checksum = value.pop("checksum")
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError, KeyError) as error:
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
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))


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
        with safe_open(path, framework="pt") as handle:
            header = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        metadata = json.loads(header["metadata"])
        intact = header["sha256_tensors"] == digest_tensors(tensors) and header["sha256_metadata"] == digest_json(metadata)
    except (SafetensorError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} is damaged or no file of this project ({error!r}); delete it to make it again") from error
    if not intact:
        raise StorageError(f"{path} does not match its checksum: it was damaged; delete it to make it again")
    return tensors, metadata

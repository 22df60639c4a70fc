"""`SHA256SUMS`: checksums of data files, in the format of the program `sha256sum`."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from seqmatch_lib.errors import DataError, require
from seqmatch_lib.store.files import write_text

NAME = "SHA256SUMS"
LINE = re.compile(r"^([0-9a-f]{64}) [ *](.+)$")


def write_checksums(folder: Path, files: Sequence[Path]) -> Path:
    """Writes the checksums of files below a folder into its `SHA256SUMS` and returns its path."""
    lines = [f"{hash_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_text(folder / NAME, "".join(lines))
    return folder / NAME


def check_files(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Compares files below a folder with its `SHA256SUMS`, if there is one.

    Returns:
        The files without a checksum.

    Raises:
        DataError: a file does not match its checksum, or a line is not a checksum.
    """
    path = folder / NAME
    if not path.is_file():
        return list(files)
    expected = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        match = LINE.match(line)
        require(match is not None, f"{path} has the line {line[:80]!r}, not a checksum; write the file again", DataError)
        expected[match[2]] = match[1]
    unlisted = []
    for file in files:
        name = file.relative_to(folder).as_posix()
        if name not in expected:
            unlisted.append(file)
        elif hash_file(file) != expected[name]:
            raise DataError(f"{file} does not match {path}: it was damaged; get it again")
    return unlisted


def hash_file(path: Path) -> str:
    """Returns the sha256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

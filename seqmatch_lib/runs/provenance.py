"""By what code and on what machine a number was computed: the part that all kinds of record share."""

import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from seqmatch_lib.engine.step_functions import UNCOMPILED
from seqmatch_lib.store.files import write_json

EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What the numbers of a record may depend on besides its settings.

    Args:
        device: "cpu" or "cuda".
        device_name: the processor or GPU.
        threads: of torch.
        torch: its version.
        python: its version.
        git_commit: of the code at the start; "unknown" outside git.
        dirty: whether files differed from that commit, or modules were not in it.
        uncompiled: why code that the settings wanted compiled was not; empty where all of it was. The same numbers up to
            rounding. None in records made before this was noted.
    """

    device: str
    device_name: str
    threads: int
    torch: str
    python: str
    git_commit: str
    dirty: bool
    uncompiled: list[str] | None

    def save(self, results_dir: Path) -> Path:
        """Writes the record atomically, with a checksum, to its `path` below a results folder; returns that."""
        path = self.path(results_dir)
        write_json(path, asdict(self))
        return path


def describe_provenance(device: torch.device) -> dict[str, Any]:
    """Returns the fields of `Provenance` as they are now, in this process."""
    commit, dirty = describe_code()
    return {**describe_environment(device), "git_commit": commit, "dirty": dirty, "uncompiled": sorted(UNCOMPILED)}


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Returns device, its name (of a processor where Linux tells it, or the kind of machine), threads, and versions."""
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_entry("model name") or platform.machine()
    )
    return {
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def processor_extensions() -> list[str]:
    """Returns which of the extensions that decide the speed of a convolution this processor has, where Linux tells them."""
    return [name for name in EXTENSIONS if name in _processor_entry("flags").split()]


def _processor_entry(name: str) -> str:
    """Returns what Linux says of the first processor under that name; "" where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def describe_code() -> tuple[str, bool]:
    """Returns the git commit of this package's checkout, and whether files differ from it or modules are not in it.

    "unknown" outside git, and where the package lies somewhere inside another repository, whose commit says nothing of it.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return "unknown", False
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD"), bool(changed or git("status", "--porcelain", "--", "seqmatch_lib"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False

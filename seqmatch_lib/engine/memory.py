"""Memory of this process: freed blocks are kept for speed on a CPU, and peaks are measured by phase."""

import ctypes
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
PROCESS = Path("/proc/self")  # what Linux says of this process


def keep_freed_memory() -> None:
    """Tells glibc to reuse freed blocks of any size instead of giving them back to the operating system.

    By default every tensor above 32 MiB is mapped anew in every step, and the system clears its pages at first touch. A
    ConvNet of width 32 with batches of 256 spends more time on that than on arithmetic. An older glibc does not reuse blocks
    above 32 MiB. This function does nothing where the C library is not glibc, and does not change GPU memory.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        if not libc.mallopt(M_MMAP_THRESHOLD, 2**30):
            # an older glibc accepts at most half of its largest heap, 32 MiB; without this line it would stay at 128 KiB,
            # because setting the other threshold ends glibc's own adjustment of this one
            libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory(device: torch.device) -> None:
    """Gives freed memory back to the system, so that the next measurement of memory does not reuse it unseen."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement of the peak memory of the GPU, or on Linux of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform.startswith("linux"):
        with suppress(OSError):  # some kernels have no such file, and some forbid to write it
            (PROCESS / "clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the peak resident set size


def peak_memory_mb(device: torch.device) -> float:
    """Returns the peak since `reset_peak_memory` in MiB: allocated on the GPU, or resident in this process.

    Outside Linux, and where Linux has no /proc/self/clear_refs, the peak of a process cannot be reset; the result is then its
    peak since it started.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    if sys.platform.startswith("linux"):
        with suppress(OSError):
            if found := re.search(r"VmHWM:\s*(\d+)", (PROCESS / "status").read_text(encoding="utf-8")):
                return round(int(found[1]) / 2**10, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)

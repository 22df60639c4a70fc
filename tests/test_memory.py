"""What the allocator is told on systems other than this one, and what is measured there."""

import ctypes
import sys
from types import SimpleNamespace

import pytest
import torch

from seqmatch_lib.engine import memory


@pytest.mark.parametrize(("largest", "threshold"), [(2**30, 2**30), (2**25, 2**25)])
def test_the_largest_threshold_that_glibc_takes_is_set_before_the_other(largest, threshold, monkeypatch):
    """An older glibc takes 32 MiB at most, and a trim threshold alone would keep the first mapping threshold, 128 KiB."""
    taken = []

    def mallopt(name, value):
        if name == memory.M_MMAP_THRESHOLD and value > largest:
            return 0
        taken.append((name, value))
        return 1

    libc = SimpleNamespace(mallopt=mallopt, gnu_get_libc_version=None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    memory.keep_freed_memory()
    assert taken == [(memory.M_MMAP_THRESHOLD, threshold), (memory.M_TRIM_THRESHOLD, 2**31 - 1)]


@pytest.mark.parametrize("status", [None, "Name:\tpython\nVmRSS:\t 5000 kB\n"])
def test_a_kernel_that_does_not_tell_peaks_stops_no_run(status, tmp_path, monkeypatch):
    """Some have no clear_refs and no VmHWM; the folder that is not there cannot be written to either."""
    process, cpu = tmp_path / "self", torch.device("cpu")
    monkeypatch.setattr(memory, "PROCESS", process)
    memory.reset_peak_memory(cpu)
    if status is not None:
        process.mkdir()
        (process / "status").write_text(status)
    assert 50 < memory.peak_memory_mb(cpu) < 100_000

"""What the allocator is told on systems other than this one, and what is measured there."""

import ctypes
import sys
from types import SimpleNamespace

import pytest

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

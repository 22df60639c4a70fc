"""The same seed gives the same record, bit for bit: in a fresh process, with one and with two threads."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seqmatch_lib.runs.records import RunRecord, load_record, load_runs

pytestmark = pytest.mark.processes

COMMITTED = Path(__file__).parents[1] / "paper_results" / "smoke"
METHODS = ("mtt", "idc", "dm", "krr")
CODE = ("git_commit", "dirty")  # of the checkout, not of the run


def run_afresh(folder: Path, method: str, threads: int) -> tuple[RunRecord, bytes]:
    """Runs SeqMatch over a base method at scale smoke in a fresh process; returns the record and the set's file."""
    command = [sys.executable, "-m", "seqmatch_lib", "run", f"digits-ipc10-seqmatch_{method}", "--scale", "smoke"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([*command, "--results", str(folder)], env=environment, check=True, capture_output=True, timeout=600)
    (record,) = load_runs(folder)
    return record, (folder / "distilled" / f"{record.run_id}.safetensors").read_bytes()


def without_code(record: RunRecord) -> dict:
    return {name: value for name, value in record.comparable().items() if name not in CODE}


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_process_gives_the_committed_record(tmp_path, method):
    """The records were made in an environment installed from the lock."""
    (path,) = COMMITTED.glob(f"runs/digits/digits-seqmatch_{method}-*.json")
    committed = load_record(path)
    record, _ = run_afresh(tmp_path, method, committed.threads)
    assert (record.run_id, record.config) == (committed.run_id, committed.config)
    here, there = ((one.device_name, one.torch, one.device) for one in (record, committed))
    if here != there:
        assert [len(stage["losses"]) for stage in record.stages] == [len(stage["losses"]) for stage in committed.stages]
        pytest.skip(f"made on {there}, which rounds differently from {here}")
    python = {"python": platform.python_version()}  # another Python computes the same
    assert without_code(record) == without_code(committed) | python


@pytest.mark.parametrize("threads", [1, 2])
def test_two_fresh_processes_agree_to_the_last_byte(tmp_path, threads):
    (first, first_set), (second, second_set) = (run_afresh(tmp_path / name, "mtt", threads) for name in "ab")
    assert first.threads == second.threads == threads
    assert first.comparable() == second.comparable()
    assert first_set == second_set
    assert torch.__version__ == first.torch

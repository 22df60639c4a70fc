"""Damaged and hostile inputs to every reader: a few in the default run, a hundred thousand with `pytest -m slow`."""

import time
import warnings
from mmap import mmap
from pathlib import Path
from typing import Any

import fuzz_engine
import pytest
from conftest import SEED
from fuzz_engine import Target, count_faults, format_table, fuzz, fuzz_apart, run_part, share_out
from fuzzing import TARGETS
from hypothesis import strategies as st

from seqmatch_lib.errors import DataError

pytestmark = pytest.mark.fuzz

FEW, MANY = 2_500, 100_000


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_inputs(name):
    inputs = share_out(TARGETS.values(), FEW)[name]
    tallies = fuzz([TARGETS[name]], inputs, SEED)
    assert tallies[name].counts.total() >= inputs
    assert count_faults(tallies) == 0, format_table(tallies)


@pytest.mark.slow
def test_many_inputs():
    tallies = fuzz_apart(list(TARGETS.values()), MANY, SEED)
    print(format_table(tallies))
    assert sum(tally.counts.total() for tally in tallies.values()) >= MANY
    assert count_faults(tallies) == 0, format_table(tallies)


# --- the counting itself: a reader of a number, which does harm at some of them


def misbehave(folder: Path, number: int) -> Any:
    """Returns numbers below 10, and refuses those above 100; each in between is a fault."""
    if number > 100:
        raise DataError(f"{folder / 'file'} holds {number}")
    match number:
        case 10:
            raise KeyError(number)
        case 11:
            warnings.warn("something odd", stacklevel=1)
        case 12:
            raise DataError("something is wrong somewhere")
        case 13:
            (folder.parents[2] / "evil").touch()
        case 14:
            return "no number"
        case 15:
            time.sleep(2)
        case 16:
            while True:
                pass
        case 17:
            with mmap(-1, 100 * 2**20) as memory:  # malloc could take what it has kept, which is resident already
                return memory.write(b"x" * len(memory))
        case 18:
            try:
                bytes(2**40)
            except MemoryError as error:
                raise DataError(f"{folder}: too large") from error
    return number


def reader_of(numbers: st.SearchStrategy[int], **options: Any) -> Target:
    return Target("numbers", numbers, misbehave, accepts=lambda value: isinstance(value, int), **options)


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (5, "read"),
        (101, "refused"),
        (10, "crash"),
        (11, "crash"),
        (12, "crash"),
        (13, "crash"),
        (14, "silent"),
        (15, "hang"),
        (16, "hang"),
        (17, "memory"),
        (18, "memory"),
    ],
)
def test_every_outcome_is_counted(monkeypatch, number, outcome):
    monkeypatch.setattr(fuzz_engine, "SECONDS", 0.5)
    monkeypatch.setattr(fuzz_engine, "WALL_SECONDS", 1.0)
    monkeypatch.setattr(fuzz_engine, "MEMORY", 50 * 2**20)
    tally = run_part(reader_of(st.just(number)), seed=0, part=0, count=1)
    assert tally.counts == {outcome: 1}, tally.examples
    assert len(tally.examples) == (outcome in fuzz_engine.FAULTS)


def test_another_value_from_a_checksummed_format_is_silent_damage():
    tally = run_part(reader_of(st.sampled_from([1, 2]), expected=lambda: "1"), seed=0, part=0, count=10)
    assert tally.counts == {"read": 1, "silent": 1}


def test_the_same_seed_gives_the_same_inputs():
    seen: list[list[tuple[str, bytes | None]]] = []
    for seed in (1, 1, 2):
        seen.append([])
        target = Target("json", TARGETS["json"].strategy, lambda folder, drawn: seen[-1].append(drawn), named=False)
        run_part(target, seed, 0, 50)
    assert len(seen[0]) == 50
    assert seen[0] == seen[1] != seen[2]


MODULE = """
import os, signal
from fuzz_engine import Target
from hypothesis import strategies as st

def read(folder, number):
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number

TARGETS = {name: Target(name, st.integers(0, most), read) for name, most in (("kills", 7), ("harmless", 6))}
"""


@pytest.mark.slow
def test_an_input_that_ends_the_process_is_a_crash_and_the_others_are_still_tried(tmp_path, monkeypatch):
    (tmp_path / "fuzzing_that_kills.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fuzz_engine, "ATTEMPT_PARTS", 1)
    import fuzzing_that_kills

    tallies = fuzz_apart(list(fuzzing_that_kills.TARGETS.values()), 16, SEED, module="fuzzing_that_kills")
    assert tallies["kills"].counts["crash"] == 1
    assert "ended with code -9 in part 0" in tallies["kills"].examples[0]
    assert tallies["harmless"].counts == {"read": 7}

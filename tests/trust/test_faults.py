"""Faults, in short: kills, full disks, read-only folders, damage, two processes, clocks; the long form: `pytest -m slow`."""

import re
from pathlib import Path

import pytest
from conftest import SEED
from fault_runs import KRR, MTT, phases
from faults import Harness, Table, run_all, why_no_namespace

import seqmatch_lib

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def reused(tmp_path_factory):
    return Harness(tmp_path_factory.mktemp("faults"), SEED)


@pytest.fixture
def harness(reused):
    reused.table = Table()
    return reused


def all_right(table):
    """Prints the counts, and returns whether every fault ended as it must."""
    print(table)
    return table.rows and not table.problems


def test_a_run_killed_at_twenty_random_moments_loses_nothing(harness):
    harness.kill_at_random_moments(MTT, 14)
    harness.kill_at_random_moments(KRR, 6)
    assert all_right(harness.table)
    kills = {fault.removeprefix("killed at random: "): row["injected"] for fault, row in harness.table.rows.items()}
    assert set(phases(MTT)) <= kills.keys()
    assert sum(kills[phase] for phase in phases(MTT)) >= 20


def test_a_run_killed_at_a_write_leaves_the_old_file_or_the_new_one(harness):
    harness.kill_at_writes(MTT, sample=4)
    harness.kill_at_writes(KRR, sample=4)
    assert all_right(harness.table)


def test_a_refused_write_is_told_and_the_same_command_goes_on(harness):
    harness.refuse_space(MTT, sample=3)
    assert all_right(harness.table)


def test_full_disks_and_read_only_folders_are_told_and_lose_nothing(harness):
    refusal = why_no_namespace(harness.folder)
    if refusal:
        pytest.skip(f"no mounts of its own for a program here: {refusal}")
    harness.run_in_namespace(full=4, read_only=5)
    assert all_right(harness.table)
    assert {fault.split(":")[0] for fault in harness.table.rows} == {"disk full", "read-only"}


def test_a_flipped_byte_in_any_kind_of_file_is_an_error_that_names_it(harness):
    harness.flip_bytes(25)
    assert all_right(harness.table)
    assert len(harness.table.rows) >= 11


def test_a_run_with_a_damaged_file_says_what_to_delete_and_then_ends_right(harness):
    harness.run_with_damage(sample=1)
    assert all_right(harness.table)


def test_two_processes_never_write_one_file(harness):
    harness.run_twice_at_once(2)
    harness.share_teachers(1)
    assert all_right(harness.table)


def test_the_clock_may_jump(harness):
    harness.turn_clock(KRR, 1)
    assert all_right(harness.table)
    library = Path(seqmatch_lib.__file__).parent
    sources = {path.name: path.read_text() for path in library.rglob("*.py")}
    assert not [name for name, text in sources.items() if re.search(r"time\.time\(|mtime|utcnow", text)]


@pytest.mark.slow
def test_faults_in_their_long_form(tmp_path):
    assert all_right(run_all(tmp_path, SEED, moments=100, flips=2000))

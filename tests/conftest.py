"""Shared fixtures: the seed of all random tests, which is printed; float64; compiled engines without a compiler."""

import os
import secrets

import pytest
import torch

from seqmatch_lib.engine.step_functions import _Compiled

# Set for the processes that pytest-xdist starts, so that all of them have the seed that is printed.
SEED = int(os.environ.setdefault("SEQMATCH_TEST_SEED", str(secrets.randbelow(2**31))))


def pytest_report_header(config: pytest.Config) -> str:
    """Prints the seed of all random tests of this test run."""
    return f"random seed: {SEED} (repeat with SEQMATCH_TEST_SEED={SEED})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints it below failures, too: with -q there is no header."""
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(pytest_report_header(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets the long forms take as long as they do."""
    for item in items:
        if {"slow", "slurm", "browser"} & {marker.name for marker in item.iter_markers()}:
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seeds torch's global generator before each test, for those that draw from it."""
    torch.manual_seed(SEED)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of its own for each test, from the printed seed."""
    return torch.Generator().manual_seed(SEED)


@pytest.fixture
def float64() -> None:
    """Makes float64 the default dtype for one test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic of the compiled engines without the minutes of a compiler."""
    monkeypatch.setattr(_Compiled, "enabled", False)

"""The Makefile loses nothing of the user's: environments it did not make, notebooks that were changed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ("00_first.ipynb", "20_second.ipynb")


def make(folder, *arguments, **environment):
    command = ["make", "--no-print-directory", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.fixture
def checkout(tmp_path):
    """A folder with the Makefile, two notebooks, and what `make install` looks at."""
    (tmp_path / "notebooks").mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in NOTEBOOKS:
        (tmp_path / "notebooks" / name).write_text("old")
    return tmp_path


def test_a_changed_copy_of_a_notebook_is_kept_and_the_others_are_renewed(checkout):
    assert make(checkout, "lab-copies").returncode == 0
    copies = [checkout / "build" / "lab" / name for name in NOTEBOOKS]
    assert [copy.read_text() for copy in copies] == ["old", "old"]
    copies[0].write_text("mine")
    assert "is kept" not in make(checkout, "lab-copies").stdout  # nothing newer to be had
    for name in NOTEBOOKS:
        (checkout / "notebooks" / name).write_text("new")
    told = make(checkout, "lab-copies").stdout
    assert [copy.read_text() for copy in copies] == ["mine", "new"]
    assert "build/lab/00_first.ipynb is kept" in told
    assert "20_second" not in told


def test_cleaning_keeps_the_copies(checkout):
    make(checkout, "lab-copies")
    (checkout / "build" / "quickstart").mkdir()
    assert make(checkout, "clean").returncode == 0
    assert [path.name for path in (checkout / "build").iterdir()] == ["lab"]


def test_an_environment_that_make_did_not_make_is_left_alone(checkout):
    own = checkout / ".venv" / "mine"
    own.parent.mkdir()
    own.touch()
    done = make(checkout, "install", CONDA_DEFAULT_ENV="base")
    assert done.returncode != 0
    assert ".venv exists and was not made by make" in done.stderr
    assert own.exists()


def test_the_conda_environment_of_the_project_is_used_and_not_changed(checkout):
    conda = checkout / "conda"
    (conda / "bin").mkdir(parents=True)
    jupyter = conda / "bin" / "jupyter"
    jupyter.write_text('#!/bin/sh\necho "conda\'s jupyter $@"\n')
    jupyter.chmod(0o755)
    done = make(checkout, "lab", "ARGS=--port 9999", CONDA_DEFAULT_ENV="seqmatch", CONDA_PREFIX=str(conda))
    assert done.returncode == 0, done.stderr
    assert "conda's jupyter lab" in done.stdout
    assert f"--ServerApp.root_dir={checkout} " in done.stdout
    assert done.stdout.rstrip().endswith(" --port 9999")
    assert not (checkout / ".venv").exists()

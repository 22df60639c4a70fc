"""The Makefile loses nothing of the user's: environments it did not make, notebooks that were changed."""

import os
import shutil
import subprocess
import tarfile
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


@pytest.fixture
def python(checkout):
    """Puts a python in place that notes how it was called, and fails where it is told to: returns what makes a call fail."""
    bin_ = checkout / "conda" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "python").write_text('#!/bin/sh\necho "$@" >> calls\ncase "$*" in $FAILS) exit $CODE;; esac\n')
    (bin_ / "python").chmod(0o755)
    for name in ("build/gpu/teachers/one", "build/gpu/runs/record.json", "elsewhere/runs/record.json"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()

    def gpu(fails: str, code: int, *arguments: str) -> tuple[int, list[str]]:
        (checkout / "calls").write_text("")
        conda = {"CONDA_DEFAULT_ENV": "seqmatch", "CONDA_PREFIX": str(checkout / "conda")}
        done = make(checkout, "gpu", *arguments, FAILS=fails, CODE=str(code), **conda)
        return done.returncode, (checkout / "calls").read_text().splitlines()

    return gpu


SHORT = [
    f"-m seqmatch_lib run cifar10-ipc10-{name} --scale short --results build/gpu --max-minutes 3"
    for name in ("mtt", "seqmatch_mtt")
]


def test_minutes_of_a_gpu_end_in_as_much_as_can_be_had(python, checkout):
    """A failing check, or a run that is out of time, stops none of what follows; only missing data stop all at once."""
    first = "-m seqmatch_lib run cifar10-ipc10-seqmatch_mtt --scale smoke --results build/gpu"
    calls = [first, "-m pytest -m gpu tests/test_gpu.py", "-m seqmatch_lib bench --quick --results build/gpu", *SHORT]
    assert python("nothing", 1) == (0, calls)
    with tarfile.open(checkout / "build" / "gpu.tar.gz") as packed:
        assert [name for name in packed.getnames() if Path(name).suffix] == ["./runs/record.json"]
        assert "./teachers" not in packed.getnames()
    assert python("*--max-minutes*", 75) == (0, calls)
    for fails in ("*pytest*", "*bench*", "*--max-minutes*"):
        code, found = python(fails, 2)
        assert code != 0
        assert found == calls
    code, found = python("*smoke*", 2)
    assert code != 0
    assert found == [first]


def test_scale_and_size_of_minutes_on_a_gpu_can_be_chosen(python):
    _, calls = python("nothing", 1, "SCALE=paper", "MINUTES=5", "BENCH=", "DATASET=svhn", "OUT=elsewhere")
    assert "-m seqmatch_lib bench --results elsewhere" in calls
    assert "-m seqmatch_lib run svhn-ipc10-mtt --scale paper --results elsewhere --max-minutes 5" in calls


def test_packages_that_are_there_are_used_as_they_are(python, checkout):
    """The way of the guide for a machine without network."""
    (checkout / "calls").write_text("")
    bin_ = checkout / "conda" / "bin"
    done = make(checkout, "gpu", "STAMP=", f"BIN={bin_}", CONDA_DEFAULT_ENV="", FAILS="nothing", CODE="1")
    assert done.returncode == 0, done.stderr
    assert len((checkout / "calls").read_text().splitlines()) == 5
    assert not (checkout / ".venv").exists()

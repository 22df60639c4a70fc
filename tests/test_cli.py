"""The command line as a user meets it: one-line errors with exit code 2, and commands that do what they say."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from seqmatch_lib.__main__ import EXIT_ERROR, EXIT_OUT_OF_TIME, main
from seqmatch_lib.bench import benchmark as bench
from seqmatch_lib.bench.report import load_benchmark
from seqmatch_lib.errors import first_line

QUICK = ["--set", "mtt.iterations=2", "--set", "training.epochs=2", "--set", "evaluation.num_networks=1"]


def fails_in_one_line(capsys, *arguments: str) -> str:
    """Runs a command that must fail, and returns its one line."""
    try:
        code = main(arguments)
    except SystemExit as exit_:  # argparse leaves this way
        code = exit_.code
    captured = capsys.readouterr()
    assert code == EXIT_ERROR
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_run_then_show_then_evaluate(tmp_path, capsys):
    results = str(tmp_path)
    assert main(["run", "digits-ipc10-seqmatch_mtt", "--scale", "smoke", "--results", results, *QUICK]) == 0
    out = capsys.readouterr().out
    assert "seqmatch_mtt" in out
    record = out.strip().splitlines()[-1].removeprefix("record: ")
    assert os.path.isfile(record)
    assert main(["show", results]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:4] == ["dataset", "ipc", "method", "K"]
    assert len(shown) == 3
    (distilled,) = (tmp_path / "distilled").glob("*.safetensors")
    assert main(["evaluate", str(distilled), "--num-networks", "2"]) == 0
    out = capsys.readouterr().out
    assert "convnet: " in out
    assert "(n = 2)" in out
    assert main(["evaluate", str(distilled), "--networks", "vit", "--joint", "--results", results]) == 0
    out = capsys.readouterr().out
    assert "vit: " in out
    assert os.path.isfile(out.strip().splitlines()[-1].removeprefix("record: "))
    assert main(["show", results]) == 0
    runs, again = capsys.readouterr().out.split("\n\n")
    assert runs.splitlines() == shown
    head, _, row = again.splitlines()
    assert head.split()[:4] == ["set", "trained", "seed", "network"]
    assert row.split()[:4] == [distilled.stem, "jointly", "0", "vit"]
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert main(["show", results]) == 0
    assert capsys.readouterr().out == again


def test_bench_leaves_a_record_and_figures_that_cost_reads(tmp_path, capsys, monkeypatch, uncompiled):
    monkeypatch.setattr(bench, "QUICK", (bench.Case(8, 100, 2),))
    monkeypatch.setattr(bench, "QUICK_WIDTHS", (8,))
    monkeypatch.setattr(bench, "TEACHER_BATCH", 16)
    monkeypatch.setattr(bench, "REPEATS", 1)
    assert main(["bench", "--quick", "--results", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert "inner step" in output.out
    record = load_benchmark(next((tmp_path / "benchmarks").glob("*.json")))
    for table in bench.TABLES:  # each row is told when it is measured
        assert output.err.count(f"{table}: ") == len(record[table]) > 0
    assert sorted(path.suffix for path in (tmp_path / "benchmarks").iterdir()) == [".json", ".png", ".svg"]
    size = ["--image-size", "64", "--num-classes", "1000", "--train-images", "1281167", "--set", "network.depth=4"]
    for arguments in ([], size):
        assert main(["cost", "cifar10-ipc10-mtt", "--results", str(tmp_path), *arguments]) == 0
    assert capsys.readouterr().out.count("distillation") == 2


def test_presets_are_listed(capsys):
    assert main(["presets"]) == 0
    assert "cifar10-ipc50-seqmatch_mtt" in capsys.readouterr().out.splitlines()


def test_out_of_time_says_how_to_go_on(tmp_path, capsys):
    arguments = ["run", "digits-ipc10-mtt", "--scale", "smoke", "--results", str(tmp_path), "--max-minutes", "1e-6"]
    assert main(arguments) == EXIT_OUT_OF_TIME
    assert "the same command goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "cifar10-ipc10-mt"], ["unknown preset 'cifar10-ipc10-mt'", "did you mean cifar10-ipc10-mtt"]),
        (["run", "digits-ipc10-mtt", "--scale", "tiny"], ["invalid choice: 'tiny'", "see --help"]),
        (["run", "digits-ipc10-mtt", "--max-minutes", "-3"], ["max_minutes -3.0 must be a positive number"]),
        (["run"], ["required: PRESET"]),
        (["rnu"], ["invalid choice: 'rnu'"]),
        (["evaluate", "absent.safetensors"], ["absent.safetensors does not exist"]),
        (["show", "nowhere"], ["nowhere holds no records", "make one with"]),
        (["cost", "digits-ipc10-mtt", "--results", "nowhere"], ["nowhere/benchmarks holds no benchmark", "measure one with"]),
        (["cost", "digits-ipc10-mt"], ["unknown preset 'digits-ipc10-mt'"]),
        (["cost", "digits-ipc10-mtt", "--threads", "-2"], ["--threads -2 must be at least 1"]),
        (["cost", "digits-ipc10-mtt", "--num-classes", "1"], ["--num-classes 1 must be at least 2"]),
        (["run", "digits-ipc10-mtt", "--set", "seed=1"], ["seed cannot be set like a setting", "--seed"]),
        (["run", "digits-ipc10-mtt", "--set", "ipc=1", "--set", "ipc=2"], ["--set ipc is given twice; give one value"]),
        (
            ["run", "digits-ipc10-mtt", "--set", "method=krr"],
            ["method 'krr' is that of preset digits-ipc10-krr; run this preset"],
        ),
        (
            ["run", "digits-ipc10-random", "--set", "method=seqmatch_dm"],
            ["'seqmatch_dm' is that of preset digits-ipc10-seqmatch_dm"],
        ),
        (
            ["run", "digits-ipc10-seqmatch_dm", "--set", "subset_ipcs=[10]"],
            ["takes two subsets or more, but subset_ipcs is [10]", "list such as [5, 5], or use method 'dm'"],
        ),
        (["tables", "--readme", "--pending"], ["--readme and --pending print different things"]),
        (["tables", "--readme", "--scale", "short"], ["--scale is that of pending cells; give --pending, too"]),
        (
            ["evaluate", "a.safetensors", "--num-networks", "1", "--set", "evaluation.num_networks=2"],
            ["--num-networks and --set evaluation.num_networks are both given"],
        ),
        (["notebook", "--all"], ["there is no folder notebooks/ here"]),
        (["notebook", "absent.ipynb"], ["notebook absent.ipynb does not exist", "folder notebooks/"]),
        (["notebook", "README.md"], ["README.md is no notebook, whose names end in .ipynb"]),
        (["notebook", "damaged.ipynb"], ["damaged.ipynb is no notebook (Notebook does not appear to be JSON"]),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("README.md", "damaged.ipynb"):
        (tmp_path / name).write_text("# Title")
    line = fails_in_one_line(capsys, *arguments)
    assert all(word in line for word in words), line


def test_a_shell_sees_exit_code_2_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "seqmatch_lib", "run", "digits-ipc10-mtt", "--set", "mtt.syn_steps=0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: mtt.syn_steps 0 must be at least 1\n"
    assert not list(tmp_path.iterdir())


def test_hours_are_announced_before_a_run_begins(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SEQMATCH_DATA", str(tmp_path))  # without data it ends right after
    assert main(["run", "cifar10-ipc10-mtt", "--results", str(tmp_path)]) == 2
    first, *_ = capsys.readouterr().err.splitlines()
    assert re.match(r"cifar10-ipc10-mtt at scale paper takes about [\d,]+ hours, predicted for ", first)
    assert main(["run", "digits-ipc10-random", "--scale", "smoke", "--results", str(tmp_path)]) == 0
    assert "hours" not in capsys.readouterr().err


def test_the_teachers_disk_is_announced_before_a_run_begins(tmp_path, capsys, monkeypatch):
    """100 teachers of 320,010 numbers: 43 epochs in stage 1, and 21 in each of two later ones."""
    monkeypatch.setenv("SEQMATCH_DATA", str(tmp_path))  # without data it ends right after
    arguments = ["run", "cifar10-ipc50-seqmatch_mtt", "--results", str(tmp_path / "r")]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    size = 4 * 320_010 * 100 * (43 + 2 * 21) / 2**30
    assert f"take {size:.1f} GiB in {tmp_path}/r/teachers/cifar10, which holds 0.0 GiB" in said
    assert "too little" not in said
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**33))
    assert main(arguments) == 2
    assert "8.0 GiB are free; that is too little: free some, or give --results on a larger disk" in capsys.readouterr().err
    assert main([*arguments, "--scale", "reduced"]) == 2
    assert main(["run", "cifar10-ipc10-dm", "--results", str(tmp_path / "r")]) == 2
    assert "GiB" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("full", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee the documentation"), "GPU"),
        (RuntimeError("[fail] DefaultCPUAllocator: can't allocate memory"), "machine"),
        (RuntimeError("Storage size calculation overflowed with sizes=[9]"), "machine"),
        (MemoryError(), "machine"),
    ],
)
def test_a_machine_without_room_is_an_error_in_one_line(tmp_path, capsys, monkeypatch, full, where):
    """Whatever was saved before is kept, as when a run is killed."""
    monkeypatch.setattr("seqmatch_lib.__main__.run_experiment", Mock(side_effect=full))
    assert main(["run", "digits-ipc10-mtt", "--scale", "smoke", "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {first_line(full).rstrip('.')}. Free memory of the {where}, then the same ")
    assert "mtt.batch_syn" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "promise"), [([], "nothing is kept; with --results"), (["--results", "r"], "goes on from")]
)
def test_an_interrupted_evaluation_promises_what_it_keeps(arguments, promise, capsys, monkeypatch):
    monkeypatch.setattr("seqmatch_lib.__main__.evaluate", Mock(side_effect=KeyboardInterrupt))
    assert main(["evaluate", "set.safetensors", *arguments]) == 130
    assert promise in capsys.readouterr().err

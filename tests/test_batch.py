"""The batch: a plan, a failing cell that stops nothing else, what is missing alone on the next call, notebooks."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from seqmatch_lib.__main__ import main
from seqmatch_lib.bench.batch import Batch
from seqmatch_lib.report.notebooks import batch_parameters, list_copies
from seqmatch_lib.runs.config import RunConfig

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.batch


def run_snakemake(results, *arguments, folder=ROOT, python=sys.executable):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    settings = [
        "scale=smoke",
        f"results={results}",
        "presets=digits-ipc10-random,digits-ipc10-dm",
        "notebooks=10_tables_svhn",
    ]
    command = [python, "-m", "snakemake", "--cores", "all", *arguments, "--config", *settings]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def snakemake(*arguments, **places):
    process = run_snakemake(*arguments, **places)
    out = process.communicate()[0]
    return process.returncode, out


def test_a_batch_with_a_broken_cell_finishes_the_rest_and_goes_on_later(tmp_path):
    results = tmp_path / "results"
    random, dm = (RunConfig.from_preset(f"digits-ipc10-{method}", "smoke") for method in ("random", "dm"))
    broken = results / "state" / f"{dm.run_id}.lock"
    broken.mkdir(parents=True)  # no process can take this lock
    code, out = snakemake(results)
    assert code != 0
    assert f"1 of 3 cells and notebooks are missing; the rest is finished:\n  {results}/runs/digits/{dm.run_id}.json" in out
    record = results / "runs" / "digits" / f"{random.run_id}.json"
    executed = results / "executed" / "10_tables_svhn.ipynb"
    first = record.stat().st_mtime_ns, executed.stat().st_mtime_ns
    broken.rmdir()
    code, out = snakemake(results)
    assert code == 0, out
    assert (results / "runs" / "digits" / f"{dm.run_id}.json").is_file()
    assert (record.stat().st_mtime_ns, executed.stat().st_mtime_ns) == first  # only what was missing
    assert "random real" in (results / "summary.txt").read_text()
    code, out = snakemake(results)
    assert code == 0
    assert "Nothing to be done" in out


def test_notebooks_of_a_batch_share_its_folder():
    copies = list_copies(ROOT / "notebooks")
    shared = {"compute": True, "scale": "reduced", "seeds": [1, 2], "results_dir": "build/x"}
    batch = ("reduced", ["svhn", "cifar10"], [1, 2], "build/x")
    assert batch_parameters(*copies["10_tables_svhn"], *batch) == shared | {"dataset": "svhn"}
    assert batch_parameters(*copies["10_tables_tiny_imagenet"], *batch) == {"dataset": "tiny_imagenet"}, "committed records"
    assert batch_parameters(*copies["20_ablation_k"], *batch) == shared | {"dataset": "cifar10"}
    assert batch_parameters(*copies["90_report"], *batch) == {"compute": True, "results_dir": "build/x"}
    assert batch_parameters(*copies["20_ablation_k"], "smoke", ["digits"], [0], "build/x")["dataset"] == "digits"


def test_a_dry_run_asks_for_time_and_memory_and_leaves_nothing(tmp_path):
    code, out = snakemake(tmp_path / "results", "--dry-run")
    assert code == 0, out
    assert "runtime=11" in out
    assert "mem_mb=3" in out
    assert not (tmp_path / "results").exists()


def test_a_killed_batch_leaves_no_lock_and_a_running_one_is_not_disturbed(tmp_path):
    results = tmp_path / "results"
    killed = run_snakemake(results, "summary")
    while not (results / "batch.lock").exists():
        assert killed.poll() is None, killed.communicate()[0]
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    with Batch.read({"results": str(results)}).hold():
        code, out = snakemake(results, "summary")
        assert code != 0
        assert f"error: another batch is at {results}" in out.splitlines()[-1]
        assert not (results / "summary.txt").exists()
    code, out = snakemake(results, "summary")
    assert code == 0, out
    assert "random" in (results / "summary.txt").read_text()


def test_a_batch_runs_in_folders_with_spaces(tmp_path):
    folder = tmp_path / "a folder"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (packages,) = (folder / ".venv").glob("lib/*/site-packages")
    (packages / "ours.pth").write_text(sysconfig.get_paths()["purelib"])
    for name in ("seqmatch_lib", "notebooks", "profiles", "paper_results"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "Snakefile", folder)
    code, out = snakemake("some results", "summary", folder=folder, python=folder / ".venv" / "bin" / "python")
    assert code == 0, out
    assert "random" in (folder / "some results" / "summary.txt").read_text()


def test_a_mistyped_name_stops_a_batch_before_anything_starts(tmp_path):
    settings = ["notebooks=10_table", f"results={tmp_path / 'results'}"]
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--config", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("error: unknown notebook '10_table'; did you mean 10_tables_")
    assert not (tmp_path / "results").exists()


def test_shared_teachers_are_those_that_runs_find(tmp_path, capsys):
    assert main(["teachers", "digits-ipc10-mtt", "--scale", "smoke", "--results", str(tmp_path)]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("teachers: "))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert len(before) == 2
    quick = ["--set", "mtt.iterations=2", "--set", "training.epochs=2", "--set", "evaluation.num_networks=1"]
    assert (
        main(["run", "digits-ipc10-seqmatch_mtt", "--scale", "smoke", "--seed", "5", "--results", str(tmp_path), *quick]) == 0
    )
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    stopped = ["teachers", "digits-ipc10-mtt", "--scale", "smoke", "--results", str(tmp_path / "later"), "--max-minutes"]
    assert main([*stopped, "1e-6"]) == 75
    assert "the same command goes on from here" in capsys.readouterr().err
    assert main([*stopped, "60"]) == 0
    assert main(["teachers", "digits-ipc10-dm", "--scale", "smoke", "--results", str(tmp_path)]) == 2
    assert "method 'dm' uses no teachers" in capsys.readouterr().err

"""Batches on a real Slurm of one node, with both profiles: `pytest -m slurm`, minutes a test; skipped where there is none."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import wait_until
from slurm_cluster import ask, end_jobs, start_cluster, why_not

from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.records import load_record

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    if find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("Snakemake's plugin for Slurm is not installed: pip install -e .[slurm]")
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with start_cluster(tmp_path_factory.mktemp("slurm")):
        yield


class Batch:
    """Snakemake on the cluster: runs without notebooks, in a folder of their own.

    Args:
        profile: of `profiles/`.
        results: the folder.
        settings: more of `--config`.
        arguments: more of the command line.
    """

    def __init__(self, profile, results, *settings, arguments=()):
        self.results = results
        self.log = results / "snakemake.log"
        self.job_logs = results / "logs"
        results.mkdir()
        command = [sys.executable, "-m", "snakemake", "summary", "--profile", f"profiles/{profile}", "--latency-wait", "5"]
        command += ["--slurm-init-seconds-before-status-checks", "1", "--slurm-logdir", str(self.job_logs), *arguments]
        command += ["--slurm-keep-successful-logs", "--config", f"results={results}", "threads=1", *settings]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        end_jobs()

    def finish(self):
        """Waits for the end and returns the text of all jobs, in which lines of two processes may be mixed."""
        code = self.process.wait(timeout=1500)
        assert code == 0, self.log.read_text()
        return "".join(path.read_text(errors="replace") for path in self.job_logs.rglob("*.log"))

    def jobs(self, rule):
        """Returns how many jobs a rule took."""
        return len(list((self.job_logs / f"rule_{rule}").rglob("*.log")))

    def record(self, config):
        return load_record(self.results / "runs" / config.dataset / f"{config.run_id}.json")


def test_two_runs_with_the_same_teachers_record_them_once(tmp_path):
    configs = [RunConfig.from_preset("digits-ipc10-mtt", "smoke", seed) for seed in (0, 1)]
    with Batch("slurm-cpu", tmp_path / "results", "presets=digits-ipc10-mtt", "seeds=0,1") as batch:
        batch.finish()
        assert (batch.jobs("teachers"), batch.jobs("run")) == (1, 2)
        assert len(list((batch.results / "teachers" / "digits").iterdir())) == 1
        (recorded,) = (batch.results / "teachers").glob("*.recorded")
        rows = list((batch.results / "teachers" / "digits").rglob("teacher-*.npy"))
        assert rows
        assert all(path.stat().st_mtime <= recorded.stat().st_mtime for path in rows)
        assert all(batch.record(config).seed == config.seed for config in configs)
        assert batch.jobs("summary") == 0  # a local rule
        assert "digits" in (batch.results / "summary.txt").read_text()


def test_a_gpu_job_gets_a_gpu_and_the_slot(tmp_path):
    config = RunConfig.from_preset("digits-ipc10-random", "smoke")
    partition = ("--default-resources", "slurm_partition='all'")  # must not replace what the profile asks for
    with Batch("slurm-gpu", tmp_path / "results", "presets=digits-ipc10-random", arguments=partition) as batch:
        batch.finish()
        (log,) = (batch.job_logs / "rule_run").rglob("*.log")
        job = ask("scontrol", "--oneliner", "show", "job", log.stem)
        assert "TresPerNode=gres:gpu:1" in job
        assert "Partition=all" in job
        assert "TimeLimit=12:00:00" in job  # 720 minutes
        assert batch.record(config).method == "random"


def test_a_cancelled_run_goes_on_from_its_checkpoint(tmp_path):
    config = RunConfig.from_preset("digits-ipc10-seqmatch_mtt", "reduced")
    with Batch("slurm-cpu", tmp_path / "results", "presets=digits-ipc10-seqmatch_mtt", "scale=reduced") as batch:
        state = batch.results / "state" / config.run_id
        second = state / "stage-2.safetensors"
        first = state / "stage-1.safetensors"
        teachers = batch.results / "teachers" / "digits"
        wait_until(lambda: any(teachers.glob("*-stage2-*")) or second.is_file(), 900, "finished stage 1")
        written = first.stat().st_mtime_ns
        (log,) = (batch.job_logs / "rule_run").rglob("*.log")
        subprocess.run(["scancel", log.stem], check=True)
        batch.finish()
        assert batch.jobs("run") == 2
        assert "CANCELLED" in log.read_text(errors="replace")
        assert first.stat().st_mtime_ns == written
        assert [len(stage["losses"]) for stage in batch.record(config).stages] == [config.options.iterations] * 2


def test_a_run_longer_than_the_slot_takes_several_jobs(tmp_path):
    config = RunConfig.from_preset("digits-ipc10-mtt", "reduced")
    with Batch("slurm-cpu", tmp_path / "results", "presets=digits-ipc10-mtt", "scale=reduced", "slot=0.25") as batch:
        text = batch.finish()
        jobs = batch.jobs("teachers") + batch.jobs("run")
        assert jobs > 2
        assert text.count("out of time: the state is saved") == jobs - 2  # the last of each ends by itself
        assert batch.record(config).seed == 0

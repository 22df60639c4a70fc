"""What a batch asks for: names checked, needs measured or predicted, slots and limits, the table of what is missing."""

import json
import shlex
from pathlib import Path

import pytest

from seqmatch_lib.__main__ import main
from seqmatch_lib.bench.batch import Batch
from seqmatch_lib.errors import ConfigError, StorageError
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.records import load_runs

KNOWN = Path(__file__).parents[1] / "paper_results"
DIGITS = {"presets": "digits-ipc10-mtt digits-ipc10-seqmatch_mtt digits-ipc10-dm"}


pytestmark = pytest.mark.batch


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(KNOWN.parent)


@pytest.mark.parametrize("seeds", ["0,1", "0 1", "0, 1", [0, 1], "1,0,1"])
def test_commas_spaces_and_lists_name_the_same_runs(seeds):
    batch = Batch.read({"datasets": "digits,svhn", "seeds": seeds})
    assert set(batch.configs) == set(Batch.read({"datasets": ["svhn", "digits"], "seeds": [0, 1]}).configs)
    assert {config.dataset for config in batch.configs.values()} == {"digits", "svhn"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"datasets": "cifar1O"}, "unknown data set 'cifar1O'; did you mean cifar10 or"),
        ({"datasets": "digits,CIFAR10"}, "unknown data set 'CIFAR10'; known are digits"),
        ({"presets": "digits-ipc10-mt"}, "unknown preset 'digits-ipc10-mt'; did you mean digits-ipc10-mtt"),
        ({"scale": "papr"}, "scale 'papr' is unknown; use one of smoke, reduced, short, paper"),
        ({"seeds": ","}, "seeds is empty; give at least one"),
        ({"seeds": "0,x"}, "seed 'x' must be a whole number"),
        ({"seeds": "-1"}, "seed '-1' must be a whole number of at least 0"),
        ({"dataset": "digits"}, "unknown setting of a batch 'dataset'; did you mean datasets"),
        ({"presets": "digits-whole", "datasets": "digits"}, "both given; give one"),
        ({"slot": "soon"}, "slot 'soon' must be a number above 0"),
        ({"slot": 0}, "slot 0 must be a number above 0"),
        ({"memory": "nan"}, "memory 'nan' must be a number above 0"),
        ({"device": "tpu"}, "device 'tpu' is unknown; use cpu or cuda"),
    ],
)
def test_names_and_numbers_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        Batch.read(settings)


@pytest.mark.parametrize("results", [".", "build/smoke"])
def test_records_have_the_names_that_the_snakefile_puts_together(results):
    batch = Batch.read(DIGITS | {"results": results})
    assert [batch.record(run) for run in batch.configs] == [f"{results}/runs/digits/{run}.json" for run in batch.configs]


def test_teachers_are_shared_by_the_runs_that_find_the_same_ones():
    batch = Batch.read(DIGITS | {"seeds": "0,1"})
    (teachers,) = batch.teachers
    users = [run for run in batch.configs if batch.inputs(run) == [f"build/smoke/teachers/{teachers}.recorded"]]
    assert {batch.configs[run].base_method for run in users} == {"mtt"}
    assert len(users) == 4
    # svhn at scale reduced: ipc 50 has longer teachers than ipc 10
    longer, shorter = (next(iter(Batch.read({"presets": f"svhn-ipc{n}-mtt", "scale": "reduced"}).teachers)) for n in (50, 10))
    assert longer != shorter


def test_shared_teachers_are_counted_once():
    batch = Batch.read({"presets": "svhn-ipc50-mtt svhn-ipc50-seqmatch_mtt", "scale": "reduced", "threads": 2})
    (teachers,), shared = batch.teachers, batch.need(next(iter(batch.teachers))).minutes
    assert shared > 1
    assert batch.need(teachers).source == "predicted"
    for run, config in batch.configs.items():  # alone, it takes what `cost` says
        alone = sum(batch.model.predict(config, threads=2).values()) / 60
        assert batch.need(run).minutes == pytest.approx(alone - shared)


def test_a_committed_record_of_the_same_run_is_better_than_a_prediction():
    settings = {"presets": "cifar10-ipc10-dm", "scale": "reduced"}
    (run,) = Batch.read(settings).configs
    record = json.loads((KNOWN / "runs" / "cifar10" / f"{run}.json").read_text())
    need = Batch.read(settings).need(run)
    assert need.source == "measured"
    assert need.minutes == pytest.approx(sum(record["seconds"].values()) / 60)
    assert Batch.read(settings | {"device": "cuda"}).need(run).source == "predicted"  # it was measured on a CPU


def test_a_job_asks_for_its_need_with_a_margin_and_never_for_more_than_the_slot():
    settings = {"presets": "cifar10-ipc10-dm tiny_imagenet-ipc10-seqmatch_krr", "scale": "paper", "memory": 32000}
    for slot in (1, 60, 720):
        batch = Batch.read(settings | {"slot": slot})
        for run in batch.configs:
            assert batch.need(run).minutes > slot / 60
            assert 1 <= batch.runtime(run) <= slot
            assert batch.mem_mb(run) <= 32000
            stop = float(shlex.split(batch.arguments(run))[-1])
            assert 0.8 * batch.minutes(run) <= stop < batch.runtime(run)
    short = Batch.read(DIGITS | {"slot": 720})
    assert all(10 <= short.runtime(run) <= 20 for run in short.configs)  # seconds, and time to start
    assert "--max-minutes" not in Batch.read(DIGITS).arguments(next(iter(short.configs)))


def test_without_a_benchmark_of_its_device_a_job_asks_for_the_slot():
    batch = Batch.read({"presets": "cifar10-ipc10-mtt", "scale": "paper", "device": "cuda", "slot": 300, "memory": 9000})
    assert not list(KNOWN.glob("benchmarks/cuda-*.json"))
    for job in (*batch.configs, *batch.teachers):
        assert (batch.runtime(job), batch.mem_mb(job) <= 9000) == (300, True)
    assert "no benchmark of a cuda device" in batch.plan()


def test_a_job_on_a_gpu_asks_for_memory_of_the_node_beside_that_of_the_gpu():
    """Its data are prepared there, and code is compiled there, by as many processes as it has threads."""
    settings = {"presets": "digits-ipc10-mtt", "scale": "paper"}
    cpu, gpu = (Batch.read(settings | {"device": device}) for device in ("cpu", "cuda"))
    for job in (*cpu.configs, *cpu.teachers):
        assert cpu.mem_mb(job) < 8000
        assert 16_000 < gpu.mem_mb(job) < 24_000


def test_no_committed_record_took_more_memory_than_a_job_asks_for():
    records = [record for record in load_runs(KNOWN) if record.device == "cpu" and record.scale == "reduced"]
    checked = 0
    for record in records:
        config = RunConfig.from_preset(record.preset, record.scale, record.seed)
        batch = Batch("reduced", (record.preset,), (record.seed,), Path("build"), 1, known=KNOWN / "smoke")
        if config.run_id == record.run_id:
            checked += 1
            assert batch.mem_mb(record.run_id) > max(record.peak_memory_mb.values()), record.run_id
    assert checked > 20


def test_the_plan_lists_what_is_missing_longest_first(tmp_path, capsys):
    arguments = ["plan", "--scale", "reduced", "--datasets", "cifar10", "--seeds", "0,1", "--results", str(tmp_path)]
    assert main(arguments) == 0
    table, totals = capsys.readouterr().out.split("\n\n")
    rows = [line.rsplit(maxsplit=3) for line in table.splitlines()[2:]]
    minutes = [float(row[1].replace(",", "")) for row in rows]
    assert minutes == sorted(minutes, reverse=True)
    assert {row[3] for row in rows} == {"measured", "predicted"}
    count = len(Batch.read({"datasets": "cifar10", "seeds": "0,1"}).configs)
    assert totals.startswith(f"{count} of {count} runs at scale reduced are missing")
    assert f"{sum(minutes) / 60:.1f} hours" in totals
    record = tmp_path / "runs" / "cifar10" / f"{RunConfig.from_preset('cifar10-whole', 'reduced', 1).run_id}.json"
    record.parent.mkdir(parents=True)
    record.touch()
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"{count - 1} of {count} runs" in out
    assert sum(line.startswith("cifar10-whole") for line in out.splitlines()) == 1


def test_a_folder_of_results_takes_one_batch(tmp_path):
    first, second = (Batch.read({"results": str(tmp_path)}) for _ in range(2))
    message = "another batch is at .* is locked.*; wait for its end"
    with first.hold(), pytest.raises(StorageError, match=message), second.hold():
        pass
    with second.hold():
        pass

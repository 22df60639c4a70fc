"""The benchmark measures what it says, and the cost model counts what a run does."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from seqmatch_lib.bench import benchmark as bench
from seqmatch_lib.bench import cost
from seqmatch_lib.bench.benchmark import Case, InnerLoop, run_benchmark
from seqmatch_lib.bench.cost import CostModel, format_cost, predict_seconds, predict_work, trajectory_bytes
from seqmatch_lib.bench.floors import list_convolutions, list_copies
from seqmatch_lib.bench.flops import count_network
from seqmatch_lib.bench.report import format_benchmark, load_benchmark, newest_benchmark, save_benchmark, summarise_ratios
from seqmatch_lib.data.datasets import DATASETS, find_dataset
from seqmatch_lib.engine.networks import NetworkConfig, flatten_parameters, make_network
from seqmatch_lib.engine.step_functions import ADJOINT_PASSES, GRADIENT_PASSES, StepFunctions, _Compiled
from seqmatch_lib.errors import ConfigError
from seqmatch_lib.methods import BaseMethod, get_method, register_method
from seqmatch_lib.methods import base as registry
from seqmatch_lib.runs.config import SCALES, RunConfig, preset_names
from seqmatch_lib.runs.records import load_runs

ROOT = Path(__file__).parents[1]
CIFAR = ((3, 32, 32), 10)


def test_the_public_way_has_the_gradient_of_ours(uncompiled):
    gradients = [InnerLoop(Case(4, 10, 3), torch.device("cpu"), torch.float64).gradient(variant) for variant in bench.VARIANTS]
    for variant, gradient in zip(bench.VARIANTS, gradients, strict=True):
        if "bfloat16" not in variant:
            torch.testing.assert_close(gradient, gradients[0], rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def measured():
    """A benchmark of sizes that take seconds, uncompiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Compiled, "enabled", False)
        patch.setattr(bench, "QUICK", (Case(8, 20, 2), Case(8, 20, 4), Case(8, 10, 2)))
        patch.setattr(bench, "QUICK_WIDTHS", (8,))
        patch.setattr(bench, "TEACHER_BATCH", 32)
        patch.setattr(bench, "REPEATS", 1)
        return run_benchmark(quick=True, device="cpu")


@pytest.fixture
def result(measured):
    """A copy of the benchmark that a test may change."""
    return copy.deepcopy(measured)


def test_a_benchmark_measures_every_way_at_every_size(result, tmp_path):
    rows = result["inner_steps"]
    assert len(rows) == 3 * (2 + 4)  # the public variants under the default allocator, then all four
    for row in rows:
        assert row["seconds"] > 0
        assert row["error"] < (0.2 if row["variant"].endswith("bfloat16") else 1e-4)
    variants = {(row["variant"], row["allocator"]) for row in result["teachers"]}
    assert variants == {("plain loop", "default"), ("plain loop", "kept"), ("eager float32", "kept"),
                    ("compiled float32", "kept"), ("compiled bfloat16", "kept")}  # fmt: skip
    assert {row["networks"] for row in result["evaluation"]} == {5}
    assert [(row["width"], row["precision"]) for row in result["floors"]] == [(8, "float32"), (8, "bfloat16")]
    assert all(row["convolutions"] > 0 and row["memory"] > 0 for row in result["floors"])
    assert isinstance(result["machine"]["extensions"], list)
    path = save_benchmark(result, tmp_path)
    assert load_benchmark(path) == json.loads(json.dumps(result))
    assert newest_benchmark(tmp_path) == path
    text = format_benchmark(result)
    assert "compiled bfloat16" in text
    assert "images/s" in text


def test_rows_of_a_benchmark_that_fails_were_told_before(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("stopped")

    monkeypatch.setattr(bench, "_time_inner_steps", lambda *arguments: iter([{"seconds": 1.0}]))
    monkeypatch.setattr(bench, "_time_plain_loop", fail)
    told = []
    with pytest.raises(RuntimeError, match="stopped"):
        run_benchmark(quick=True, device="cpu", report=lambda *row: told.append(row))
    assert told == [("inner_steps", {"seconds": 1.0})]


def test_memory_that_graphs_hold_counts_at_every_number_of_steps(uncompiled, monkeypatch):
    """On a GPU the first call of a variant at a size takes it; torch counts what later calls take beside it alone."""
    monkeypatch.setattr(bench, "_replays_graphs", lambda variant, device: variant.startswith("compiled"))
    monkeypatch.setattr(bench, "_begin_peak", lambda device: 100.0)
    peaks = iter([700.0, 130.0, 110.0])  # at the first calls of each row; those of `higher` come first
    monkeypatch.setattr(bench, "peak_memory_mb", lambda device: next(peaks))
    monkeypatch.setattr(bench, "_measure", lambda call, device: (1.0, 5.0))
    cases = (Case(4, 10, 2), Case(4, 10, 8, bench.KEEPS_NO_GRAPH))
    rows = list(bench._time_inner_steps(cases, ["higher", "compiled float32"], torch.device("cpu"), "kept"))
    assert [row["memory_mb"] for row in rows] == [5.0, 35.0, 35.0]


def test_memory_that_was_not_seen_to_grow_has_no_ratio(result):
    """As where the system cannot reset the peak, and an earlier variant took more."""
    rows = [row for row in result["inner_steps"] if row["variant"] == "compiled float32" and row["allocator"] == "kept"]
    for row, steps, memory in zip(rows, (10, 80), (0.0, 9.0), strict=False):
        row |= {"width": 128, "batch": 100, "syn_steps": steps, "memory_mb": memory}
    assert len(rows) >= 2
    assert not any("memory of 80 over 10 steps, width 128" in name for name in summarise_ratios(result))


def test_ratios_are_of_the_rows_they_name(result):
    for row in result["inner_steps"]:
        row |= {"width": 128, "batch": 100, "syn_steps": 2, "seconds": {"higher": 6.0, "flat": 8.0}.get(row["variant"], 2.0)}
    for row in result["floors"]:
        row |= {"width": 128, "convolutions": 0.5, "memory": 0.25}
    for row in result["teachers"]:
        row |= {"width": 128, "flops": 1.0, "seconds": 5.0 if row["variant"] == "plain loop" else 2.0}
    ratios = summarise_ratios(result)
    assert ratios["inner step, speed of compiled float32 over higher (default allocator)"] == 3.0
    assert ratios["inner step, speed of compiled bfloat16 over flat (kept allocator)"] == 4.0
    assert ratios["inner step, time of compiled float32 over its convolutions alone"] == 4.0
    assert ratios["inner step, time of compiled bfloat16 over its memory alone"] == 8.0
    assert ratios["teachers, speed of compiled bfloat16 over plain loop (default allocator)"] == 2.5


def test_the_figure_draws_every_way(result):
    from matplotlib import pyplot as plt

    from seqmatch_lib.report.figures import plot_benchmark

    for row in result["inner_steps"]:
        row |= {"batch": 10 * row["batch"] if row["batch"] == 10 else 100}
    figure = plot_benchmark(result)
    time_axis = figure.axes[0]
    assert time_axis.get_xlabel() == "inner steps (ipc 10)"
    assert {text.get_text() for text in figure.legends[0].get_texts()} >= {"higher", "flat", "compiled float32"}
    plt.close(figure)


def test_forward_operations_are_those_of_the_layers():
    width = 32
    products = 9 * 3 * width * 32 * 32 + 9 * width * width * (16 * 16 + 8 * 8) + width * 4 * 4 * 10
    assert count_network(NetworkConfig(width=width), *CIFAR).flops == 2 * products


def test_a_gradient_is_three_passes(uncompiled):
    """Less what nobody needs: the gradient of the first layer's input."""
    network = make_network(NetworkConfig(width=32), *CIFAR, torch.Generator())
    functions = StepFunctions(network)
    with FlopCounterMode(display=False) as counter:
        functions.gradient(flatten_parameters(network), torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    passes = counter.get_total_flops() / (4 * count_network(NetworkConfig(width=32), *CIFAR).flops)
    assert GRADIENT_PASSES - 0.5 < passes <= GRADIENT_PASSES


def test_floors_hold_all_convolutions_of_a_step_and_of_its_adjoint():
    """So many passes, less what nobody needs: the gradient of the first layer's input in all but the adjoint of the images."""
    network = make_network(NetworkConfig(width=32), *CIFAR, torch.Generator())
    images, targets = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    convolutions = list_convolutions(network, images, targets, torch.float32)
    with FlopCounterMode(display=False) as counter:
        for call in convolutions:
            call()
    passes = counter.get_total_flops() / (4 * count_network(NetworkConfig(width=32), *CIFAR).flops)
    assert GRADIENT_PASSES + ADJOINT_PASSES - 1.5 < passes <= GRADIENT_PASSES + ADJOINT_PASSES
    first_output = convolutions[0]()
    torch.testing.assert_close(first_output, network[0](images))
    torch.testing.assert_close(list_copies(convolutions)[0](), first_output)


def test_work_is_counted_stage_by_stage():
    overrides = {"subset_ipcs": [4, 6], "training.epochs": 7, "mtt.batch_syn": 50, "evaluation.num_networks": 3,
                 "evaluation.num_selections": 2, "select_on": "test"}  # fmt: skip
    config = RunConfig.from_preset("cifar10-ipc10-seqmatch_mtt", overrides=overrides)
    work = predict_work(config, DATASETS["cifar10"])
    forward = count_network(config.network, *CIFAR).flops
    start = 3 * 7 * 40
    assert work["teachers"].flops == pytest.approx(forward * 100 * (3 * 50_000 * (42 + 20) + start))
    assert work["distillation"].flops == pytest.approx(forward * 5000 * 30 * 12 * (40 + 50))
    assert work["selection"].flops == pytest.approx(forward * 2 * (3 * 7 * 40 + 3 * 7 * 140 + 2 * 10_000))
    assert work["evaluation"].flops == pytest.approx(forward * 3 * (3 * (3 * 7 * 140 + 10_000) + 3 * 7 * 100 + 10_000))
    assert trajectory_bytes(config, DATASETS["cifar10"]) == 4 * 320_010 * 100 * (43 + 21)
    whole = predict_work(RunConfig.from_preset("cifar10-whole"), DATASETS["cifar10"])
    assert whole.keys() == {"evaluation"}
    assert whole["evaluation"].flops == pytest.approx(forward * 5 * (3 * 100 * 50_000 + 10_000))


def test_scores_take_the_memory_of_a_batch_and_not_of_the_set():
    for preset in ("tiny_imagenet-ipc10-mtt", "tiny_imagenet-ipc50-seqmatch_mtt"):  # 2,000 and 10,000 images
        config = RunConfig.from_preset(preset)
        work, forward = predict_work(config, DATASETS["tiny_imagenet"]), count_network(config.network, (3, 64, 64), 200)
        held = 4 * (4 * forward.parameters + 256 * GRADIENT_PASSES * forward.activations)
        data = 4 * 3 * 64 * 64 * (100_000 + 2 * 10_000)
        assert work["selection"].bytes == pytest.approx(data + held)
    few = predict_work(RunConfig.from_preset("cifar10-ipc1-idc"), DATASETS["cifar10"])  # ten images of four tiles each
    assert few["selection"].bytes < few["evaluation"].bytes


@pytest.mark.parametrize("scale", SCALES)
def test_a_gpu_s_benchmark_has_a_rate_for_every_phase_of_every_preset(scale, result):
    """Also the quick one; without a rate a job on a cluster asks for the whole slot, and nobody is told hours."""
    cases, (width,) = bench.sizes_to_measure(True, torch.device("cuda"))
    template, teachers = result["inner_steps"][0], result["teachers"][0]
    rates = {
        "inner_steps": [
            template | {"variant": variant, "width": case.width, "allocator": "kept"}
            for case in cases
            for variant in case.variants or bench.VARIANTS
        ],
        "teachers": [
            teachers | {"variant": " ".join(way), "width": width, "allocator": "kept"}
            for way in bench.ways_to_train(torch.device("cuda"))
        ],
        "evaluation": [],
    }
    measured = result | rates | {"machine": result["machine"] | {"device": "cuda"}}
    assert width == NetworkConfig().width
    for preset in preset_names():
        config = RunConfig.from_preset(preset, scale)
        for work in predict_work(config, find_dataset(config.dataset)).values():
            assert predict_seconds(work, config.network, measured) > 0, preset


def test_seconds_follow_the_rate_of_the_nearest_width(result):
    config = RunConfig.from_preset("cifar10-ipc10-mtt", "reduced", overrides={"mtt.precision": "bfloat16"})
    work = predict_work(config, DATASETS["cifar10"])["distillation"]
    rows = [row for row in result["inner_steps"] if row["variant"] == "compiled bfloat16"]
    for row in rows:
        row["seconds"] = row["flops"] / 1e9
    assert predict_seconds(work, config.network, result) == pytest.approx(work.flops / 1e9)
    del result["inner_steps"][:]
    with pytest.raises(ConfigError, match=r"no rate for 'compiled bfloat16'; measure it with `python -m seqmatch_lib bench`"):
        predict_seconds(work, config.network, result)


@pytest.fixture
def recorded(result):
    """Makes records of one configuration on the machine of the benchmark, that took so many times their prediction."""
    result["machine"] |= {"device_name": "a machine", "threads": 2}
    config = RunConfig.from_preset("cifar10-ipc10-dm", "reduced")
    (template, *_) = load_runs(ROOT / "paper_results")
    model = CostModel(result, [])

    def run(name, factor, threads=1, **changes):
        seconds = {phase: factor * value for phase, value in model.predict(config, threads).items()}
        data = {"train_images": 45_000, "held_out": 5_000, "test_images": 10_000}
        return replace(
            template, run_id=name, device_name="a machine", dataset="cifar10", method="dm", config=config.as_dict(),
            seconds=seconds, data=data, threads=threads, **changes,
        )  # fmt: skip

    return result, config, run


def test_a_cpu_is_as_much_faster_as_it_has_more_threads(recorded):
    result, config, _ = recorded
    one, two = (sum(CostModel(result, []).predict(config, threads).values()) for threads in (1, 2))
    assert one == pytest.approx(2 * two)


def test_predictions_are_corrected_by_recorded_runs_of_the_machine(recorded, monkeypatch):
    monkeypatch.setattr(cost, "START_SECONDS", 0)
    monkeypatch.setattr(cost, "LONG_SECONDS", 0)
    result, config, run = recorded
    plain = sum(CostModel(result, []).predict(config, 1).values())
    few = [run("a", 2.0), run("b", 3.0)]
    elsewhere = replace(run("e", 9.0), device_name="another machine")
    assert sum(CostModel(result, few).predict(config, 1).values()) == pytest.approx(plain)
    model = CostModel(result, [*few, run("c", 2.5), run("d", 2.5, threads=2), elsewhere])
    assert sum(model.predict(config, 1).values()) == pytest.approx(2.5 * plain)
    # the run that took 3 times its plain prediction is predicted from those that took 2, 2.5 and 2.5 times theirs
    assert sorted(model.errors()) == pytest.approx(sorted([2.5 / 2, 2.5 / 3, 2.5 / 2.5, 2.5 / 2.5]))
    text = format_cost(config, DATASETS["cifar10"], model, threads=1)
    assert "4 recorded runs" in text
    assert text.splitlines()[-1].startswith(f"predicted: {2.5 * plain / 3600:.2f} hours")


def test_records_of_a_method_that_does_not_say_what_its_steps_cost_are_in_nobodys_way(recorded, monkeypatch):
    monkeypatch.setattr(cost, "START_SECONDS", 0)
    monkeypatch.setattr(cost, "LONG_SECONDS", 0)
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    result, config, run = recorded
    own = type("Own", (get_method("dm"),), {"effort": BaseMethod.effort})
    register_method("own")(own)
    costless = RunConfig.from_dict(config.as_dict() | {"method": "own", "own": config.as_dict()["dm"]})
    records = [run(name, 2.0) for name in "abc"]
    known = CostModel(result, [*records, replace(records[0], run_id="own", method="own", config=costless.as_dict())])
    assert known.predict(config, 1) == CostModel(result, records).predict(config, 1)
    assert known.errors() == CostModel(result, records).errors()
    with pytest.raises(ConfigError, match="does not define the cost of its steps"):
        known.predict(costless, 1)


def test_an_equal_recorded_run_is_shown(recorded):
    result, config, run = recorded
    text = format_cost(config.changed({"training.epochs": 999}), DATASETS["cifar10"], CostModel(result, [run("a", 2.0)]))
    assert "recorded:" not in text
    assert "run a" in format_cost(replace(config, seed=5), DATASETS["cifar10"], CostModel(result, [run("a", 2.0)]))


def test_a_missing_benchmark_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no benchmark; measure one with"):
        newest_benchmark(tmp_path)
    with pytest.raises(ConfigError, match=r"absent.json does not exist"):
        load_benchmark(tmp_path / "absent.json")

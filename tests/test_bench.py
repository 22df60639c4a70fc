"""The benchmark measures what it says, and the cost model counts what a run does."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from seqmatch_lib.bench import benchmark as bench
from seqmatch_lib.bench.benchmark import Case, InnerLoop, run_benchmark
from seqmatch_lib.bench.cost import (
    GRADIENT_PASSES,
    count_forward_flops,
    format_cost,
    format_errors,
    predict_seconds,
    predict_work,
    trajectory_bytes,
)
from seqmatch_lib.bench.cost import InnerLoop as Sizes
from seqmatch_lib.bench.report import format_benchmark, load_benchmark, newest_benchmark, save_benchmark, summarise_ratios
from seqmatch_lib.engine.networks import NetworkConfig, flatten_parameters, make_network
from seqmatch_lib.engine.step_functions import StepFunctions, _Compiled
from seqmatch_lib.errors import ConfigError
from seqmatch_lib.runs.config import RunConfig
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
    assert result["peak"].keys() == {"float32", "bfloat16"}
    path = save_benchmark(result, tmp_path)
    assert load_benchmark(path) == json.loads(json.dumps(result))
    assert newest_benchmark(tmp_path) == path
    text = format_benchmark(result)
    assert "compiled bfloat16" in text
    assert "images/s" in text


def test_ratios_are_of_the_rows_they_name(result):
    for row in result["inner_steps"]:
        row |= {"width": 128, "batch": 100, "syn_steps": 2, "seconds": {"higher": 6.0, "flat": 8.0}.get(row["variant"], 2.0)}
    for row in result["teachers"]:
        row |= {"width": 128, "flops": 1.0, "seconds": 5.0 if row["variant"] == "plain loop" else 2.0}
    ratios = summarise_ratios(result)
    assert ratios["inner step, compiled float32 over higher (default allocator)"] == 3.0
    assert ratios["inner step, compiled bfloat16 over flat (kept allocator)"] == 4.0
    assert ratios["teachers, compiled bfloat16 over plain loop (default allocator)"] == 2.5


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
    assert count_forward_flops(NetworkConfig(width=width), *CIFAR) == 2 * products


def test_a_gradient_is_three_passes(uncompiled):
    """Less what nobody needs: the gradient of the first layer's input."""
    network = make_network(NetworkConfig(width=32), *CIFAR, torch.Generator())
    functions = StepFunctions(network)
    with FlopCounterMode(display=False) as counter:
        functions.gradient(flatten_parameters(network), torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    passes = counter.get_total_flops() / (4 * count_forward_flops(NetworkConfig(width=32), *CIFAR))
    assert GRADIENT_PASSES - 0.5 < passes <= GRADIENT_PASSES


def test_work_is_counted_stage_by_stage():
    overrides = {"subset_ipcs": [4, 6], "training.epochs": 7, "mtt.batch_syn": 50, "evaluation.num_networks": 3,
                 "evaluation.num_selections": 2, "select_on": "test"}  # fmt: skip
    config = RunConfig.from_preset("cifar10-ipc10-seqmatch_mtt", overrides=overrides)
    work = predict_work(config, Sizes.of("cifar10"))
    forward = count_forward_flops(config.network, *CIFAR)
    start = 3 * 7 * 40
    assert work["teachers"].flops == pytest.approx(forward * 100 * (3 * 50_000 * (42 + 20) + start))
    assert work["distillation"].flops == pytest.approx(forward * 5000 * 30 * 12 * (40 + 50))
    assert work["selection"].flops == pytest.approx(forward * 2 * (3 * 7 * 40 + 3 * 7 * 140 + 2 * 10_000))
    assert work["evaluation"].flops == pytest.approx(forward * 3 * (3 * (3 * 7 * 140 + 10_000) + 3 * 7 * 100 + 10_000))
    assert trajectory_bytes(config, Sizes.of("cifar10")) == 4 * 320_010 * 100 * (43 + 21)
    whole = predict_work(RunConfig.from_preset("cifar10-whole"), Sizes.of("cifar10"))
    assert whole.keys() == {"evaluation"}
    assert whole["evaluation"].flops == pytest.approx(forward * 5 * (3 * 100 * 50_000 + 10_000))


def test_seconds_follow_the_rate_of_the_nearest_width(result):
    config = RunConfig.from_preset("cifar10-ipc10-mtt", "reduced", overrides={"mtt.precision": "bfloat16"})
    work = predict_work(config, Sizes.of("cifar10"))["distillation"]
    rows = [row for row in result["inner_steps"] if row["variant"] == "compiled bfloat16"]
    for row in rows:
        row["seconds"] = row["flops"] / 1e9
    assert predict_seconds(work, config.network, result) == pytest.approx(work.flops / 1e9)
    assert "in all" in format_cost(config, Sizes((3, 224, 224), 1000, 1_281_167, 50_000), result)
    assert "no run was recorded on this machine" in format_errors([], result)
    del result["inner_steps"][:]
    with pytest.raises(ConfigError, match=r"no rate for 'compiled bfloat16'; measure it with `python -m seqmatch_lib bench`"):
        predict_seconds(work, config.network, result)


def test_errors_of_the_prediction_are_pooled_by_method_phase_and_threads(result):
    result["machine"]["device_name"] = "a machine"
    (template, *_) = load_runs(ROOT / "paper_results")
    config = RunConfig.from_preset("cifar10-ipc10-dm", "reduced")
    predicted = {
        phase: predict_seconds(work, config.network, result)
        for phase, work in predict_work(config, Sizes.of("cifar10")).items()
    }
    assert min(predicted.values()) > 0

    def run(ratio, threads=1):
        seconds = {phase: max(5.0, one / ratio) for phase, one in predicted.items()}
        data = {"train_images": 45_000, "held_out": 5_000, "test_images": 10_000}
        return replace(
            template, device_name="a machine", dataset="cifar10", method="dm", config=config.as_dict(), seconds=seconds,
            data=data, threads=threads,
        )  # fmt: skip

    runs = [run(0.5), run(0.2), run(0.4), run(2.0, threads=2), replace(run(9.0), device_name="another machine")]
    lines = [line.split() for line in format_errors(runs, result).splitlines()]
    assert ["dm", "distillation", "1", "3", "0.40", "0.20", "0.50"] in lines
    assert ["dm", "distillation", "2", "1", "2.00", "2.00", "2.00"] in lines
    assert not any("9.00" in line for line in lines)


def test_a_missing_benchmark_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no benchmark; measure one with"):
        newest_benchmark(tmp_path)
    with pytest.raises(ConfigError, match=r"absent.json does not exist"):
        load_benchmark(tmp_path / "absent.json")

"""Queries and figures: frames follow the records, intervals cover what they should, every seed is a point."""

import copy
from dataclasses import replace
from math import e
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SEED

from seqmatch_lib.errors import StorageError
from seqmatch_lib.report import charts, findings, queries
from seqmatch_lib.report.queries import (
    EQUAL,
    LONGER,
    ONE_SET,
    STAGED,
    Evidence,
    bootstrap_difference,
    format_frame,
    robust_score,
)
from seqmatch_lib.report.tables import load_published
from seqmatch_lib.runs import config, records
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.provenance import describe_provenance
from seqmatch_lib.runs.records import (
    SCHEMA,
    OrderRecord,
    Reevaluation,
    changes_of,
    load_orders,
    load_reevaluations,
    overrides_of,
)
from seqmatch_lib.store.files import read_json, write_json

RESULTS = Path(__file__).parents[1] / "paper_results"
COMMITTED = Evidence.load(RESULTS)
PUBLISHED = load_published(RESULTS)
TEMPLATE = next(run for run in COMMITTED.runs if run.dataset == "cifar10")
CELL = ("cifar10", 10, "reduced")
HALF = {"subset_ipcs": [4, 3, 3]}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def accuracy(*values):
    summary = {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)), "n": len(values), "values": list(values)}
    return summary | {"by_network": {"convnet": dict(summary)}}


def make_run(preset, seed=0, last=(40.0, 42.0), joint=None, overrides=None, iterations=(300,), scale="reduced"):
    config = RunConfig.from_preset(preset, scale, seed, overrides)
    return replace(
        TEMPLATE, run_id=config.run_id, dataset=config.dataset, method=config.method, ipc=config.ipc, preset=preset,
        scale=scale, num_subsets=config.num_subsets, seed=seed, config=config.as_dict(), config_hash=config.hash,
        overrides=overrides_of(config), selected_on=config.select_on, accuracy_last=accuracy(*last),
        accuracy_selected=accuracy(*last), random_baseline=accuracy(20.0, 22.0),
        accuracy_joint=None if joint is None else accuracy(*joint),
        stages=[{"iterations": count, "losses": [1.0] * count} for count in iterations],
    )  # fmt: skip


def make_sequence(seed=0, last=(50.0, 52.0), overrides=None, iterations=(300, 300)):
    return make_run("cifar10-ipc10-seqmatch_mtt", seed, last, (44.0, 46.0), overrides, iterations)


def make_reevaluation(run, joint=False, **training):
    config = {**run.config, "training": {**run.config["training"], **training}}
    return Reevaluation(
        schema=SCHEMA, run_id=run.run_id, synthetic_sha256="0", joint=joint, seed=0, config=config, data="", seconds=1.0,
        accuracy={"convnet": accuracy(30.0, 32.0)}, random_baseline={"convnet": accuracy(15.0, 17.0)}, device="cpu",
        device_name="", threads=1, torch="", python="", git_commit="", dirty=False, uncompiled=[],
    )  # fmt: skip


def make_order(folder, seed, values, method="mtt", changes=None):
    config = RunConfig.from_preset(f"cifar10-ipc10-seqmatch_{method}", "reduced", seed, changes)
    record = OrderRecord(
        schema=SCHEMA, dataset=config.dataset, ipc=config.ipc, scale=config.scale, seed=seed, config=config.as_dict(),
        overrides=overrides_of(config), accuracy=values, **describe_provenance(torch.device("cpu")),
    )  # fmt: skip
    return record.save(folder)


# --- numbers


def test_a_re_evaluation_that_changes_nothing_does_not_stand_for_the_run():
    runs = [make_run("cifar10-ipc10-mtt"), make_sequence(), make_run("cifar10-whole", last=(70.0, 72.0))]
    again = [make_reevaluation(run) for run in runs[:2]]
    with_them, without = (queries.comparison(Evidence(runs, these), *CELL) for these in (again, []))
    pd.testing.assert_frame_equal(with_them, without)
    assert queries.robust(Evidence(runs, again), "cifar10", "reduced").empty


def test_sequences_of_other_iterations_a_subset_do_not_hide_those_of_equal_ones():
    runs = [make_run("cifar10-ipc10-mtt", seed) for seed in range(3)] + [make_sequence(seed) for seed in range(3)]
    runs.append(make_sequence(3, (90.0, 92.0), iterations=(250, 350)))
    staged = queries.comparison(Evidence(runs), *CELL).set_index("set").loc[STAGED]
    assert (staged["accuracy"], staged["seeds"]) == (51, 3)
    found = queries.efforts(Evidence(runs), *CELL)
    assert set(found[found["trained"] == "in stages"]["by_subset"]) == {"300 + 300", "250 + 350"}


def test_two_accuracies_of_one_seed_are_refused():
    rows = pd.DataFrame({"seed": [0, 0], "values": [[40.0], [50.0]], "record": ["a", "b"]})
    with pytest.raises(StorageError, match="two accuracies of one seed, in records a, b"):
        queries.values_by_seed(rows)


def test_a_spread_is_over_seeds_or_else_over_networks():
    several = queries.mean_and_std({0: [40.0, 42.0], 1: [44.0, 46.0]})
    assert several == {"accuracy": 43.0, "accuracy_std": pytest.approx(np.std([41, 45], ddof=1))}
    assert queries.mean_and_std({0: [40.0, 42.0]})["accuracy_std"] == pytest.approx(np.sqrt(2))
    assert np.isnan(queries.mean_and_std({0: [40.0]})["accuracy_std"]), "one network has no spread"
    assert np.isnan(queries.mean_and_std({})["accuracy"])


def test_a_difference_is_over_the_seeds_that_both_have():
    values, reference = {seed: [50.0 + seed] * 2 for seed in range(4)}, {seed: [40.0] * 2 for seed in (1, 2)}
    two = queries.difference(values, reference)
    assert (two["difference"], two["difference_seeds"]) == (11.5, 2)
    assert np.isnan(two["difference_low"]), "an interval needs three seeds"
    three = queries.difference(values, reference | {3: [40.0, 40.0]}, "gain")
    assert three["gain_low"] <= three["gain"] == 12 <= three["gain_high"]
    assert np.isnan(queries.difference(values, {9: [1.0]})["difference"])


def test_the_bootstrap_covers_the_true_difference():
    """Two methods 3 points apart, seeds that scatter by 1, networks by 2: 95 % intervals of 8 seeds each."""
    generator = np.random.default_rng(SEED)

    def draw(mean):
        return [(mean + generator.normal(0, 1) + generator.normal(0, 2, 5)).tolist() for _ in range(8)]

    intervals = [bootstrap_difference(draw(40.0), draw(43.0)) for _ in range(100)]
    covered = sum(low < 3.0 < high for low, high in intervals)
    assert covered >= 82  # few seeds make intervals a little short; 82 of 100 is beyond bad luck for 92 %
    assert all(low < high for low, high in intervals)
    assert bootstrap_difference([[1.0], [1.0]], [[3.0], [3.0]]) == (2.0, 2.0)


def test_numbers_are_shown_with_their_spread_and_interval():
    frame = pd.DataFrame({
        "num_subsets": [1, 2000], "accuracy": [47.16, np.nan], "accuracy_std": [0.58, np.nan], "gain": [1.14, -2.0],
        "gain_low": [0.11, np.nan], "gain_high": [2.22, np.nan], "seeds": [3, 0],
    })  # fmt: skip
    shown = format_frame(frame)
    assert shown.columns.tolist() == ["num subsets", "accuracy", "gain", "seeds"]
    assert shown.to_numpy().tolist() == [["1", "47.2 ± 0.6", "+1.1 [+0.1, +2.2]", "3"], ["2,000", "not run", "-2.0", "0"]]


# --- queries


def test_without_records_every_query_has_its_columns_and_no_rows():
    nothing = Evidence([])
    frames = [
        queries.baselines(nothing, "reduced"), queries.changed(nothing, "cifar10", "reduced"), queries.trust(nothing),
        queries.reevaluated(nothing, "cifar10"), queries.gain_over_random(nothing, "cifar10", "reduced"),
        queries.curves(nothing, RESULTS, "cifar10", 10, "smoke"),
        *(query(nothing, *CELL) for query in (queries.comparison, queries.efforts, queries.subsets, queries.order)),
    ]  # fmt: skip
    for frame in frames:
        assert len(frame) == 0
        assert len(frame.columns) >= 5
        format_frame(frame)


def test_a_comparison_carries_its_controls(tmp_path):
    """Also those that were not run, so that nobody takes the gain over the plain set for that of the sequence."""
    plain = [make_run("cifar10-ipc10-mtt", seed, (40.0 + seed, 42.0 + seed)) for seed in range(3)]
    sequence = [make_sequence(seed) for seed in range(3)]
    longer = make_run("cifar10-ipc10-mtt", 0, (47.0, 49.0), None, {"mtt.iterations": 600}, (600,))
    for seed in (0, 1):
        make_order(tmp_path, seed, {"SeqMatch": [51.0], "divided, staged": [52.0, 54.0], "divided, joint": [48.0]})
    again = [make_reevaluation(longer, epochs=600), make_reevaluation(longer, epochs=600, augment="none")]
    evidence = Evidence([*plain, *sequence, longer], again, load_orders(tmp_path))
    found = queries.comparison(evidence, *CELL).set_index("set")
    assert found.index.tolist() == list(queries.SETS)
    assert found["accuracy"].round(1).fillna(0).tolist() == [21, 42, 48, 0, 31, 53, 48, 51, 45, 0]
    assert found["difference"].round(1).fillna(0).tolist() == [30, 9, 3, 0, 20, -2, 3, 0, 6, 0]
    assert found["seeds"].tolist() == [3, 3, 1, 0, 1, 2, 2, 3, 3, 0]
    assert found.loc[ONE_SET, "difference_low"] > 0
    assert found[["iterations", "epochs"]].loc[[ONE_SET, EQUAL, STAGED]].to_numpy().tolist() == [
        [300, 300],
        [600, 600],
        [600, 600],
    ]
    assert format_frame(found.reset_index())["accuracy"].tolist().count("not run") == 2
    assert len(queries.comparison(evidence, *CELL, by_seed=True)) == found["seeds"].sum()


def test_a_comparison_pools_seeds_and_leaves_changed_runs_out():
    runs = [make_run("cifar10-ipc10-mtt", seed, (40.0 + seed, 42.0 + seed)) for seed in range(3)]
    runs += [make_sequence(seed) for seed in range(3)]
    runs.append(make_run("cifar10-ipc10-mtt", 0, (90.0, 90.5), overrides={"mtt.lr_img": 7.0}))
    found = queries.comparison(Evidence(runs), *CELL).set_index("set")
    assert found.loc[ONE_SET, ["accuracy", "accuracy_std", "n"]].tolist() == [42.0, 1.0, 6]
    assert found["accuracy"].max() < 90
    assert queries.changed(Evidence(runs), "cifar10", "reduced")[["changed", "last"]].to_numpy().tolist() == [
        ["mtt.lr_img = 7.0", 90.25]
    ]


@pytest.mark.parametrize("query", [queries.comparison, queries.subsets, queries.efforts])
def test_queries_compare_runs_with_the_settings_that_they_are_given(query):
    runs = []
    changes = ({}, {"mtt.syn_steps": 7}, {"mtt.syn_steps": 9}, {"mtt.syn_steps": 7, "mtt.lr_lr": 1e-6})
    for changed, accuracies in zip(changes, ((40, 42), (60, 62), (80, 82), (90, 92)), strict=True):
        runs += [make_run("cifar10-ipc10-mtt", 0, accuracies, overrides=changed), make_sequence(0, accuracies, changed)]
    settings = ([], ["mtt.syn_steps=7"], ["mtt.syn_steps=9"], ["mtt.syn_steps=7", "mtt.lr_lr=1e-06"])
    for these, mean in zip(settings, (41, 61, 81, 91), strict=True):
        assert set(query(Evidence(runs), *CELL, these)["accuracy"].dropna()) - {21, 45} == {mean}
    assert query(Evidence(runs), *CELL, ["mtt.syn_steps=8"]).empty


SHORTER = {"teachers.num_teachers": 2, "evaluation.num_networks": 3}


def make_short(method, seed=0, last=(50.0, 52.0), iterations=(200, 200), overrides=None):
    overrides = SHORTER | {"mtt.iterations": iterations[0]} if overrides is None else overrides
    joint = (44.0, 46.0) if method.startswith("seqmatch_") else None
    return make_run(f"cifar10-ipc10-{method}", seed, last, joint, overrides, iterations, "short")


def test_at_scale_short_a_sequence_of_fewer_teachers_and_iterations_stands_for_its_preset(tmp_path):
    cell, settings = ("cifar10", 10, "short"), ("evaluation.num_networks=3", "teachers.num_teachers=2")
    runs = [make_short("seqmatch_mtt"), make_short("mtt", last=(47.0, 49.0), iterations=(400,))]
    runs.append(make_short("mtt", last=(90.0, 92.0), overrides=SHORTER | {"mtt.syn_steps": 7}))
    assert sorted(queries.leading_settings(Evidence(runs), *cell, "mtt")) == list(settings)
    assert queries.name_runs(Evidence(runs), *cell) == "cifar10, 10 images per class, short, 2 teachers"
    found = queries.comparison(Evidence(runs), *cell).set_index("set")
    assert found.loc[["random real", ONE_SET, LONGER, STAGED], "seeds"].tolist() == [1, 0, 1, 1]
    assert found.loc[[ONE_SET, LONGER, EQUAL, STAGED], "iterations"].tolist() == [200, 400, 400, 400]
    assert found.loc[LONGER, "difference"] == 3

    for run in runs:
        for stage in run.stages:
            stage["test_scores"] = [[100, run.accuracy_last["mean"]]]
    curves = queries.curves(Evidence(runs), tmp_path, *cell)
    assert curves[["method", "iteration", "accuracy"]].to_numpy().tolist() == [
        ["mtt", 100, 48], ["seqmatch_mtt", 100, 51], ["seqmatch_mtt", 300, 51],
    ]  # fmt: skip

    runs.append(make_short("seqmatch_mtt", iterations=(1500, 1500), overrides={}))  # as the preset says
    assert queries.leading_settings(Evidence(runs), *cell, "mtt") == []
    assert not len(queries.comparison(Evidence(runs), *cell)), "MTT was not run as its preset says"


def test_what_differs_in_more_than_scale_short_leaves_open_stands_for_no_preset():
    for overrides in (SHORTER | {"mtt.syn_steps": 7}, {"network.width": 32}):
        runs = [make_short("seqmatch_mtt", overrides=overrides), make_short("mtt", iterations=(400,), overrides=overrides)]
        assert not len(queries.comparison(Evidence(runs), "cifar10", 10, "short"))
    reduced = [make_run(f"cifar10-ipc10-{method}", overrides=SHORTER) for method in ("mtt", "seqmatch_mtt")]
    assert queries.leading_settings(Evidence(reduced), *CELL, "mtt") == []


def test_records_of_different_images_are_refused(tmp_path):
    runs = [make_run("cifar10-ipc10-mtt", seed) for seed in (0, 1)]
    runs[1] = replace(runs[1], data=runs[1].data | {"fingerprint": "of a part"})
    for run in runs:
        run.save(tmp_path / "runs" / f"{run.run_id}.json")
    with pytest.raises(StorageError, match=r"are of different images of cifar10, which no table may mix"):
        Evidence.load(tmp_path)


def test_settings_that_differ_from_the_preset_are_found():
    assert changes_of(make_run("cifar10-ipc10-mtt")) == {}
    changed = make_run("cifar10-ipc10-mtt", overrides={"mtt.syn_steps": 7, "select_on": "test"})
    assert changes_of(changed) == {"mtt.syn_steps": 7, "select_on": "test"}


def test_runs_of_a_preset_before_it_was_edited_are_runs_of_another(monkeypatch):
    """Their records keep their overrides, and no table or query pools them with runs of the preset as it stands."""
    before = make_run("cifar10-ipc10-mtt", 0, (40.0, 42.0))
    presets = copy.deepcopy(config._read_presets())
    presets["scale"]["reduced"]["cifar10-ipc10-mtt"]["mtt"]["syn_steps"] = 3
    monkeypatch.setattr(config, "_read_presets", lambda: presets)
    records._preset_settings.cache_clear()
    after = make_run("cifar10-ipc10-mtt", 1, (50.0, 52.0))
    assert (before.overrides, after.overrides) == ({}, {})
    assert (changes_of(before), changes_of(after)) == ({"preset": f"as of {before.git_commit[:8]}"}, {})
    (row,) = queries.subsets(Evidence([before, after]), "cifar10", 10, "reduced").to_dict("records")
    assert (row["accuracy"], row["seeds"]) == (51.0, 1)
    records._preset_settings.cache_clear()


def test_robust_scores_follow_their_definition():
    assert robust_score(1) == pytest.approx(100)
    assert robust_score(-1) == pytest.approx(0)
    assert robust_score(0) == pytest.approx(100 * (1 - 1 / e) / (e - 1 / e))
    run, whole = make_run("cifar10-ipc10-mtt"), make_run("cifar10-whole", last=(70.0, 72.0))
    again = [
        make_reevaluation(run, epochs=7),
        make_reevaluation(run, augment="none"),
        make_reevaluation(run, True, augment="none"),
    ]
    (found,) = queries.robust(Evidence([run, whole], again), "cifar10", "reduced").to_dict("records")
    assert found["label_robust"] == pytest.approx(robust_score(0.5 * (0.41 - 0.21) - 0.5 * (0.71 - 0.41)))
    assert found["augmentation_robust"] == pytest.approx(robust_score(0.5 * (0.41 - 0.21) + 0.5 * (0.31 - 0.16)))
    with pytest.raises(StorageError, match=r"run cifar10-whole --scale reduced"):
        queries.robust(Evidence([run], again), "cifar10", "reduced")


def test_faults_are_counted_by_kind():
    row = {"injected": 3, "right": 2, "crashes": 0, "losses": 1, "silent": 0, "other": 0}
    faults = {"rows": {"killed: here": row, "killed: there": row, "clock jumps back": row | {"losses": 0, "other": 1}}}
    fuzzing = {"targets": {"json": {"refused": 1000, "read": 500, "silent": 1, "examples": ["x"]}, "png": {"hang": 2}}}
    found = queries.trust(Evidence([], trust={"faults": faults, "fuzzing": fuzzing}))
    assert found.to_numpy().tolist() == [
        ["killed", 6, 0, 2, 0], ["clock jumps", 3, 1, 0, 0], ["fuzzed inputs, 2 readers", 1503, 2, 0, 1]
    ]  # fmt: skip


def test_subsets_group_what_differs_in_sizes_and_intervals_alone():
    runs = [make_run("cifar10-ipc10-idc", seed) for seed in (0, 1)]
    for seed in (0, 1):
        runs.append(make_run("cifar10-ipc10-seqmatch_idc", seed, (50.0 + seed, 52.0 + seed), (44.0, 46.0), HALF))
    runs.append(make_sequence(0, (46.0, 48.0), {"intervals": [[0, 14], [7, 14]]}))
    runs.append(make_run("cifar10-ipc10-seqmatch_idc", 0, (90.0, 90.5), (90.0, 90.5), HALF | {"select_on": "test"}))
    found = format_frame(queries.subsets(Evidence(runs), *CELL))
    columns = ["base", "num subsets", "images", "even", "teachers", "accuracy", "joint", "seeds", "n"]
    assert found[columns].to_numpy().tolist() == [
        ["idc", "1", "10", "yes", "-", "41.0 ± 0.0", "", "2", "4"],
        ["idc", "3", "4 + 3 + 3", "yes", "-", "51.5 ± 0.7", "45.0 ± 0.0", "2", "4"],
        ["mtt", "2", "5 + 5", "yes", "0 to 14; 7 to 14", "47.0 ± 1.4", "45.0 ± 1.4", "1", "2"],
    ]


def test_efforts_set_accuracies_beside_what_they_cost():
    longer = {"mtt.iterations": 600}
    runs = [make_run("cifar10-ipc10-mtt"), make_run("cifar10-ipc10-mtt", 0, (90.0, 90.5), overrides={"mtt.lr_img": 7.0})]
    runs += [make_run("cifar10-ipc10-mtt", seed, (43.0 + seed, 45.0 + seed), None, longer, (600,)) for seed in range(3)]
    runs.append(make_sequence(0, (60.0, 62.0), HALF, (300, 300, 300)))
    runs += [make_sequence(seed) for seed in range(3)]
    again = [
        make_reevaluation(runs[0], epochs=600), make_reevaluation(runs[-1], True, epochs=600),
        make_reevaluation(runs[-1], epochs=500), make_reevaluation(runs[0], epochs=600, augment="none"),
    ]  # fmt: skip
    found = queries.efforts(Evidence(runs, again), *CELL)
    columns = ["images", "iterations", "trained", "epochs", "of_preset", "seeds", "accuracy", "difference"]
    assert found[columns].round(1).fillna(0).to_numpy().tolist() == [
        ["10", 300, "in one stage", 300, True, 1, 41.0, 10.0],
        ["10", 300, "in one stage", 600, False, 1, 31.0, 20.0],
        ["10", 600, "in one stage", 300, False, 3, 45.0, 6.0],
        ["5 + 5", 600, "in stages", 600, True, 3, 51.0, 0.0],  # what the others are compared with
        ["5 + 5", 600, "in stages", 1000, False, 1, 31.0, 20.0],
        ["5 + 5", 600, "jointly", 300, True, 3, 45.0, 6.0],
        ["5 + 5", 600, "jointly", 600, False, 1, 31.0, 20.0],
        ["4 + 3 + 3", 900, "in stages", 900, True, 1, 61.0, -10.0],
        ["4 + 3 + 3", 900, "jointly", 300, True, 1, 45.0, 6.0],
    ]


def test_the_gain_over_random_images_by_their_number():
    runs = [make_run("cifar10-ipc10-dm", seed, (40.0, 42.0 + seed)) for seed in range(3)]
    runs.append(make_run("cifar10-ipc10-dm", 0, (22.0, 24.0), overrides={"ipc": 100, "subset_ipcs": [100]}))
    runs.append(make_run("cifar10-ipc10-dm", 0, (90.0, 90.5), overrides={"select_on": "test"}))
    runs.append(make_run("cifar10-ipc50-seqmatch_mtt", 0, (51.0, 53.0), (44.0, 46.0)))
    runs.append(make_sequence(0, (90.0, 90.5), {"subset_ipcs": [3, 7]}))  # unequal subsets are another question
    runs.append(make_run("cifar10-ipc10-mtt", 0, (90.0, 90.5), overrides={"ipc": 100, "subset_ipcs": [100]}))
    runs.append(make_run("cifar10-ipc100-mtt", 0, (31.0, 33.0)))  # goes before a changed preset of another size
    found = queries.gain_over_random(Evidence(runs), "cifar10", "reduced")
    assert found[["method", "num_subsets", "ipc", "gain", "of_preset"]].to_numpy().tolist() == [
        ["dm", 1, 10, 20.5, True], ["dm", 1, 100, 2.0, False], ["mtt", 1, 100, 11.0, True],
        ["seqmatch_mtt", 3, 50, 31.0, True],
    ]  # fmt: skip
    assert found["gain_low"].notna().tolist() == [True, False, False, False]
    (axis,) = charts.plot_gain(Evidence(runs), "cifar10", "reduced").axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines["dm"] == [[10, 20.5], [100, 2]], "the mean of three seeds, and one"
    assert not {"mtt", "seqmatch_mtt"} & lines.keys(), "one size makes no line"
    assert sorted(axis.collections[0].get_offsets().tolist()) == [[10, 20], [10, 20.5], [10, 21], [100, 2]]


def test_orders_are_kept_a_seed_and_pooled(tmp_path):
    for seed in range(3):
        make_order(
            tmp_path, seed, {"MTT": [30.0 + seed, 32.0], "SeqMatch": [40.0, 42.0], "SeqMatch, $S_2$ first": [20.0, 21.0]}
        )
    make_order(tmp_path, 2, {"MTT": [32.0, 32.0], "SeqMatch": [40.0, 42.0]})  # takes the place of the one before
    make_order(tmp_path, 0, {"KRR": [35.0, 36.0], "SeqMatch": [38.0, 38.0]}, "krr")  # takes nobody's place
    make_order(tmp_path, 0, {"SeqMatch": [30.0, 32.0]}, changes={"mtt.syn_lr": 0.03})  # is asked for by its settings
    make_order(tmp_path, 9, {"divided, staged": [30.0, 32.0]}, "krr")  # says nothing of the sequence
    evidence = Evidence([], orders=load_orders(tmp_path))
    found = queries.order(evidence, *CELL)
    assert found[["base", "set", "seeds", "accuracy", "difference"]].fillna(0).to_numpy().tolist() == [
        ["krr", ONE_SET, 1, 35.5, 2.5], ["krr", STAGED, 1, 38.0, 0], ["mtt", ONE_SET, 3, 31.5, 9.5],
        ["mtt", STAGED, 3, 41.0, 0], ["mtt", "sequence, S_2 first", 2, 20.5, 20.5],
    ]  # fmt: skip
    assert queries.order(evidence, *CELL, ["mtt.syn_lr=0.03"])["accuracy"].tolist() == [31.0]
    assert "independent halves: not run." in findings.find_order(evidence, *CELL)
    assert queries.order(evidence, "cifar10", 50, "reduced").empty


def test_orders_of_another_form_are_refused(tmp_path):
    path = make_order(tmp_path, 0, {"SeqMatch": [40.0]})
    write_json(path, read_json(path) | {"accuracy": {"SeqMatch": ["high"]}})
    with pytest.raises(StorageError, match=rf"{path.name} is no valid record: \['accuracy'\] .*run 21_ablation_order again"):
        load_orders(tmp_path)


def test_reevaluations_show_what_was_changed():
    run = make_sequence()
    found = queries.reevaluated(Evidence([run], [make_reevaluation(run, True, epochs=600), make_reevaluation(run)]), "cifar10")
    columns = ["method", "images", "trained", "changed", "network", "accuracy", "random", "difference", "records"]
    common = ["convnet", 31.0, 16.0, 15.0, run.config_hash[:8]]
    assert found[columns].to_numpy().tolist() == [
        ["seqmatch_mtt", "5 + 5", "jointly", "training.epochs = 600", *common],
        ["seqmatch_mtt", "5 + 5", "in stages", "", *common],
    ]


def test_reevaluations_are_kept_once_a_question(tmp_path):
    run = make_run("cifar10-ipc10-mtt")
    paths = {make_reevaluation(run, joint).save(tmp_path) for joint in (False, True, False)}
    assert len(paths) == 2
    assert {one.joint for one in load_reevaluations(tmp_path)} == {False, True}
    path = min(paths)
    path.write_text(path.read_text().replace('"joint"', '"Joint"'))
    with pytest.raises(StorageError, match=path.name):
        load_reevaluations(tmp_path)


def test_curves_are_those_of_finished_runs_and_of_checkpoints(tmp_path, monkeypatch):
    """A run's record goes before its checkpoint; iterations are counted through all stages."""
    runs = [make_run("cifar10-ipc10-mtt"), make_sequence()]
    for run in runs:
        for stage in run.stages:
            stage |= {"scores": [[100, 30.0], [300, 35.0]], "test_scores": [[300, 36.0]]}
    monkeypatch.setattr(
        queries, "read_progress", lambda path: [{"losses": [1.0] * 50, "scores": [[50, 20.0]], "test_scores": []}]
    )
    for seed in (0, 1):
        (tmp_path / "checkpoints" / RunConfig.from_preset("cifar10-ipc10-mtt", "reduced", seed).run_id).mkdir(parents=True)
    (tmp_path / "state" / RunConfig.from_preset("cifar10-ipc10-mtt", "short", 2).run_id).mkdir(parents=True)  # another scale
    found = queries.curves(Evidence(runs), tmp_path, *CELL)
    sequence = found[found["method"] == "seqmatch_mtt"]
    assert sequence[sequence["images"] == "validation"]["iteration"].tolist() == [100, 300, 400, 600]
    assert sequence[sequence["images"] == "test"]["accuracy"].tolist() == [36.0, 36.0]
    assert found[found["method"] == "mtt"].groupby("seed")["finished"].first().to_dict() == {0: True, 1: False}
    (axis,) = charts.plot_curves(Evidence(runs), PUBLISHED, tmp_path, *CELL).axes
    assert sum("images" in line.get_label() for line in axis.lines) == 5
    assert not any("published" in line.get_label() for line in axis.lines), "a rehearsal is not drawn beside published numbers"
    assert [300, 300] in [list(line.get_xdata()) for line in axis.lines], "where S_1 is finished"
    with pytest.raises(StorageError, match="has no scores on cifar10, 50 images per class, at scale reduced yet"):
        charts.plot_curves(Evidence(runs), PUBLISHED, tmp_path, "cifar10", 50, "reduced")


# --- figures


def points_of(axis):
    """The points of a panel: mean accuracy, and row from the top."""
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    return sorted((x, y) for line in dots for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_the_figure_of_a_comparison_has_a_point_a_seed_and_a_row_for_what_was_run():
    runs = [make_run("cifar10-ipc10-mtt", seed) for seed in range(3)] + [make_sequence(seed) for seed in range(2)]
    (axis,) = charts.plot_comparison(Evidence(runs), *CELL).axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["random real", ONE_SET, STAGED, "sequence, jointly"]
    assert points_of(axis) == [(21, 0)] * 3 + [(41, 1)] * 3 + [(45, 3)] * 2 + [(51, 2)] * 2
    with pytest.raises(charts.NothingToDraw, match="there are no records to draw of cifar10, 50 images"):
        charts.plot_comparison(Evidence(runs), "cifar10", 50, "reduced")


def test_the_figure_of_the_order_has_a_panel_a_method(tmp_path):
    for seed in range(2):
        make_order(tmp_path, seed, {"MTT": [30.0, 32.0], "SeqMatch": [40.0 + seed, 42.0]})
    make_order(tmp_path, 0, {"KRR": [35.0], "SeqMatch": [38.0]}, "krr")
    other, axis = charts.plot_order(Evidence([], orders=load_orders(tmp_path)), *CELL).axes
    assert points_of(other) == [(35, 0), (38, 1)]
    assert points_of(axis) == [(31, 0), (31, 0), (41, 1), (41.5, 1)]
    (means,) = [line for line in axis.lines if line.get_label() == "mean"]
    assert list(means.get_xdata()) == [31, 41.25]


def test_the_figure_of_the_subsets_has_the_control_of_equal_epochs():
    runs = [make_run("cifar10-ipc10-mtt", seed, (40.0 + seed, 42.0)) for seed in range(2)]
    runs += [make_sequence(), make_sequence(0, (36.0, 38.0), HALF, (300,) * 3)]
    runs.append(make_sequence(0, (90.0, 90.5), {"subset_ipcs": [3, 7]}))  # unequal subsets are another question
    runs.append(make_run("cifar10-ipc10-dm"))  # one number of subsets makes no panel
    evidence = Evidence(runs, [make_reevaluation(runs[0], epochs=600)])
    (axis,) = charts.plot_subsets(evidence, *CELL).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert axis.get_title() == "mtt"
    assert lines["in stages"] == [[1, 41.25], [2, 51], [3, 37]]
    assert lines["jointly"] == [[1, 41.25], [2, 45], [3, 45]], "one subset is trained on at once in any case"
    assert lines["one set, as many epochs"] == [[1, 41.25], [2, 31]]
    assert lines["random real, in stages"] == [[1, 21], [2, 21], [3, 21]]
    assert axis.collections[1].get_offsets().tolist() == [[1, 41], [1, 41.5], [2, 51], [3, 37]]


def test_the_figure_of_the_effort_has_a_panel_for_each_method_with_a_sequence():
    runs = [make_run("cifar10-ipc10-mtt", seed, (40.0 + seed, 42.0)) for seed in range(2)]
    runs += [make_sequence(), make_run("cifar10-ipc10-dm")]
    (axis,) = charts.plot_effort(Evidence(runs), *CELL).axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == [
        "10 in one stage, 300 iterations, 300 epochs",
        "5 + 5 in stages, 600 iterations, 600 epochs",
        "5 + 5 jointly, 600 iterations, 300 epochs",
    ]
    assert points_of(axis) == [(41, 0), (41.5, 0), (45, 2), (51, 1)]


def test_a_scale_that_decides_nothing_is_named_in_the_title():
    runs = [make_run("cifar10-ipc10-mtt"), make_sequence()]
    for scale, words in (("reduced", "rehearsal (reduced)"), ("smoke", "smoke: means nothing")):
        evidence = Evidence([replace(run, scale=scale) for run in runs])
        evidence.accuracies["changes"] = [{} for _ in evidence.accuracies.index]
        assert words in charts.plot_comparison(evidence, "cifar10", 10, scale).get_suptitle()


@pytest.mark.parametrize("name", ["find_subsets", "find_order", "find_gains", "find_bases", "find_transfer"])
def test_a_finding_without_records_says_so(name):
    setting = ("cifar10", "paper") if name == "find_gains" else ("cifar10", 10, "paper")
    assert "Nothing yet: no such run has a record." in getattr(findings, name)(Evidence([]), *setting)

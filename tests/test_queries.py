"""Queries: frames follow the records."""

import copy
from dataclasses import replace
from math import e

import pandas as pd
import pytest
from made_records import (
    CELL,
    HALF,
    PUBLISHED,
    RESULTS,
    SHORTER,
    accuracy,
    make_order,
    make_reevaluation,
    make_run,
    make_sequence,
    make_short,
    make_transfer,
)

from seqmatch_lib.errors import StorageError
from seqmatch_lib.report import charts, controls, findings, queries
from seqmatch_lib.report.controls import EQUAL, JOINTLY, ONE_SET, SELECTED, STAGED
from seqmatch_lib.report.evidence import Evidence
from seqmatch_lib.report.numbers import robust_score
from seqmatch_lib.report.texts import format_frame
from seqmatch_lib.report.verdicts import list_verdicts
from seqmatch_lib.runs import config, overrides
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.overrides import changes_of
from seqmatch_lib.runs.records import load_orders, load_reevaluations


def test_without_records_every_query_has_its_columns_and_no_rows():
    nothing = Evidence([])
    frames = [
        queries.baselines(nothing, "reduced"), queries.changed(nothing, "cifar10", "reduced"), queries.trust(nothing),
        queries.reevaluated(nothing, "cifar10"), queries.gain_over_random(nothing, "cifar10", "reduced"),
        queries.curves(nothing, RESULTS, "cifar10", 10, "smoke"),
        *(query(nothing, *CELL) for query in (controls.comparison, controls.efforts, queries.subsets, controls.order)),
        controls.controls_by_network(nothing, *CELL),
    ]  # fmt: skip
    for frame in frames:
        assert len(frame) == 0
        assert len(frame.columns) >= 5
        format_frame(frame)


def test_records_of_different_images_are_refused(tmp_path):
    runs = [make_run("cifar10-ipc10-mtt", seed) for seed in (0, 1)]
    runs[1] = replace(runs[1], data=runs[1].data | {"fingerprint": "of a part"})
    for run in runs:
        run.save(tmp_path)
    with pytest.raises(StorageError, match=r"use different images of cifar10, so no table may mix them"):
        Evidence.load(tmp_path)


def test_settings_that_differ_from_the_preset_are_found():
    assert changes_of(make_run("cifar10-ipc10-mtt")) == {}
    changed = make_run("cifar10-ipc10-mtt", overrides={"mtt.syn_steps": 7, "select_on": "test"})
    assert changes_of(changed) == {"mtt.syn_steps": 7, "select_on": "test"}


@pytest.mark.parametrize(("preset", "method"), [("mtt", "dm"), ("mtt", "random"), ("idc", "seqmatch_dm"), ("random", "mtt")])
def test_what_a_run_of_another_method_differs_in_makes_it_again(preset, method):
    preset = f"cifar10-ipc10-{preset}"
    other = RunConfig.from_preset(preset, "reduced").changed({"method": method})
    found = overrides.overrides_of(other)
    assert RunConfig.from_preset(preset, "reduced", 0, found) == other
    assert changes_of(replace(make_run(preset), config=other.as_dict(), overrides=found)) == found


def test_runs_of_a_preset_before_it_was_edited_are_runs_of_another(monkeypatch):
    """Their records keep their overrides, and no table or query pools them with runs of the preset as it stands."""
    before = make_run("cifar10-ipc10-mtt", 0, (40.0, 42.0))
    presets = copy.deepcopy(config._read_presets())
    presets["scale"]["reduced"]["cifar10-ipc10-mtt"]["mtt"]["syn_steps"] = 3
    monkeypatch.setattr(config, "_read_presets", lambda: presets)
    overrides._preset_settings.cache_clear()
    after = make_run("cifar10-ipc10-mtt", 1, (50.0, 52.0))
    assert (before.overrides, after.overrides) == ({}, {})
    assert (changes_of(before), changes_of(after)) == ({"preset": f"as of {before.git_commit[:8]}"}, {})
    (row,) = queries.subsets(Evidence([before, after]), "cifar10", 10, "reduced").to_dict("records")
    assert (row["accuracy"], row["seeds"]) == (51.0, 1)
    overrides._preset_settings.cache_clear()


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
    columns = ["base", "num subsets", "images", "even", "teacher epochs", "accuracy", "joint", "seeds", "n"]
    assert found[columns].to_numpy().tolist() == [
        ["IDC", "1", "10", "yes", "-", "41.0 ± 0.0", "", "2", "4"],
        ["IDC", "3", "4 + 3 + 3", "yes", "-", "51.5 ± 0.7", "45.0 ± 0.0", "2", "4"],
        ["MTT", "2", "5 + 5", "yes", "0 to 14; 7 to 14", "47.0 ± 1.4", "45.0 ± 1.4", "1", "2"],
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
    assert lines["DM"] == [[10, 20.5], [100, 2]], "the mean of three seeds, and one"
    assert not {"MTT", "SeqMatch-MTT"} & lines.keys(), "one size makes no line"
    assert sorted(axis.collections[0].get_offsets().tolist()) == [[10, 20], [10, 20.5], [10, 21], [100, 2]]


def test_runs_that_were_cut_short_make_no_line_over_sizes():
    evidence = Evidence([make_short("mtt"), make_run("cifar10-ipc1-mtt", scale="short")])
    assert queries.gain_over_random(evidence, "cifar10", "short")["ipc"].tolist() == [1, 10]
    assert queries.gains_at_several_sizes(evidence, "cifar10", "short").empty
    whole = Evidence([make_run(f"cifar10-ipc{ipc}-mtt", scale="short") for ipc in (1, 10)])
    assert queries.gains_at_several_sizes(whole, "cifar10", "short")["ipc"].tolist() == [1, 10]


def test_sizes_are_compared_at_equal_settings_where_they_were_run_so():
    """The presets of ten and of fifty images differ in more than their size; the preset of fifty with ten images does not."""
    runs = [make_run("cifar10-ipc10-mtt", 0, (60.0, 62.0)), make_run("cifar10-ipc50-mtt", 0, (51.0, 53.0))]
    own = queries.gains_at_several_sizes(Evidence(runs), "cifar10", "reduced")
    assert own[["ipc", "gain", "equal"]].to_numpy().tolist() == [[10, 40, False], [50, 31, False]]
    assert "those of each size's preset" in findings.find_gains(Evidence(runs), "cifar10", "reduced")
    alike = {"ipc": 10, "subset_ipcs": [10]}
    runs += [make_run("cifar10-ipc50-mtt", seed, (31.0, 33.0), overrides=alike) for seed in (0, 1)]
    runs.append(make_run("cifar10-ipc50-mtt", 0, (90.0, 90.5), overrides=alike | {"training.epochs": 600}))  # of fewer seeds
    runs.append(make_run("cifar10-ipc50-mtt", 0, (90.0, 90.5), overrides={"training.epochs": 600}))  # no preset
    longer, later = alike | {"mtt.iterations": 301}, alike | {"intervals": [[7, 14]]}
    runs.append(make_run("cifar10-ipc50-mtt", 0, (90.0, 90.5), overrides=longer, iterations=(301,)))
    runs.append(make_run("cifar10-ipc50-mtt", 0, (90.0, 90.5), overrides=later))
    equal = queries.gains_at_several_sizes(Evidence(runs), "cifar10", "reduced")
    assert equal[["ipc", "gain", "equal"]].to_numpy().tolist() == [[10, 11, True], [50, 31, True]]
    said = findings.find_gains(Evidence(runs), "cifar10", "reduced")
    assert "+11.0 at 10, +31.0 at 50" in said
    assert "Settings of MTT: equal at all sizes" in said


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
    axis, ends = charts.plot_curves(Evidence(runs), PUBLISHED, tmp_path, *CELL).axes
    assert [text.get_text() for text in ends.get_yticklabels()] == [ONE_SET, STAGED, JOINTLY]
    scores = [line for line in axis.lines if "seed" in line.get_label()]
    assert sorted(line.get_linestyle() for line in scores) == ["-", "-", ":", ":", ":"], "test images and validation images"
    assert not any("published" in line.get_label() for line in axis.lines), "a rehearsal is not drawn beside published numbers"
    strokes = [list(line.get_xdata()) for line in axis.lines if line.get_marker() == "|" and len(line.get_xdata())]
    assert strokes == [[300], [300]], "where S_1 is finished, on test and on validation images"
    with pytest.raises(StorageError, match="has no scores on CIFAR-10, 50 images per class, at scale reduced yet"):
        charts.plot_curves(Evidence(runs), PUBLISHED, tmp_path, "cifar10", 50, "reduced")


def test_runs_with_other_numbers_of_teachers_are_drawn_beside_those_of_the_preset(tmp_path):
    """At scale "short", which leaves them open; what differs in more is not compared with them."""
    more = {"teachers.num_teachers": 20, "mtt.iterations": 400}
    runs = [make_short("mtt", overrides={}, iterations=(1500,))]
    runs += [make_short("mtt", seed, (60.0 + seed, 62.0 + seed), (400,), more) for seed in (0, 1)]
    runs.append(make_short("mtt", 0, (90.0, 92.0), (400,), more | {"mtt.syn_steps": 7}))
    other_evaluation = make_short("mtt", 0, (63.0, 65.0), (400,), more | {"evaluation.num_networks": 3})
    for run in runs:
        run.stages[0]["test_scores"] = [[100, run.accuracy_last["mean"]]]
    cell = ("cifar10", 10, "short")
    found = queries.by_teachers(Evidence(runs), *cell)
    assert found[["num_teachers", "iterations", "of_preset", "accuracy", "seeds", "n"]].to_numpy().tolist() == [
        [5, 1500, True, 51.0, 1, 2], [20, 400, False, 61.5, 2, 4],
    ]  # fmt: skip
    assert queries.curves(Evidence(runs), tmp_path, *cell)[["teachers", "accuracy"]].to_numpy().tolist() == [
        [5, 51], [20, 61], [20, 62],
    ]  # fmt: skip
    assert queries.by_teachers(Evidence([*runs, other_evaluation]), *cell)["accuracy"].tolist() == [51, 64, 61.5]
    *panels, ends = charts.plot_curves(Evidence(runs), PUBLISHED, tmp_path, *cell).axes
    curves = [[line for line in axis.lines if "seed" in line.get_label()] for axis in panels]
    labels = {axis.get_title(): [line.get_label() for line in lines] for axis, lines in zip(panels, curves, strict=True)}
    assert labels == {"5 teachers": ["MTT, seed 0"], "20 teachers": ["MTT, seed 0", "MTT, seed 1"]}
    assert len({line.get_color() for lines in curves for line in lines}) == 1, "one set has one colour"
    names = ["5 teachers, 1,500 iterations, seed 0", "20 teachers, 400 iterations, seed 0, 1"]
    assert [text.get_text() for text in ends.get_yticklabels()] == [f"{ONE_SET}, {name}" for name in names]


@pytest.mark.parametrize("name", ["find_subsets", "find_order", "find_gains", "find_bases", "find_transfer"])
def test_a_finding_without_records_says_so(name):
    setting = ("cifar10", "paper") if name == "find_gains" else ("cifar10", 10, "paper")
    assert "Nothing yet: no such run has a record." in getattr(findings, name)(Evidence([]), *setting)


def test_another_task_shows_the_sequence_beside_one_set_of_equal_effort():
    names = {"MTT": (40.0, 42.0), "SeqMatch": (50.0, 52.0), findings.EQUAL_EFFORT: (53.0, 55.0)}
    runs = {name: make_run("place_names-ipc10-mtt", last=values) for name, values in names.items()}
    said = findings.find_task(runs, "place_names", "reduced")
    assert "MTT with as many iterations and epochs as SeqMatch reaches 54.0 %. SeqMatch minus this is -3.0 points" in said
    del runs[findings.EQUAL_EFFORT]
    said = findings.find_task(runs, "place_names", "reduced")
    assert "MTT with as many iterations and epochs as SeqMatch: not run." in said
    assert "minus" not in said


def test_a_finding_on_k_without_any_sequence_says_what_was_not_run():
    found = findings.find_subsets(Evidence([make_run("cifar10-ipc10-mtt")]), *CELL)
    assert "Only one K was run, and no sequence beside one set." in found
    assert "Seeds of distillation: 1 at K = 1." in found


def test_a_set_that_stands_for_its_preset_is_compared_on_other_architectures():
    standing, changed = make_short("mtt"), make_short("mtt", overrides=SHORTER | {"mtt.syn_steps": 7})
    asked = {"evaluation": standing.config["evaluation"] | {"networks": ["convnet", "vit"]}}
    both = {name: accuracy(*values) for name, values in {"convnet": (50.0, 52.0), "vit": (30.0, 32.0)}.items()}
    random = {name: accuracy(20.0, 22.0) for name in both}
    again = [
        replace(make_reevaluation(run), config=run.config | asked, accuracy=both, random_baseline=random)
        for run in (standing, changed)
    ]
    of_convnet_alone = make_short("mtt", 1, (90.0, 92.0))
    found = queries.transfer(Evidence([standing, of_convnet_alone, changed], again), "cifar10", 10, "short")
    assert found[["network", "gain", "seeds", "n"]].to_numpy().tolist() == [["convnet", 30.0, 1, 2], ["vit", 10.0, 1, 2]]
    assert queries.transfer(Evidence([changed], again), "cifar10", 10, "short").empty


def test_the_lead_of_a_sequence_over_its_base_method_is_told_for_each_architecture():
    """Of the seeds that both have; the base method itself leads nothing."""
    runs, again = [make_short("mtt"), make_short("seqmatch_mtt"), make_short("seqmatch_mtt", 1, (90.0, 92.0))], []
    for run, (convnet, vit) in zip(runs, [(51.0, 31.0), (55.0, 30.0), (91.0, 90.0)], strict=True):
        asked = {"evaluation": run.config["evaluation"] | {"networks": ["convnet", "vit"]}}
        accuracies = {"convnet": accuracy(convnet - 1, convnet, convnet + 1), "vit": accuracy(vit - 1, vit + 1)}
        random = {"convnet": accuracy(20.0, 22.0), "vit": accuracy(18.0, 20.0)}
        again.append(replace(make_reevaluation(run), config=run.config | asked, accuracy=accuracies, random_baseline=random))
    evidence = Evidence(runs, again)
    found = queries.transfer(evidence, "cifar10", 10, "short").set_index(["method", "network"])
    assert found["lead"].dropna().to_dict() == {("seqmatch_mtt", "convnet"): 4.0, ("seqmatch_mtt", "vit"): -1.0}
    assert found["lead_seeds"].to_dict()["seqmatch_mtt", "vit"] == 1
    assert "SeqMatch-MTT minus MTT: +4.0 on ConvNet, -1.0 on ViT." in findings.find_transfer(evidence, "cifar10", 10, "short")
    assert "minus" not in findings.find_transfer(Evidence(runs[:1], again[:1]), "cifar10", 10, "short")


def test_halves_on_another_architecture_are_the_control_of_the_lead_there(tmp_path):
    """Not those on the architecture that they were distilled with, which are a control of its own."""
    runs, again = [make_short("mtt"), make_short("seqmatch_mtt")], []
    for run, mean in zip(runs, (21.0, 31.0), strict=True):
        asked = {"evaluation": run.config["evaluation"] | {"networks": ["vit"]}}
        of_vit = {"accuracy": {"vit": accuracy(mean - 1, mean + 1)}, "random_baseline": {"vit": accuracy(18.0, 20.0)}}
        again.append(replace(make_reevaluation(run), config=run.config | asked, **of_vit))
    halves = {"divided, staged": [50.0, 52.0], "divided, staged (vit)": [27.0, 29.0], "divided, joint (vit)": [33.0, 35.0]}
    make_order(tmp_path, 0, halves, changes=run.overrides, scale="short")
    evidence = Evidence(runs, again, load_orders(tmp_path))
    found = controls.controls_by_network(evidence, "cifar10", 10, "short").set_index(["network", "set"])
    assert found["difference"].to_dict() == {("vit", controls.HALVES): 3.0, ("vit", controls.HALVES_JOINTLY): -3.0}
    assert found["n"].tolist() == [2, 2]
    said = findings.find_transfer(evidence, "cifar10", 10, "short")
    assert "SeqMatch-MTT minus independent halves, in stages: +3.0 on ViT." in said
    assert "SeqMatch-MTT minus independent halves, jointly: -3.0 on ViT." in said
    of_convnet = controls.order(evidence, "cifar10", 10, "short")
    assert not of_convnet["set"].str.contains("vit").any()
    assert of_convnet.set_index("set").loc[controls.HALVES, "accuracy"] == 51.0
    (row,) = list_verdicts(evidence, PUBLISHED, tmp_path).query("setting.str.contains('ViT')").to_dict("records")
    not_run = "both by selected iterates, as many iterations and epochs, halves jointly for as many epochs"
    assert row["control"].endswith(f"halves in stages +3.0, 1 seed; halves jointly -3.0, 1 seed; not run: {not_run}")
    assert all(half in row["records"] for half in found["records"]["vit", controls.HALVES].split(", "))


def test_controls_on_another_architecture_are_one_set_of_equal_effort_and_selected_iterates():
    """The sequence has 40 % there, and 38 % with its selected iterate; MTT's sets have 31 %, 36 % and 39 %."""
    mtt, sequence = make_run("cifar10-ipc10-mtt"), make_sequence()
    longer = make_run("cifar10-ipc10-mtt", 0, (47.0, 49.0), None, {"mtt.iterations": 600}, (600,))
    again = [make_transfer(mtt, 31.0), make_transfer(sequence, 40.0), make_transfer(longer, 36.0, epochs=600)]
    again += [make_transfer(longer, 90.0), make_transfer(mtt, 39.0, True), make_transfer(sequence, 38.0, True)]
    evidence = Evidence([mtt, sequence, longer], again)
    found = controls.controls_by_network(evidence, *CELL)
    assert set(found["network"]) == {"vit"}
    assert found.set_index("set")["difference"].to_dict() == {SELECTED[ONE_SET]: -1.0, EQUAL: 4.0}
    leads = queries.transfer(evidence, *CELL).set_index(["method", "network"])["lead"]
    assert leads["seqmatch_mtt", "vit"] == 9.0, "selected iterates are not taken for last ones"
    said = findings.find_transfer(evidence, *CELL)
    assert "SeqMatch-MTT minus one set, as many iterations and epochs: +4.0 on ViT." in said
    assert "Controls that were not evaluated: independent halves on ViT. " in said
    shown = queries.reevaluated(evidence, "cifar10").set_index(["changed", "images"])["accuracy"]
    assert shown["selected iterate", "5 + 5"] == 38.0
    without = Evidence([mtt, sequence, longer], again[:-1])
    assert controls.controls_by_network(without, *CELL)["set"].tolist() == [EQUAL], "both sides are to be selected iterates"
    said = findings.find_transfer(Evidence([mtt, sequence], again[:2]), *CELL)
    names = ("one set with as many iterations and epochs", "independent halves", "selected iterates")
    assert f"Controls that were not evaluated: {'; '.join(f'{name} on ViT' for name in names)}. " in said


def test_a_set_that_is_the_last_and_the_selected_one_needs_one_re_evaluation():
    runs = [make_run("cifar10-ipc10-mtt"), make_sequence()]
    both = [replace(run, stages=[stage | {"scores": [[300, 50.0]]} for stage in run.stages]) for run in runs]
    assert [run.selects_last for run in [*runs, *both]] == [False, False, True, True]
    again = [make_transfer(run, mean) for run, mean in zip(runs, (31.0, 40.0), strict=True)]
    found = controls.controls_by_network(Evidence(both, again), *CELL)
    assert found.set_index("set")["difference"].to_dict() == {SELECTED[ONE_SET]: 9.0}
    assert controls.controls_by_network(Evidence(runs, again), *CELL).empty
    earlier = [stage | {"scores": [[150, 60.0], [300, 50.0]]} for stage in runs[0].stages]
    assert not replace(runs[0], stages=earlier).selects_last


def test_other_architectures_are_compared_under_the_training_of_the_run():
    """A step size for random real images of its own is another training, whatever the number of networks."""
    run = make_short("mtt")
    answers = []
    for real_lr, count in ((run.config["evaluation"]["real_lr"], 2), (1e-6, 5)):
        asked = run.config["evaluation"] | {"networks": ["convnet", "vit"], "real_lr": real_lr, "num_networks": count}
        random = {name: accuracy(*[20.0 if count == 2 else 5.0] * count) for name in ("convnet", "vit")}
        both = {name: accuracy(*[30.0] * count) for name in random}
        again = make_reevaluation(run)
        answers.append(replace(again, config=run.config | {"evaluation": asked}, accuracy=both, random_baseline=random))
    assert queries.transfer(Evidence([run], answers), "cifar10", 10, "short")["gain"].tolist() == [10.0, 10.0]


def test_what_was_measured_is_told_of_hard_images_the_last_stage_and_the_last_epoch():
    falls = {"real data": 0.9, "MTT": 0.5, "SeqMatch": 0.25}
    rows = [(name, images, 2 - step * fall * (images == "hard"))
            for name, fall in falls.items() for images in ("easy", "hard") for step in range(3)]  # fmt: skip
    measured = {"losses": pd.DataFrame(rows, columns=["training", "images", "loss"])}
    said = findings.find_coupling(measured, "x")
    assert "from 2.00 to 1.00, on the sequence from 2.00 to 1.50." in said
    assert "was not measured" in said
    rows = [(name, "hard", step, 2 - step * fall) for name, fall in (("MTT, as many epochs", 0.7), ("independent halves", 0.2))
            for step in range(2)]  # fmt: skip
    measured["control_losses"] = pd.DataFrame(rows, columns=["training", "images", "step", "loss"])
    said = findings.find_coupling(measured, "x")
    assert "it is 1.30 on the one set for as many epochs, 1.80 on independent halves." in said
    assert "was not measured" not in said
    gains = {0: 2.0, 9: -1.0}
    rows = [(decile, 50 + stage * gains.get(decile, 0), f"stage {stage + 1}") for stage in (0, 1) for decile in range(10)]
    measured["deciles"] = pd.DataFrame(rows, columns=["decile", "accuracy", "after"]).assign(network=0)
    said = findings.find_deciles(measured, "x")
    assert (
        "+2.0 points on the easiest tenth of test images, by -1.0 on the hardest, and by +0.1 on average (one network)" in said
    )
    rows = [(decile, 60 if decile == 9 else 50, "MTT") for decile in range(10)]
    measured["control_deciles"] = pd.DataFrame(rows, columns=["decile", "accuracy", "after"]).assign(network=0)
    gains = findings.list_deciles(measured).set_index(["training", "decile"])["gain"]
    assert gains["SeqMatch", 0] == 2
    assert gains["MTT"].tolist() == [0.0] * 9 + [10.0]
    accuracies = findings.tabulate_deciles(measured, "x").data.replace("\xa0", " ", regex=True).set_index("training")
    assert accuracies.loc["stage 2"].tolist() == ["52.0", "50.4", "49.8", "49.0", "50.1"]
    shown = findings.tabulate_gains(measured, "x").data.replace("\xa0", " ", regex=True).set_index("training")
    assert shown.loc["SeqMatch"].tolist() == ["+2.0", "+0.4", "-0.2", "-1.0", "+0.1", "+0.08", "-0.04"]
    assert shown.loc["MTT"].tolist() == ["+0.0", "+0.0", "+2.0", "+10.0", "+1.0", "+0.00", "+0.41"]
    rows = [(0, 0, 0.9, "MTT"), (4, 0, 0.5, "MTT"), (4, 1, 0.7, "MTT"), (4, 0, 0.4, "$S_1$")]
    measured["errors"] = pd.DataFrame(rows, columns=["epoch", "teacher", "error", "set"])
    errors = findings.tabulate_errors(measured, "x").data.set_index("set")
    assert errors.loc["MTT"].tolist() == ["0.90", "0.60"]
    assert errors["4"].tolist() == ["0.60", "0.40"]


def test_growth_of_coupling_is_a_mean_over_seeds(tmp_path):
    for seed, value in ((0, 0.2), (1, 0.6)):
        run = make_sequence(seed)
        run.save(tmp_path)
        rows = pd.DataFrame({"ipc": [2, 10], "start epoch": 0, "teacher": 0, "coupling": [value, 2 * value]})
        path = tmp_path / "coupling" / run.run_id / "gradients.csv"
        path.parent.mkdir(parents=True)
        rows.to_csv(path, index=False)
    found = findings.find_growth(Evidence.load(tmp_path), tmp_path, "cifar10", "reduced")
    assert "at 2 and at 10 images per class is 0.40 and 0.80 at start epoch 0." in found
    assert "Means over 2 seeds; one teacher." in found

"""The sequence beside its controls: what is compared, and what stands for what."""

import re
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from made_records import (
    CELL,
    HALF,
    PUBLISHED,
    SHORTER,
    accuracy,
    make_order,
    make_reevaluation,
    make_run,
    make_sequence,
    make_short,
)

from seqmatch_lib.errors import StorageError
from seqmatch_lib.report import charts, controls, findings, queries, texts
from seqmatch_lib.report.controls import EQUAL, HALVES, JOINTLY, LONGER, ONE_SET, SELECTED, STAGED
from seqmatch_lib.report.evidence import Evidence
from seqmatch_lib.report.texts import format_frame
from seqmatch_lib.report.verdicts import list_verdicts
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.records import load_orders
from seqmatch_lib.store.files import digest_json, read_json, write_json


def test_a_re_evaluation_that_changes_nothing_does_not_stand_for_the_run():
    runs = [make_run("cifar10-ipc10-mtt"), make_sequence(), make_run("cifar10-whole", last=(70.0, 72.0))]
    again = [make_reevaluation(run) for run in runs[:2]]
    with_them, without = (controls.comparison(Evidence(runs, these), *CELL) for these in (again, []))
    pd.testing.assert_frame_equal(with_them, without)
    assert queries.robust(Evidence(runs, again), "cifar10", "reduced").empty


def test_sequences_of_other_iterations_a_subset_do_not_hide_those_of_equal_ones():
    runs = [make_run("cifar10-ipc10-mtt", seed) for seed in range(3)] + [make_sequence(seed) for seed in range(3)]
    runs.append(make_sequence(3, (90.0, 92.0), iterations=(250, 350)))
    staged = controls.comparison(Evidence(runs), *CELL).set_index("set").loc[STAGED]
    assert (staged["accuracy"], staged["seeds"]) == (51, 3)
    found = controls.efforts(Evidence(runs), *CELL)
    assert set(found[found["trained"] == "in stages"]["by_subset"]) == {"300 + 300", "250 + 350"}


def test_a_comparison_carries_its_controls(tmp_path):
    """Also those that were not run, so that nobody takes the gain over the plain set for that of the sequence."""
    plain = [make_run("cifar10-ipc10-mtt", seed, (40.0 + seed, 42.0 + seed)) for seed in range(3)]
    sequence = [replace(make_sequence(seed), accuracy_selected=accuracy(53.0, 55.0)) for seed in range(3)]
    longer = make_run("cifar10-ipc10-mtt", 0, (47.0, 49.0), None, {"mtt.iterations": 600}, (600,))
    longer = replace(longer, accuracy_selected=accuracy(60.0, 62.0))
    for seed in (0, 1):
        longer_halves = {"divided, joint, as many epochs": [49.0]}
        halves = {"divided, staged": [52.0, 54.0], "divided, joint": [48.0]}
        make_order(tmp_path, seed, {"SeqMatch": [51.0]} | halves | (longer_halves if seed else {}))
    again = [make_reevaluation(longer, epochs=600), make_reevaluation(longer, epochs=600, augment="none")]
    evidence = Evidence([*plain, *sequence, longer], again, load_orders(tmp_path))
    found = controls.comparison(evidence, *CELL).set_index("set")
    assert found.index.tolist() == list(controls.SETS)
    assert found["accuracy"].round(1).fillna(0).tolist() == [21, 42, 42, 48, 61, 0, 31, 53, 48, 49, 51, 45, 0]
    assert found["difference"].round(1).fillna(0).tolist() == [30, 9, 12, 3, -7, 0, 20, -2, 3, 2, 0, 6, 0]
    assert found["seeds"].tolist() == [3, 3, 3, 1, 1, 0, 1, 2, 2, 1, 3, 3, 0]
    assert found.loc[ONE_SET, "difference_low"] > 0
    halves = [name for name in found.index if name.startswith("independent halves")]
    costs = found[["iterations", "epochs"]].loc[[ONE_SET, EQUAL, STAGED, *halves]].to_numpy().tolist()
    assert costs == [[300, 300], [600, 600], [600, 600], [600, 600], [600, 300], [600, 600]]
    assert format_frame(found.reset_index())["accuracy"].tolist().count("not run") == 2
    assert len(controls.comparison(evidence, *CELL, by_seed=True)) == found["seeds"].sum()


def test_a_comparison_pools_seeds_and_leaves_changed_runs_out():
    runs = [make_run("cifar10-ipc10-mtt", seed, (40.0 + seed, 42.0 + seed)) for seed in range(3)]
    runs += [make_sequence(seed) for seed in range(3)]
    runs.append(make_run("cifar10-ipc10-mtt", 0, (90.0, 90.5), overrides={"mtt.lr_img": 7.0}))
    found = controls.comparison(Evidence(runs), *CELL).set_index("set")
    assert found.loc[ONE_SET, ["accuracy", "accuracy_std", "n"]].tolist() == [42.0, 1.0, 6]
    assert found["accuracy"].max() < 90
    assert queries.changed(Evidence(runs), "cifar10", "reduced")[["changed", "last"]].to_numpy().tolist() == [
        ["mtt.lr_img = 7.0", 90.25]
    ]


@pytest.mark.parametrize("query", [controls.comparison, queries.subsets, controls.efforts])
def test_queries_compare_runs_with_the_settings_that_they_are_given(query):
    runs = []
    changes = ({}, {"mtt.syn_steps": 7}, {"mtt.syn_steps": 9}, {"mtt.syn_steps": 7, "mtt.lr_lr": 1e-6})
    for changed, accuracies in zip(changes, ((40, 42), (60, 62), (80, 82), (90, 92)), strict=True):
        runs += [make_run("cifar10-ipc10-mtt", 0, accuracies, overrides=changed), make_sequence(0, accuracies, changed)]
    settings = ([], ["mtt.syn_steps=7"], ["mtt.syn_steps=9"], ["mtt.syn_steps=7", "mtt.lr_lr=1e-06"])
    for these, mean in zip(settings, (41, 61, 81, 91), strict=True):
        assert set(query(Evidence(runs), *CELL, these)["accuracy"].dropna()) - {21, 45} == {mean}
    assert query(Evidence(runs), *CELL, ["mtt.syn_steps=8"]).empty


def test_at_scale_short_a_sequence_of_fewer_teachers_and_iterations_stands_for_its_preset(tmp_path):
    cell, settings = ("cifar10", 10, "short"), ("evaluation.num_networks=3", "teachers.num_teachers=2")
    runs = [make_short("seqmatch_mtt"), make_short("mtt", last=(47.0, 49.0), iterations=(400,))]
    runs.append(make_short("mtt", last=(90.0, 92.0), overrides=SHORTER | {"mtt.syn_steps": 7}))
    assert sorted(controls.leading_settings(Evidence(runs), *cell, "mtt")) == list(settings)
    assert texts.name_runs(Evidence(runs), *cell) == "CIFAR-10, 10 images per class, short, 2 teachers per stage"
    found = controls.comparison(Evidence(runs), *cell).set_index("set")
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
    assert controls.leading_settings(Evidence(runs), *cell, "mtt") == []
    assert not len(controls.comparison(Evidence(runs), *cell)), "MTT was not run as its preset says"


def test_what_differs_in_more_than_scale_short_leaves_open_stands_for_no_preset():
    for overrides in (SHORTER | {"mtt.syn_steps": 7}, {"network.width": 32}):
        runs = [make_short("seqmatch_mtt", overrides=overrides), make_short("mtt", iterations=(400,), overrides=overrides)]
        assert not len(controls.comparison(Evidence(runs), "cifar10", 10, "short"))
    reduced = [make_run(f"cifar10-ipc10-{method}", overrides=SHORTER) for method in ("mtt", "seqmatch_mtt")]
    assert controls.leading_settings(Evidence(reduced), *CELL, "mtt") == []


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
    found = controls.efforts(Evidence(runs, again), *CELL)
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


def test_a_run_of_another_size_s_preset_does_not_stand_beside_those_of_the_size_s_own():
    """The presets of two sizes may differ in anything, and `ipc` alone was compared."""
    resized = make_run("cifar10-ipc50-mtt", 1, (30.0, 32.0), None, {"ipc": 10, "subset_ipcs": [10]})
    assert resized.ipc == 10
    runs = [make_run("cifar10-ipc10-mtt"), make_sequence(), resized]
    pd.testing.assert_frame_equal(queries.subsets(Evidence(runs), *CELL), queries.subsets(Evidence(runs[:2]), *CELL))
    pd.testing.assert_frame_equal(controls.efforts(Evidence(runs), *CELL), controls.efforts(Evidence(runs[:2]), *CELL))
    without_own = make_run("cifar10-ipc50-mtt", 1, (30.0, 32.0), None, {"ipc": 7, "subset_ipcs": [7]})
    assert len(queries.subsets(Evidence([without_own]), "cifar10", 7, "reduced")) == 1


def test_what_was_measured_of_a_set_that_is_gone_is_left_out(tmp_path, capsys):
    """As after `run --force`: the new set has the name of the old one."""
    run = make_run("cifar10-ipc10-mtt")
    run.save(tmp_path)
    for again in (make_reevaluation(run, epochs=600), replace(make_reevaluation(run, epochs=900), synthetic_sha256="0" * 64)):
        again.save(tmp_path)
    (kept,) = Evidence.load(tmp_path).reevaluations
    assert kept.synthetic_sha256 == run.synthetic_sha256
    (notice,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"left out: .*reevaluations.* was measured on another set than that of {run.run_id} here", notice)
    sequence = make_sequence()
    sequence.save(tmp_path)
    make_order(tmp_path, 0, {"SeqMatch": [40.0, 42.0]})
    assert Evidence.load(tmp_path).orders == []
    (record,) = load_orders(tmp_path)
    replace(record, synthetic_sha256=sequence.synthetic_sha256).save(tmp_path)
    assert len(Evidence.load(tmp_path).orders) == 1


def test_one_question_asked_with_several_seeds_has_all_their_networks():
    mtt, again = make_run("cifar10-ipc10-mtt"), make_reevaluation(make_run("cifar10-ipc10-mtt"), epochs=600)
    other = replace(again, seed=1, accuracy={"convnet": accuracy(40.0, 44.0)})
    found = controls.comparison(Evidence([mtt, make_sequence()], [again, other]), *CELL).set_index("set")
    assert found.loc["one set, as many epochs", ["accuracy", "seeds", "n"]].tolist() == [36.5, 1, 4]


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
    found = controls.order(evidence, *CELL)
    assert found[["base", "set", "seeds", "accuracy", "difference"]].fillna(0).to_numpy().tolist() == [
        ["krr", ONE_SET, 1, 35.5, 2.5], ["krr", STAGED, 1, 38.0, 0], ["mtt", ONE_SET, 3, 31.5, 9.5],
        ["mtt", STAGED, 3, 41.0, 0], ["mtt", "sequence, S_2 first", 2, 20.5, 20.5],
    ]  # fmt: skip
    assert controls.order(evidence, *CELL, ["mtt.syn_lr=0.03"])["accuracy"].tolist() == [31.0]
    assert "independent halves: not run." in findings.find_order(evidence, *CELL)
    assert controls.order(evidence, "cifar10", 50, "reduced").empty


def test_halves_are_named_as_their_record_names_them_whatever_halves_are_taken_today(tmp_path):
    make_order(tmp_path, 0, {"SeqMatch": [40.0, 42.0], "divided, staged": [30.0, 32.0]})
    (record,) = load_orders(tmp_path)
    evidence = Evidence([], orders=[replace(record, other_half="cifar10-mtt-ipc5-k1-seed1000-01234567")])
    found = controls.order(evidence, *CELL).set_index("set")["records"]
    assert found[HALVES].endswith(", 01234567")
    assert found[STAGED] == digest_json(record.config)[:8]


def test_independent_parts_of_three_subsets_are_controls_and_are_not_called_halves(tmp_path):
    """As of the paper's own example, 50 images per class in three subsets."""
    preset, cell = "cifar10-ipc50-seqmatch_mtt", ("cifar10", 50, "reduced")
    config = RunConfig.from_preset(preset, "reduced")
    assert config.num_subsets == 3
    runs = [make_run("cifar10-ipc50-mtt"), make_run(preset, 0, (60.0, 62.0), (50.0, 52.0), None, (300,) * 3)]
    make_order(tmp_path, 0, {"divided, staged": [56.0, 58.0], "divided, joint": [50.0]}, preset=preset)
    evidence = Evidence(runs, orders=load_orders(tmp_path))
    found = controls.comparison(evidence, *cell).set_index("set")
    assert found.loc[HALVES, "difference"] == 4
    assert found.loc[HALVES, "records"].count(", ") == 2, "the sequence and two parts"
    pages = [
        findings.find_bases(evidence, *cell),
        findings.find_leads(evidence, "cifar10"),
        findings.find_order(evidence, *cell),
    ]
    pages += [str(format_frame(frame(evidence, *cell)).to_dict()) for frame in (controls.comparison, controls.order)]
    figures = [plot(evidence, *cell) for plot in (charts.plot_comparison, charts.plot_order)]
    pages += [str([label.get_text() for label in figure.axes[0].get_yticklabels()]) for figure in figures]
    plt.close("all")
    verdicts = list_verdicts(evidence, PUBLISHED, tmp_path)
    pages.append(
        verdicts[verdicts["claim"].eq("SeqMatch-MTT is ahead of MTT") & verdicts["measured"].ne("not run")].to_string()
    )
    for page in pages:
        assert "parts" in page
        assert "halves" not in page.split("\n- ")[-1]


def test_orders_of_another_form_are_refused(tmp_path):
    path = make_order(tmp_path, 0, {"SeqMatch": [40.0]})
    write_json(path, read_json(path) | {"accuracy": {"SeqMatch": ["high"]}})
    with pytest.raises(StorageError, match=rf"{path.name} is no valid record: \['accuracy'\] .*delete it to make it again"):
        load_orders(tmp_path)


def test_a_run_with_other_teacher_epochs_takes_no_place_of_its_preset():
    """Neither of one set, nor of the sequence where it has more seeds, nor in the means over K."""
    runs = [make_run("cifar10-ipc10-mtt", seed) for seed in range(2)] + [make_sequence(seed) for seed in range(2)]
    others = [make_run("cifar10-ipc10-mtt", 0, (11.0, 12.0), overrides={"intervals": [[0, 10]]})]
    others += [make_sequence(seed, (95.0, 96.0), {"intervals": [[0, 10], [0, 10]]}) for seed in range(3)]
    alone, together = (controls.comparison(Evidence(found), *CELL) for found in (runs, runs + others))
    assert alone[alone["seeds"] > 0]["set"].tolist() == ["random real", ONE_SET, SELECTED[ONE_SET], STAGED, JOINTLY]
    pd.testing.assert_frame_equal(alone, together)
    texts_of = [findings.find_subsets(Evidence(found), *CELL) for found in (runs, runs + others)]
    assert texts_of[0] == texts_of[1]
    assert "MTT 41.0 at K = 1 and 51.0 at K = 2" in texts_of[0]

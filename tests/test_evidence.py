"""The report: its blocks follow the records, its intervals cover what they should, its scores follow their definition."""

import re
from dataclasses import replace
from math import e
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SEED

from seqmatch_lib.__main__ import main
from seqmatch_lib.errors import StorageError
from seqmatch_lib.report import figures
from seqmatch_lib.report.evidence import BLOCK, Evidence, bootstrap_difference, render, robust_score
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.provenance import describe_provenance
from seqmatch_lib.runs.records import SCHEMA, OrderRecord, Reevaluation, load_orders, load_reevaluations, overrides_of
from seqmatch_lib.store.files import read_json, write_json

ROOT = Path(__file__).parents[1]
COMMITTED = Evidence.load(ROOT / "paper_results")
TEMPLATE = next(run for run in COMMITTED.runs if run.dataset == "cifar10")


def accuracy(*values):
    summary = {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)), "n": len(values), "values": list(values)}
    return summary | {"by_network": {"convnet": dict(summary)}}


def make_run(preset, seed=0, last=(40.0, 42.0), joint=None, overrides=None, iterations=(300,)):
    config = RunConfig.from_preset(preset, "reduced", seed, overrides)
    return replace(
        TEMPLATE, run_id=config.run_id, dataset=config.dataset, method=config.method, ipc=config.ipc, preset=preset,
        scale="reduced", num_subsets=config.num_subsets, seed=seed, config=config.as_dict(), config_hash=config.hash,
        overrides=overrides_of(config),
        accuracy_last=accuracy(*last), accuracy_selected=accuracy(*last), random_baseline=accuracy(20.0, 22.0),
        accuracy_joint=None if joint is None else accuracy(*joint), stages=[{"iterations": count} for count in iterations],
    )  # fmt: skip


def make_reevaluation(run, **changes):
    values = {
        "schema": SCHEMA, "run_id": run.run_id, "synthetic_sha256": "0", "joint": False, "seed": 0, "config": run.config,
        "accuracy": {"convnet": accuracy(30.0, 32.0)}, "random_baseline": {"convnet": accuracy(15.0, 17.0)}, "data": "",
        "seconds": 1.0, "device": "cpu", "device_name": "", "threads": 1, "torch": "", "python": "", "git_commit": "",
        "dirty": False, "uncompiled": [],
    }  # fmt: skip
    return Reevaluation(**values | changes)


def block(name, evidence):
    return render(f"<!-- evidence: {name} -->\nold\n<!-- end -->\n", evidence)


@pytest.mark.parametrize("page", ["README.md", "paper_results/REPORT.md"])
def test_committed_pages_say_what_the_records_say(page):
    text = (ROOT / page).read_text()
    assert BLOCK.search(text), "no block was found"
    assert render(text, COMMITTED) == text, "run `python -m seqmatch_lib report`"


def test_a_comparison_pools_seeds_and_leaves_changed_runs_out():
    runs = [make_run("cifar10-ipc10-mtt", seed, (40.0 + seed, 42.0 + seed)) for seed in range(3)]
    runs += [make_run("cifar10-ipc10-seqmatch_mtt", seed, (50.0, 52.0), (44.0, 46.0)) for seed in range(3)]
    runs.append(make_run("cifar10-ipc10-mtt", 0, (90.0, 90.5), overrides={"mtt.iterations": 600}))
    text = block("comparison cifar10 10 reduced", Evidence(runs, []))
    (row,) = [line for line in text.splitlines() if line.startswith("| mtt")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:8] == ["mtt", "2", "3", "6", "21.0 ± 0.0", "42.0 ± 1.0", "51.0 ± 0.0", "45.0 ± 0.0"]
    assert cells[8].startswith("+9.0 [")
    assert cells[9].startswith("+3.0 [")
    assert "90" not in text
    changed = block("changed cifar10 reduced", Evidence(runs, []))
    assert "mtt.iterations = 600" in changed
    assert changed.count("\n| ") == 3  # head, line, the changed run


@pytest.mark.parametrize("name", ["comparison", "subsets", "compute"])
def test_blocks_compare_runs_with_the_settings_that_they_name(name):
    runs = []
    changes = ({}, {"mtt.syn_steps": 7}, {"mtt.syn_steps": 9}, {"mtt.syn_steps": 7, "mtt.lr_lr": 1e-6})
    for changed, accuracies in zip(changes, ((40, 42), (60, 62), (80, 82), (90, 92)), strict=True):
        runs.append(make_run("cifar10-ipc10-mtt", 0, accuracies, overrides=changed))
        runs.append(make_run("cifar10-ipc10-seqmatch_mtt", 0, accuracies, (44, 46), changed, (300, 300)))
    settings = ("", " mtt.syn_steps=7", " mtt.syn_steps=9", " mtt.syn_steps=7 mtt.lr_lr=1e-06")
    for these, mean in zip(settings, (41, 61, 81, 91), strict=True):
        text = block(f"{name} cifar10 10 reduced{these}", Evidence(runs, []))
        assert set(re.findall(r"([4689]1)\.0 ±", text)) == {str(mean)}
    assert "Not run yet." in block(f"{name} cifar10 10 reduced mtt.syn_steps=8", Evidence(runs, []))


def test_a_report_on_different_images_is_refused(tmp_path):
    runs = [make_run("cifar10-ipc10-mtt", seed) for seed in (0, 1)]
    runs[1] = replace(runs[1], data=runs[1].data | {"fingerprint": "of a part"})
    for run in runs:
        run.save(tmp_path / "runs" / f"{run.run_id}.json")
    with pytest.raises(StorageError, match=r"are of different images of cifar10, which no table may mix"):
        Evidence.load(tmp_path)


def test_an_interval_needs_three_seeds():
    runs = [make_run("cifar10-ipc10-mtt"), make_run("cifar10-ipc10-seqmatch_mtt", 0, (50.0, 52.0), (44.0, 46.0))]
    assert "| +10.0 | +4.0 |" in block("comparison cifar10 10 reduced", Evidence(runs, []))


def test_settings_that_differ_from_the_preset_are_found():
    assert make_run("cifar10-ipc10-mtt").overrides == {}
    changed = make_run("cifar10-ipc10-mtt", overrides={"mtt.syn_steps": 7, "select_on": "test"})
    assert changed.overrides == {"mtt.syn_steps": 7, "select_on": "test"}


def test_the_bootstrap_covers_the_true_difference():
    """Two methods 3 points apart, seeds that scatter by 1, networks by 2: 95 % intervals of 8 seeds each."""
    generator = np.random.default_rng(SEED)

    def draw(mean):
        return [(mean + generator.normal(0, 1) + generator.normal(0, 2, 5)).tolist() for _ in range(8)]

    intervals = [bootstrap_difference(draw(40.0), draw(43.0), seed) for seed in range(100)]
    covered = sum(low < 3.0 < high for low, high in intervals)
    assert covered >= 82  # few seeds make intervals a little short; 82 of 100 is beyond bad luck for 92 %
    assert all(low < high for low, high in intervals)
    assert bootstrap_difference([[1.0], [1.0]], [[3.0], [3.0]]) == (2.0, 2.0)


def test_robust_scores_follow_their_definition():
    assert robust_score(1) == pytest.approx(100)
    assert robust_score(-1) == pytest.approx(0)
    assert robust_score(0) == pytest.approx(100 * (1 - 1 / e) / (e - 1 / e))
    run = make_run("cifar10-ipc10-mtt", last=(40.0, 42.0))
    whole = make_run("cifar10-whole", last=(70.0, 72.0))
    bare = make_reevaluation(run, config={**run.config, "training": {**run.config["training"], "augment": "none"}})
    text = block("robust cifar10 reduced", Evidence([run, whole], [make_reevaluation(run), bare]))
    label = robust_score(0.5 * (0.41 - 0.21) - 0.5 * (0.71 - 0.41))
    augment = robust_score(0.5 * (0.41 - 0.21) + 0.5 * (0.31 - 0.16))
    assert f"| {label:.1f} | {augment:.1f} |" in text
    with pytest.raises(StorageError, match=r"run cifar10-whole --scale reduced"):
        block("robust cifar10 reduced", Evidence([run], [bare]))


def test_faults_are_counted_by_kind():
    row = {"injected": 3, "right": 2, "crashes": 0, "losses": 1, "silent": 0, "other": 0}
    faults = {"rows": {"killed: here": row, "killed: there": row, "clock jumps back": row | {"losses": 0, "other": 1}}}
    fuzzing = {"targets": {"json": {"refused": 1000, "read": 500, "silent": 1, "examples": ["x"]}, "png": {"hang": 2}}}
    text = block("trust", Evidence([], [], trust={"faults": faults, "fuzzing": fuzzing}))
    assert "| killed | 6 | 0 | 2 | 0 |" in text
    assert "| clock jumps | 3 | 1 | 0 | 0 |" in text
    assert "| fuzzed inputs, 2 readers | 1,503 | 2 | 0 | 1 |" in text


def test_subsets_group_what_differs_in_sizes_and_intervals_alone():
    runs = [make_run("cifar10-ipc10-idc", seed) for seed in (0, 1)]
    thirds = {"subset_ipcs": [4, 3, 3]}
    runs += [make_run("cifar10-ipc10-seqmatch_idc", seed, (50.0 + seed, 52.0 + seed), (44.0, 46.0), thirds) for seed in (0, 1)]
    halves = {"intervals": [[0, 14], [7, 14]]}
    runs.append(make_run("cifar10-ipc10-seqmatch_mtt", 0, (46.0, 48.0), (40.0, 42.0), halves))
    runs.append(make_run("cifar10-ipc10-seqmatch_idc", 0, (90.0, 90.5), (90.0, 90.5), thirds | {"select_on": "test"}))
    rows = block("subsets cifar10 10 reduced", Evidence(runs, [])).splitlines()[3:-1]
    cells = [[cell.strip() for cell in row.strip("|").split("|")][:9] for row in rows]
    assert cells == [
        ["idc", "1", "10", "-", "2", "4", "21.0 ± 0.0", "41.0 ± 0.0", "-"],
        ["idc", "3", "4 + 3 + 3", "-", "2", "4", "21.0 ± 0.0", "51.5 ± 0.7", "45.0 ± 0.0"],
        ["mtt", "2", "5 + 5", "0 to 14; 7 to 14", "1", "2", "21.0 ± 1.4", "47.0 ± 1.4", "41.0 ± 1.4"],
    ]


def test_compute_sets_accuracies_beside_the_effort_behind_them():
    plain, sequence = "cifar10-ipc10-mtt", "cifar10-ipc10-seqmatch_mtt"
    longer, thirds = {"mtt.iterations": 600}, {"subset_ipcs": [4, 3, 3]}
    runs = [make_run(plain, 0, (40.0, 42.0)), make_run(plain, 0, (90.0, 90.5), overrides={"mtt.lr_img": 7.0})]
    runs += [make_run(plain, seed, (43.0 + seed, 45.0 + seed), None, longer, (600,)) for seed in range(3)]
    runs.append(make_run(sequence, 0, (60.0, 62.0), (44.0, 46.0), thirds, (300, 300, 300)))
    runs += [make_run(sequence, seed, (50.0, 52.0), (44.0, 46.0), None, (300, 300)) for seed in range(3)]
    reevaluations = [
        make_reevaluation(one, joint=joint, config={**one.config, "training": {**one.config["training"], **changes}})
        for one, joint, changes in [
            (runs[0], False, {"epochs": 600}), (runs[-1], True, {"epochs": 600}), (runs[-1], False, {"epochs": 500}),
            (runs[0], False, {"epochs": 600, "augment": "none"}),
        ]
    ]  # fmt: skip
    rows = block("compute cifar10 10 reduced", Evidence(runs, reevaluations)).splitlines()[3:-1]
    cells = [[cell.strip() for cell in row.strip("|").split("|")][1:11] for row in rows]
    assert cells[0] == ["10", "0 to 14", "300", "in one stage", "300", "1", "2", "41.0 ± 1.4", "-10.0", ""]
    assert cells[1] == ["10", "0 to 14", "300", "in one stage", "600", "1", "2", "31.0 ± 1.4", "-20.0", ""]
    assert cells[2][:8] == ["10", "0 to 14", "600", "in one stage", "300", "3", "6", "45.0 ± 1.0"]
    assert cells[2][8].startswith("-6.0 [")
    assert cells[3] == ["5 + 5", "0 to 14", "600", "in stages", "600", "3", "6", "51.0 ± 0.0", "", ""], "the reference"
    assert cells[4] == ["5 + 5", "0 to 14", "600", "in stages", "1000", "1", "2", "31.0 ± 1.4", "-20.0", ""]
    assert cells[5][:8] == ["5 + 5", "0 to 14", "600", "jointly", "300", "3", "6", "45.0 ± 0.0"]
    assert cells[5][9].startswith("+0.0 ["), "less the one set of 600 iterations and 300 epochs"
    assert cells[6] == ["5 + 5", "0 to 14", "600", "jointly", "600", "1", "2", "31.0 ± 1.4", "-20.0", ""]
    assert cells[7] == ["4 + 3 + 3", "0 to 14", "900", "in stages", "900", "1", "2", "61.0 ± 1.4", "+10.0", ""]
    assert cells[8] == ["4 + 3 + 3", "0 to 14", "900", "jointly", "300", "1", "2", "45.0 ± 1.4", "-6.0", ""]
    assert len(cells) == 9


def test_the_lead_over_random_images_by_their_number():
    runs = [make_run("cifar10-ipc10-dm", seed, (40.0, 42.0 + seed)) for seed in range(3)]
    runs.append(make_run("cifar10-ipc10-dm", 0, (22.0, 24.0), overrides={"ipc": 100, "subset_ipcs": [100]}))
    runs.append(make_run("cifar10-ipc10-dm", 0, (90.0, 90.5), overrides={"select_on": "test"}))
    runs.append(make_run("cifar10-ipc50-seqmatch_mtt", 0, (51.0, 53.0), (44.0, 46.0)))
    runs.append(make_run("cifar10-ipc10-seqmatch_mtt", 0, (90.0, 90.5), (44.0, 46.0), {"subset_ipcs": [3, 7]}))
    runs.append(make_run("cifar10-ipc10-mtt", 0, (90.0, 90.5), overrides={"ipc": 100, "subset_ipcs": [100]}))
    runs.append(make_run("cifar10-ipc100-mtt", 0, (31.0, 33.0)))
    text = block("lead cifar10 reduced", Evidence(runs, []))
    assert "| method | K | 10 images | 50 images | 100 images |" in text
    assert re.search(r"\| dm \| 1 \| \+20\.5 \[[^|]*\] \|  \| \+2\.0 \|", text)
    assert "| seqmatch_mtt | 3 |  | +31.0 |  |" in text
    assert "| mtt | 1 |  |  | +11.0 |" in text, "a preset of that size goes before a changed one of another"
    assert "| seqmatch_mtt | 2 |" not in text, "unequal subsets are another question"
    (axis,) = figures.plot_lead(Evidence(runs, []), "cifar10", "reduced").axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines["dm"] == [[10, 20.5], [100, 2]], "the mean of three seeds, and one"
    assert not {"mtt", "seqmatch_mtt"} & lines.keys(), "one size makes no line"
    assert sorted(axis.collections[0].get_offsets().tolist()) == [[10, 20], [10, 20.5], [10, 21], [100, 2]]


def make_order(folder, seed, accuracy, method="mtt", changes=None):
    config = RunConfig.from_preset(f"cifar10-ipc10-seqmatch_{method}", "reduced", seed, changes)
    record = OrderRecord(
        schema=SCHEMA, dataset=config.dataset, ipc=config.ipc, scale=config.scale, seed=seed, config=config.as_dict(),
        overrides=overrides_of(config), accuracy=accuracy, **describe_provenance(torch.device("cpu")),
    )  # fmt: skip
    return record.save(folder)


def test_orders_are_kept_a_seed_and_pooled(tmp_path):
    for seed in range(3):
        make_order(
            tmp_path, seed, {"MTT": [30.0 + seed, 32.0], "SeqMatch": [40.0, 42.0], "SeqMatch, $S_2$ first": [20.0, 21.0]}
        )
    make_order(tmp_path, 2, {"MTT": [32.0, 32.0], "SeqMatch": [40.0, 42.0]})  # takes the place of the one before
    make_order(tmp_path, 0, {"KRR": [35.0, 36.0], "SeqMatch": [38.0, 38.0]}, "krr")  # takes nobody's place
    text = block("order cifar10 10 reduced", Evidence([], [], load_orders(tmp_path)))
    assert "| mtt | MTT | 3 | 6 | 31.5 ± 0.5 | -9.5 [" in text
    assert "| mtt | SeqMatch | 3 | 6 | 41.0 ± 0.0 |  |" in text
    assert "| mtt | SeqMatch, S_2 first | 2 | 4 | 20.5 ± 0.0 | -20.5 |" in text
    assert "| krr | KRR | 1 | 2 | 35.5 ± 0.7 | -2.5 |" in text
    assert "Not run yet" in block("order cifar10 50 reduced", Evidence([], [], load_orders(tmp_path)))


def test_orders_of_changed_settings_are_kept_and_shown_apart(tmp_path):
    make_order(tmp_path, 0, {"SeqMatch": [40.0, 42.0]})
    make_order(tmp_path, 0, {"SeqMatch": [30.0, 32.0]}, changes={"mtt.syn_lr": 0.03})
    found = Evidence([], [], load_orders(tmp_path))
    assert len(found.orders) == 2
    assert "| mtt | SeqMatch | 1 | 2 | 41.0 ± 1.4 |" in block("order cifar10 10 reduced", found)
    assert "| mtt | SeqMatch | 1 | 2 | 31.0 ± 1.4 |" in block("order cifar10 10 reduced mtt.syn_lr=0.03", found)


def test_orders_of_another_form_are_refused(tmp_path):
    path = make_order(tmp_path, 0, {"SeqMatch": [40.0]})
    write_json(path, read_json(path) | {"accuracy": {"SeqMatch": ["high"]}})
    with pytest.raises(StorageError, match=rf"{path.name} is no valid record: \['accuracy'\] .*run 21_ablation_order again"):
        load_orders(tmp_path)


def test_reevaluations_show_what_was_changed():
    run = make_run("cifar10-ipc10-seqmatch_mtt", 0, joint=(1.0, 2.0))
    longer = {**run.config, "training": {**run.config["training"], "epochs": 600}}
    text = block("judged cifar10", Evidence([run], [make_reevaluation(run, joint=True, config=longer)]))
    start, end = "| seqmatch_mtt | 5 + 5 | 0 | jointly | training.epochs = 600 |", f"| 2 | `{run.config_hash[:8]}` |"
    assert f"{start} convnet | 31.0 ± 1.4 | 16.0 ± 1.4 | +15.0 {end}" in text


def test_unknown_blocks_and_pages_are_named(tmp_path, capsys):
    with pytest.raises(StorageError, match=r"evidence block 'nonsense' is unknown; use one of baselines"):
        block("nonsense", COMMITTED)
    assert main(["report", str(tmp_path / "absent.md")]) == 2
    assert "absent.md does not exist" in capsys.readouterr().err
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- evidence: baselines reduced -->\n<!-- end -->\nafter\n")
    for word in ("made anew", "unchanged"):
        assert main(["report", str(page), "--results", str(ROOT / "paper_results")]) == 0
        assert word in capsys.readouterr().out
    assert page.read_text().startswith("before\n")
    assert "| cifar10 | 10 |" in page.read_text()


def test_reevaluations_are_kept_once_a_question(tmp_path):
    run = make_run("cifar10-ipc10-mtt")
    paths = {make_reevaluation(run, joint=joint).save(tmp_path) for joint in (False, True, False)}
    assert len(paths) == 2
    assert {one.joint for one in load_reevaluations(tmp_path)} == {False, True}
    path = min(paths)
    path.write_text(path.read_text().replace('"joint"', '"Joint"'))
    with pytest.raises(StorageError, match=path.name):
        load_reevaluations(tmp_path)


def test_the_figure_has_a_point_a_seed():
    runs = [make_run("cifar10-ipc10-mtt", seed) for seed in range(3)]
    runs += [make_run("cifar10-ipc10-seqmatch_mtt", seed, joint=(44.0, 46.0)) for seed in range(2)]
    (axis,) = figures.plot_comparison(Evidence(runs, []), "cifar10", 10, "reduced").axes
    assert [len(container[0].get_xdata()) for container in axis.containers] == [3, 3, 2, 2]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["mtt\nseeds: 3 and 2"]


def test_the_figure_of_the_order_has_a_point_a_set_and_seed(tmp_path):
    for seed in range(2):
        make_order(tmp_path, seed, {"MTT": [30.0, 32.0], "SeqMatch": [40.0 + seed, 42.0]})
    make_order(tmp_path, 0, {"KRR": [35.0], "SeqMatch": [38.0]}, "krr")
    other, axis = figures.plot_order(Evidence([], [], load_orders(tmp_path)), "cifar10", 10, "reduced").axes
    assert sorted(tuple(point) for dots in other.collections for point in dots.get_offsets()) == [(35, 0), (38, 1)]
    points = [tuple(point) for dots in axis.collections for point in dots.get_offsets()]
    assert sorted(points) == [(31, 0), (31, 0), (41, 1), (41.5, 1)]
    (means,) = [line for line in axis.lines if line.get_label() == "mean"]
    assert list(means.get_xdata()) == [31, 41.25]


def test_the_figure_of_the_subsets_has_a_point_a_seed_at_every_number_of_them():
    runs = [make_run("cifar10-ipc10-mtt", seed, (40.0 + seed, 42.0)) for seed in range(2)]
    runs.append(make_run("cifar10-ipc10-seqmatch_mtt", 0, (50.0, 52.0), (44.0, 46.0)))
    runs.append(make_run("cifar10-ipc10-seqmatch_mtt", 0, (36.0, 38.0), (33.0, 35.0), {"subset_ipcs": [4, 3, 3]}))
    runs.append(make_run("cifar10-ipc10-seqmatch_mtt", 0, (90.0, 90.5), (44.0, 46.0), {"subset_ipcs": [3, 7]}))
    runs.append(make_run("cifar10-ipc10-dm"))
    (axis,) = figures.plot_subsets(Evidence(runs, []), "cifar10", 10, "reduced").axes
    assert axis.get_title() == "mtt", "one number of subsets makes no panel"
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines["in stages"] == [[1, 41.25], [2, 51], [3, 37]], "unequal subsets are another question"
    assert lines["jointly"] == [[1, 41.25], [2, 45], [3, 34]], "one subset is trained on at once in any case"
    assert lines["random real, in stages"] == [[1, 21], [2, 21], [3, 21]]
    assert axis.collections[1].get_offsets().tolist() == [[1, 41], [1, 41.5], [2, 51], [3, 37]]


def test_the_figure_of_the_effort_has_a_panel_for_each_method_with_a_sequence():
    runs = [make_run("cifar10-ipc10-mtt", seed, (40.0 + seed, 42.0)) for seed in range(2)]
    runs.append(make_run("cifar10-ipc10-seqmatch_mtt", 0, (50.0, 52.0), (44.0, 46.0), None, (300, 300)))
    runs.append(make_run("cifar10-ipc10-dm"))
    (axis,) = figures.plot_effort(Evidence(runs, []), "cifar10", 10, "reduced").axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == [
        "10 in one stage, 300 iterations, 300 epochs",
        "5 + 5 in stages, 600 iterations, 600 epochs",
        "5 + 5 jointly, 600 iterations, 300 epochs",
    ]
    points = sorted(tuple(point) for dots in axis.collections for point in dots.get_offsets())
    assert points == [(41, 0), (41.5, 0), (45, 2), (51, 1)]

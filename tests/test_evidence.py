"""Sets that were distilled with different numbers of teachers are shown, and never compared with each other."""

import shutil

import matplotlib.pyplot as plt
import pytest
from made_records import PUBLISHED, RESULTS, SHORTER, make_order, make_reevaluation, make_run, make_short

from seqmatch_lib.report import charts, controls, findings, queries
from seqmatch_lib.report.evidence import Evidence
from seqmatch_lib.report.tables import build_table, readme_table
from seqmatch_lib.report.verdicts import list_verdicts
from seqmatch_lib.runs.records import load_orders

CELL = ("cifar10", 10, "short")
MORE = {"teachers.num_teachers": 20, "mtt.iterations": 400}


@pytest.fixture
def runs():
    """One set with the teachers of the scale, its own 5; a pair with 2 of them; one set with 20."""
    pair = [make_short("mtt", last=(49.0, 51.0), iterations=(400,)), make_short("seqmatch_mtt", last=(53.0, 55.0))]
    return [*pair, make_short("mtt", 0, (63.0, 65.0), (400,), MORE), make_short("mtt", 0, (60.0, 62.0), (1500,), {})]


def teachers_of(evidence):
    return [run.config["teachers"]["num_teachers"] for run in evidence.runs]


def test_records_of_scale_short_are_parted_by_the_number_of_teachers(runs):
    evidence = Evidence([*runs, make_run("cifar10-ipc10-mtt")])
    assert list(map(teachers_of, evidence.parts("short"))) == [[5], [20], [2, 2]], "that of the scale, then most to fewest"
    assert evidence.parts("reduced") == [evidence], "other scales are whole"
    assert [scale for _, scale in evidence.parts_of(["short", "reduced"])] == ["short"] * 3 + ["reduced"]
    assert Evidence([]).parts("short") == [Evidence([])], "so that what asks finds nothing instead of failing"


def test_a_sequence_is_compared_with_sets_of_as_many_teachers_alone(runs):
    evidence = Evidence(runs)
    (found,) = [(part, scale) for part, scale in findings.shown_parts(controls.comparison, evidence, "cifar10", 10)]
    frame = controls.comparison(found[0], "cifar10", 10, found[1]).set_index("set")
    assert frame.loc["one set, as many iterations", "difference"] == 4
    claims = list_verdicts(evidence, PUBLISHED, RESULTS / "none")
    gain = claims[(claims["claim"] == "SeqMatch-MTT is ahead of MTT") & claims["scale"].str.startswith("short")]
    assert gain[["scale", "measured"]].to_numpy().tolist() == [
        ["short, 2 teachers per stage", "+4.0, 1 seed (one set, as many iterations)"]
    ]
    over_random = claims[(claims["claim"] == "MTT is ahead of random real images") & (claims["setting"].str.contains("10 im"))]
    assert over_random[["scale", "measured"]].to_numpy().tolist() == [
        ["short, 5 teachers", "+40.0, 1 seed"], ["short, 20 teachers", "+43.0, 1 seed"],
        ["short, 2 teachers", "+29.0, 1 seed"],
    ]  # fmt: skip
    reached = claims[claims["claim"] == "MTT: the published accuracy is reached"]
    assert reached["scale"].tolist() == ["short, 5 teachers", "short, 20 teachers", "short, 2 teachers"]


def test_the_lead_on_another_architecture_is_over_sets_of_as_many_teachers(runs):
    evidence = Evidence(runs, [make_reevaluation(run) for run in runs[:2]])
    for again in evidence.reevaluations:
        again.config["evaluation"] = {**again.config["evaluation"], "networks": ["vgg11"]}
        again.config["training"] = evidence.runs[0].config["training"]
        again.accuracy["vgg11"], again.random_baseline["vgg11"] = (
            again.accuracy.pop("convnet"),
            again.random_baseline.pop("convnet"),
        )
    ((part, scale),) = findings.shown_parts(queries.transfer, evidence, "cifar10", 10)
    frame = queries.transfer(part, "cifar10", 10, scale).set_index(["method", "network"])
    assert frame.loc[("seqmatch_mtt", "convnet"), "lead"] == 4
    assert "5 teachers" not in findings.find_transfer(part, "cifar10", 10, scale)


def test_an_ablation_of_order_belongs_to_the_part_of_its_run(tmp_path, runs):
    for changes in (None, SHORTER | {"mtt.iterations": 200}):
        make_order(tmp_path, 0, {"SeqMatch": [54.0], "divided, staged": [50.0]}, changes=changes, scale="short")
    evidence = Evidence(runs, orders=load_orders(tmp_path))
    assert [len(part.orders) for part in evidence.parts("short")] == [1, 0, 1]
    frame = controls.comparison(evidence.parts("short")[2], *CELL).set_index("set")
    assert frame.loc["independent halves, in stages", "difference"] == 4
    assert findings.find_leads(evidence, "cifar10").split("\n- ")[1:] == [
        "SeqMatch-MTT, 10 images per class, short, 2 teachers per stage: +4.0 (1 seed) against *one set, as many iterations*; "
        "+4.0 (1 seed) against *independent halves, in stages*"
    ]


def test_the_claim_is_told_in_three_sentences_with_its_controls(tmp_path, runs):
    make_order(
        tmp_path, 0, {"SeqMatch": [54.0], "divided, staged": [55.0]}, changes=SHORTER | {"mtt.iterations": 200}, scale="short"
    )
    said = findings.find_claim(Evidence(runs, orders=load_orders(tmp_path)), PUBLISHED, "cifar10", 10).splitlines()
    assert [line[:2] for line in said[2:]] == ["1.", "2.", "3."]
    assert "Published are 65.3 % with MTT and 66.2 % with SeqMatch-MTT" in said[2]
    assert said[2].endswith("we get 50.0 and 54.0 % with 2 teachers per stage.")
    ahead = "4.0 points ahead of *one set, as many iterations*"
    assert said[3].endswith(f"with 2 teachers per stage, {ahead} and 1.0 points behind *independent halves, in stages*.")
    assert said[4].endswith("it takes 3 seeds with all controls, and there is 1.")
    (alone,) = findings.find_claim(Evidence(runs[:1]), PUBLISHED, "cifar10", 10).splitlines()
    assert alone.startswith("Nothing yet")


def test_of_several_halves_the_best_are_the_control(tmp_path, runs):
    values = {"SeqMatch": [54.0], "divided, staged": [50.0], "divided, joint": [55.0]}
    make_order(tmp_path, 0, values, changes=SHORTER | {"mtt.iterations": 200}, scale="short")
    evidence = Evidence(runs, orders=load_orders(tmp_path))
    assert "-1.0 (1 seed) against *independent halves, jointly*" in findings.find_leads(evidence, "cifar10")


def test_tables_have_a_row_for_each_number_of_teachers(runs):
    table = build_table("cifar10", runs, PUBLISHED)
    rows = table[table["seeds"] > 0][["method", "teachers", "iterations", "ours"]]
    assert rows.to_numpy().tolist() == [
        ["mtt", 5, 1500, 61], ["mtt", 20, 400, 64], ["mtt", 2, 400, 50], ["seqmatch_mtt", 2, 400, 54],
    ]  # fmt: skip
    lines = readme_table(Evidence(runs), PUBLISHED).split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [(cell[2], cell[8], cell[9]) for cell in cells] == [
        ("MTT", "5", "1,500"), ("MTT", "20", "400"), ("MTT", "2", "400"), ("SeqMatch-MTT", "2", "400"),
    ]  # fmt: skip


def test_the_figure_of_the_controls_has_a_panel_for_each_number_of_teachers(runs):
    one = charts.plot_comparison(Evidence(runs), *CELL)
    assert [axis.get_title() for axis in one.axes] == ["MTT"]
    assert one.get_suptitle() == "CIFAR-10, 10 images per class, short, 2 teachers per stage"
    runs.append(make_short("seqmatch_mtt", 0, (62.0, 64.0), (1500, 1500), {}))
    both = charts.plot_comparison(Evidence(runs), *CELL)
    assert [axis.get_title() for axis in both.axes] == ["MTT\n5 teachers per stage", "MTT\n2 teachers per stage"]
    assert both.get_suptitle() == "CIFAR-10, 10 images per class, short"
    plt.close("all")


def test_pictures_are_of_sets_of_as_many_teachers(tmp_path):
    """Of the most sets that a number of teachers has: not MTT with some teachers beside a sequence with others."""
    pair = [run for run in Evidence.load(RESULTS).parts("short")[-1].runs if (run.ipc, run.seed) == (10, 0)]
    for run in pair:
        run.save(tmp_path)
        for kind in ("safetensors", "png"):
            path = RESULTS / "distilled" / f"{run.run_id}.{kind}"
            (tmp_path / "distilled").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "distilled")
    alone = make_short("mtt", 0, (60.0, 62.0), (1500,), {})
    alone.save(tmp_path)
    for kind in ("safetensors", "png"):
        shutil.copy(RESULTS / "distilled" / f"{pair[0].run_id}.{kind}", tmp_path / "distilled" / f"{alone.run_id}.{kind}")
    figure = charts.plot_distilled(tmp_path)
    assert figure.get_suptitle() == "CIFAR-10, 10 images per class, short, 2 teachers per stage, seed 0"
    assert [axis.get_title().split("\n")[0] for axis in figure.axes] == ["MTT", "SeqMatch-MTT", "SeqMatch-MTT"]
    plt.close("all")


def test_a_control_that_was_scored_or_evaluated_more_often_counts(runs):
    """The last iterate of one set does not depend on how often it is scored; what follows a selected S_1 does."""
    longer = {"mtt.iterations": 3000, "evaluation.num_selections": 30}
    runs.append(make_short("seqmatch_mtt", 0, (62.0, 64.0), (1500, 1500), {}))
    runs.append(make_short("mtt", 0, (61.0, 62.0), (3000,), longer))
    frame = controls.comparison(Evidence(runs).parts("short")[0], *CELL).set_index("set")
    assert frame.loc[["one set", "one set, as many iterations"], "difference"].tolist() == [2, 1.5]
    other_first = make_short("seqmatch_mtt", 1, (70.0, 72.0), (1500, 1500), {"evaluation.num_selections": 30})
    frame = controls.comparison(Evidence([*runs, other_first]).parts("short")[0], *CELL).set_index("set")
    assert frame.loc["sequence, in stages", "seeds"] == 1


def test_of_runs_that_differ_in_their_number_of_networks_that_of_the_preset_counts(runs):
    """Else the one with most networks; two of one seed cannot both count."""
    runs.append(make_short("seqmatch_mtt", 0, (62.0, 64.0), (1500, 1500), {}))
    few, many = (50.0, 52.0), (40.0, 41.0, 42.0)
    more = [make_short("mtt", 0, values, (1500,), {"evaluation.num_networks": len(values)}) for values in (few, many)]
    for known, expected in ((runs, 2.0), ([run for run in runs if run.method != "mtt"], 22.0)):
        frame = controls.comparison(Evidence([*more, *known]).parts("short")[0], *CELL).set_index("set")
        assert frame.loc["one set", "difference"] == expected


def test_every_last_iterate_is_drawn_once(tmp_path, runs):
    runs.append(make_short("seqmatch_mtt", 0, (62.0, 64.0), (1500, 1500), {}))
    runs.append(make_short("mtt", 0, (61.0, 62.0), (3000,), {"mtt.iterations": 3000}))
    for run in runs:
        run.stages[0]["test_scores"] = [[100, 50.0]]
    *_, ends = charts.plot_curves(Evidence(runs), PUBLISHED, tmp_path, *CELL).axes
    names = [text.get_text() for text in ends.get_yticklabels()]
    assert len(names) == len(set(names))
    assert [name for name in names if "one set" in name] == [
        "one set, 5 teachers, 1,500 iterations", "one set, as many iterations, 5 teachers, 3,000 iterations",
        "one set, 20 teachers, 400 iterations, seed 0", "one set, as many iterations, 2 teachers, 400 iterations",
    ]  # fmt: skip
    plt.close("all")


@pytest.mark.parametrize(
    ("changes", "iterations", "is_short"),
    [
        (SHORTER, 1500, True), ({"mtt.iterations": 100}, 100, True), ({"evaluation.num_networks": 3}, 1500, False),
        ({"teachers.num_teachers": 20}, 1500, False), ({"mtt.iterations": 3000}, 3000, False),
    ],
)  # fmt: skip
def test_cut_short_is_what_has_fewer_teachers_or_iterations(changes, iterations, is_short):
    evidence = Evidence([make_short("mtt", 0, (60.0, 62.0), (iterations,), changes)])
    claims = list_verdicts(evidence, PUBLISHED, RESULTS / "none").set_index("claim")["verdict"]
    seen = "cut short: 1 seed" if is_short else "1 seed"
    assert claims["MTT: the published accuracy is reached"] == f"not decided ({seen})"


def test_one_set_without_a_sequence_is_no_ablation_of_k(runs):
    own = Evidence(runs).parts("short")[0]
    assert "Only one K was run" in findings.find_subsets(own, *CELL)
    with pytest.raises(charts.NothingToDraw):
        charts.plot_effort(own, *CELL)


def test_rows_of_one_claim_on_one_setting_follow_each_other(runs):
    claims = list_verdicts(Evidence([*runs, make_run("cifar10-ipc1-mtt", scale="short")]), PUBLISHED, RESULTS / "none")
    keys = [*zip(claims["claim"], claims["setting"], strict=True)]
    assert len([key for key, before in zip(keys, [None, *keys], strict=False) if key != before]) == len(set(keys))

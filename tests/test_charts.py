"""Figures of records: every seed is a point, every panel has its controls."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
from made_records import CELL, HALF, make_order, make_reevaluation, make_run, make_sequence

from seqmatch_lib.report import charts
from seqmatch_lib.report.controls import JOINTLY, ONE_SET, STAGED
from seqmatch_lib.report.evidence import Evidence
from seqmatch_lib.runs.records import load_orders


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def points_of(axis):
    """The points of a panel: mean accuracy, and row from the top, to which seeds lie a little above and below."""
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    return sorted((x, round(y)) for line in dots for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_the_figure_of_a_comparison_has_a_point_a_seed_and_a_row_for_what_was_run():
    runs = [make_run("cifar10-ipc10-mtt", seed) for seed in range(3)] + [make_sequence(seed) for seed in range(2)]
    (axis,) = charts.plot_comparison(Evidence(runs), *CELL).axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["random real", ONE_SET, STAGED, "sequence, jointly"]
    assert points_of(axis) == [(41, 1)] * 3 + [(45, 3)] * 2 + [(51, 2)] * 2
    assert [text.get_text() for text in axis.texts] == ["← 21.0, off the axis"], "random real images are far from all others"
    with pytest.raises(charts.NothingToDraw, match="there are no records to draw of CIFAR-10, 50 images"):
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
    *dotted, named = [line for line in axis.lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in dotted] == [41, 41.5], (
        "a line for each seed of the sequence, not one at their mean"
    )
    assert named.get_color() not in [line.get_color() for line in dotted], "the legend's line belongs to no seed"
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_color() for line in dotted] == [line.get_color() for line in dots]


def test_the_figure_of_the_subsets_has_the_control_of_equal_epochs():
    runs = [make_run("cifar10-ipc10-mtt", seed, (40.0 + seed, 42.0)) for seed in range(2)]
    runs += [make_sequence(), make_sequence(0, (36.0, 38.0), HALF, (300,) * 3)]
    runs.append(make_sequence(0, (90.0, 90.5), {"subset_ipcs": [3, 7]}))  # unequal subsets are another question
    runs.append(make_run("cifar10-ipc10-dm"))  # one number of subsets makes no panel
    evidence = Evidence(runs, [make_reevaluation(runs[0], epochs=600)])
    (axis,) = charts.plot_subsets(evidence, *CELL).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert axis.get_title() == "MTT"
    assert lines[STAGED] == [[1, 41], [2, 51], [3, 37]], "lines are of seed 0, which every K has"
    assert lines[JOINTLY] == [[1, 41], [2, 45], [3, 45]], "one subset is trained on at once in any case"
    assert lines["one set, as many epochs"] == [[1, 41], [2, 31]]
    assert lines["random real, in stages"] == [[1, 21], [2, 21], [3, 21]]
    points = [line.get_xydata().tolist() for line in axis.lines if line.get_linestyle() == "None"]
    assert points[1] == [[1, 41], [1, 41.5], [2, 51], [3, 37]]
    (axis,) = charts.plot_subsets(Evidence(runs, [make_reevaluation(runs[1], epochs=600)]), *CELL).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert not lines["one set, as many epochs"], "no line of seed 1 beside those of seed 0"


def test_the_figure_of_the_effort_has_a_panel_for_each_method_with_a_sequence():
    runs = [make_run("cifar10-ipc10-mtt", seed, (40.0 + seed, 42.0)) for seed in range(2)]
    runs += [make_sequence(), make_run("cifar10-ipc10-dm")]
    charts.set_style()
    figure = charts.plot_effort(Evidence(runs), *CELL)
    figure.draw_without_rendering()  # warns, so fails, if title and legend leave the panel no room
    (axis,) = figure.axes
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

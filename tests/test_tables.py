"""Tables: every cell has its row, missing ones say so, nothing is compared that should not be, files follow the records."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from made_records import COMMITTED, PUBLISHED, RESULTS, TEMPLATE, make_run

from seqmatch_lib.__main__ import main
from seqmatch_lib.bench.cost import CostModel, format_pending
from seqmatch_lib.bench.report import load_benchmark, newest_benchmark
from seqmatch_lib.data.datasets import PAPER_DATASETS
from seqmatch_lib.errors import StorageError
from seqmatch_lib.front import records as accuracies_of
from seqmatch_lib.report import charts
from seqmatch_lib.report.evidence import Evidence
from seqmatch_lib.report.tables import (
    build_table,
    describe_table,
    format_table,
    list_missing,
    load_published,
    readme_table,
    to_markdown,
    write_tables,
)
from seqmatch_lib.runs.config import preset_names

RECORDS = COMMITTED.runs


def as_run_of(preset, scale="paper", seed=0, mean=60.0, overrides=None, iterations=1500):
    """A record of two networks that reach this accuracy on average, of two minutes."""
    run = make_run(preset, seed, (mean - 1, mean + 1), None, overrides, (iterations,), scale)
    return replace(run, seconds={"evaluation": 120.0})


def row_of(table, preset, scale):
    (row,) = table[(table["preset"] == preset) & (table["scale"] == scale)].to_dict("records")
    return row


def shown(dataset, preset):
    table = build_table(dataset, [], PUBLISHED)
    (row,) = format_table(table)[(table["preset"] == preset).to_numpy()].to_dict("records")
    return row


def test_tables_of_which_every_cell_was_run_are_written(tmp_path):
    for name in preset_names():
        if name.startswith("svhn-"):
            as_run_of(name).save(tmp_path)
    write_tables(Evidence.load(tmp_path), PUBLISHED, tmp_path)
    table, *compared = (tmp_path / "tables" / "svhn.md").read_text().split("## The sequence and its controls: ")
    assert "not run" not in table
    assert [part.splitlines()[0] for part in compared] == [
        "SVHN, 10 images per class, paper",
        "SVHN, 50 images per class, paper",
    ]
    assert "| SeqMatch" not in compared[0]
    assert "| sequence, in stages " in compared[0]


@pytest.mark.parametrize("dataset", PAPER_DATASETS)
def test_every_cell_has_a_row_and_missing_ones_give_the_command(dataset):
    table = build_table(dataset, [], PUBLISHED)
    assert sorted(table["preset"]) == sorted(name for name in preset_names() if name.startswith(f"{dataset}-"))
    assert (table["seeds"] == 0).all()
    assert (format_table(table)["ours"] == "not run").all()
    assert list_missing(table)["ipc"].tolist() == format_table(table)["ipc"].tolist(), "all, not 0, for a whole data set"
    commands = list_missing(table, "short")["command"]
    assert (commands == "python -m seqmatch_lib run " + table["preset"] + " --scale short").all()


def test_runs_with_and_without_mirrored_images_are_told_apart():
    """A mirrored digit of SVHN may be another one or none, so these accuracies do not compare."""
    settings = build_table("svhn", [], PUBLISHED)
    runs = [as_run_of(f"svhn-ipc10-{method}", "reduced") for method in ("mtt", "dm", "idc")]
    said, alike = (describe_table(settings, build_table("svhn", some, PUBLISHED, ("reduced",))) for some in (runs, runs[:2]))
    assert "mirrored images, too, for DM, MTT, and not for IDC: do not compare across them" in said
    assert "mirrored" not in alike


def test_published_numbers_stand_as_printed_with_a_dagger_if_unchecked():
    assert shown("cifar10", "cifar10-ipc10-mtt")["published"] == "65.3 ± 0.7"
    assert shown("cifar10", "cifar10-ipc50-seqmatch_mtt")["published"] == "74.4 ± 0.5†"
    assert shown("cifar10", "cifar10-ipc10-random")["published"] == "26.0 ± 1.2; augmented 31.0"
    assert shown("cifar10", "cifar10-ipc500-random")["published"] == "73.2 ± 0.3, augmented", "known with augmentation alone"
    assert (shown("cifar10", "cifar10-whole")["ipc"], shown("cifar10", "cifar10-whole")["published"]) == ("all", "84.8 ± 0.1")
    assert shown("cifar10", "cifar10-ipc10-seqmatch_dm")["published"] == ""
    assert shown("svhn", "svhn-ipc1-idc")["published"] == "68.5"
    assert shown("cifar100", "cifar100-ipc10-seqmatch_idc")["published"] == "45.1 ± 0.3† (doubtful)"


def test_only_published_settings_stand_beside_published_numbers():
    preset = "cifar10-ipc10-mtt"
    records = [as_run_of(preset), as_run_of(preset, "reduced", mean=40.0), as_run_of(preset, "short", mean=64.0)]
    table = build_table("cifar10", records, PUBLISHED)
    assert set(table["scale"]) == {"paper", "short"}
    paper, short = (row_of(table, preset, scale) for scale in ("paper", "short"))
    assert (paper["ours"], paper["n"], paper["teachers"]) == (60.0, 2, 100)
    assert paper["core_hours"] == pytest.approx(2 * TEMPLATE.threads / 60)
    assert (paper["difference"], short["difference"], short["teachers"]) == (pytest.approx(-5.3), pytest.approx(-1.3), 5)
    rehearsal = build_table("cifar10", records, PUBLISHED, ("reduced",))
    assert rehearsal["ours"].tolist() == [40.0]
    assert not {"published", "published_std", "difference"} & set(rehearsal.columns)
    assert format_table(rehearsal)["scale"].tolist() == ["rehearsal (reduced)"]


def test_random_images_are_compared_with_those_trained_on_with_augmentation():
    table = build_table("cifar10", [as_run_of("cifar10-ipc10-random", mean=33.0)], PUBLISHED)
    assert row_of(table, "cifar10-ipc10-random", "paper")["difference"] == 2.0


def test_a_part_of_a_data_set_is_told_from_the_whole():
    part, whole = as_run_of("cifar10-ipc10-mtt"), as_run_of("cifar10-ipc10-mtt", seed=1)
    part, whole = (replace(run, data=run.data | {"train_images": count}) for run, count in ((part, 9000), (whole, 45000)))
    whole = replace(whole, data=whole.data | {"fingerprint": "of the whole"})
    assert row_of(build_table("cifar10", [part], PUBLISHED), "cifar10-ipc10-mtt", "paper")["train_images"] == 9000
    message = r"seed0-\w+ \(9,000 train images\) and .*seed1-\w+ \(45,000\b.* different images of cifar10.* another results"
    with pytest.raises(StorageError, match=message):
        build_table("cifar10", [part, whole], PUBLISHED)
    build_table("cifar10", [part, replace(whole, scale="reduced")], PUBLISHED)  # scales are not compared
    build_table("svhn", [part, whole], PUBLISHED)


def test_seeds_are_pooled_and_other_settings_left_out():
    preset = "cifar10-ipc10-seqmatch_mtt"
    changed = as_run_of(preset, mean=99.0, overrides={"mtt.syn_steps": 3})
    records = [as_run_of(preset, seed=0, mean=60.0), as_run_of(preset, seed=1, mean=64.0), changed]
    row = row_of(build_table("cifar10", records, PUBLISHED), preset, "paper")
    assert (row["seeds"], row["n"], row["ours"]) == (2, 4, 62.0)
    assert row["ours_std"] == pytest.approx(8**0.5), "over the means of the seeds"


def test_the_readme_has_what_ran_at_published_settings_and_no_rehearsal():
    ran = [
        ("svhn-ipc10-dm", "reduced", 60.0), ("svhn-ipc10-seqmatch_dm", "reduced", 50.0), ("cifar10-ipc10-mtt", "short", 64.0),
        ("cifar10-ipc50-mtt", "reduced", 40.0), ("cifar10-ipc50-random", "paper", 43.0),
        ("cifar10-ipc10-idc", "reduced", 41.0), ("cifar10-ipc10-seqmatch_idc", "paper", 42.0),
    ]  # fmt: skip
    runs = [as_run_of(preset, scale, mean=mean) for preset, scale, mean in ran]
    lines = readme_table(Evidence(runs), PUBLISHED).split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()[2:]]
    assert [row[:5] for row in rows] == [
        ["CIFAR-10", "10", "SeqMatch-IDC", "68.3 ± 0.5†", "42.0 ± 1.4"],
        ["CIFAR-10", "10", "MTT", "65.3 ± 0.7", "64.0 ± 1.4"],
        ["CIFAR-10", "50", "random real", "43.4 ± 1.0; augmented 50.6", "43.0 ± 1.4"],
    ]
    assert rows[1][5:] == ["64.0 ± 1.4", "21.0 ± 1.4", "short", "5", "1,500", "1 (2)"]


def test_the_table_in_words():
    runs = [as_run_of("cifar10-ipc10-mtt", "short", seed, 64.0) for seed in range(3)]
    runs.append(as_run_of("cifar10-ipc10-mtt", "short", 0, 65.0, {"teachers.num_teachers": 20}))
    settings, rehearsal = (build_table("cifar10", runs, PUBLISHED, scales) for scales in (("paper", "short"), ("reduced",)))
    text = describe_table(settings, rehearsal)
    assert "25 cells have a published number. We ran 0 of them at scale `paper` and 1 of them at scale `short`" in text
    assert "MTT at ipc 10, short, 5 teachers: 64.0 (-1.3), selected iterate 64.0" in text
    assert "MTT at ipc 10, short, 20 teachers: 65.0 (-0.3)" in text
    assert "1 to 3 at scales `paper` and `short`, 0 in rehearsals" in text


def test_the_committed_tables_and_figures_are_what_the_records_say(tmp_path):
    remedy = "run `python -m seqmatch_lib tables`"
    evidence = Evidence.load(RESULTS)
    written = write_tables(evidence, PUBLISHED, tmp_path)
    written += charts.write_figures(evidence, PUBLISHED, RESULTS, tmp_path)
    for path in written:
        committed = RESULTS / path.relative_to(tmp_path)
        assert committed.is_file(), f"{committed} is missing: {remedy}"
        assert committed.read_text() == path.read_text(), f"{committed}: {remedy}"
    kept = {path.stem for folder in ("tables", "figures") for path in (RESULTS / folder).iterdir()}
    assert kept == {path.stem for path in written}


def test_a_markdown_table_has_a_line_for_each_row():
    table = format_table(build_table("svhn", [], PUBLISHED))
    lines = to_markdown(table).splitlines()
    assert len(lines) == 2 + len(table)
    assert {line.count("|") for line in lines} == {len(table.columns) + 1}


def test_published_numbers_are_complete_and_name_their_source():
    assert not PUBLISHED.duplicated(["dataset", "ipc", "method"]).any()
    assert set(PUBLISHED["dataset"]) == set(PAPER_DATASETS)
    assert PUBLISHED["mean"].between(0, 100).all()
    assert (PUBLISHED["source"] != "").all()
    assert PUBLISHED["check"].str.contains("read in|^unverified(?:, doubtful)?$").all()
    with pytest.raises(StorageError, match="accuracy.csv is missing; it belongs to the repository"):
        load_published("nowhere")


def test_accuracies_become_one_row_a_network(tmp_path):
    for seed, mean in ((0, 50.0), (1, 60.0)):
        run = as_run_of("cifar10-ipc10-mtt", seed=seed, mean=mean)
        run.save(tmp_path)
    frame = accuracies_of(tmp_path)
    columns = ["dataset", "ipc", "method", "num_subsets", "scale", "run_id", "seed", "training", "network", "accuracy"]
    assert list(frame.columns) == columns
    assert frame[frame["training"] == "last"]["accuracy"].tolist() == [49.0, 51.0, 59.0, 61.0]
    assert set(frame["training"]) >= {"last", "selected", "random"}


def test_the_command_writes_tables_and_lists_what_is_pending(tmp_path, capsys, monkeypatch):
    """A folder of one's own, also of the repository's name, takes the published numbers from the repository."""
    monkeypatch.chdir(tmp_path)
    own = [one for one in RECORDS if one.dataset == "svhn"]
    for record in own:
        record.save(tmp_path / "paper_results")
    assert main(["tables"]) == 0
    assert sum("/tables/" in line for line in capsys.readouterr().out.splitlines()) == 2 * len(PAPER_DATASETS)
    assert main(["tables", "--readme"]) == 0
    assert capsys.readouterr().out == readme_table(Evidence(own), PUBLISHED)
    assert main(["tables", "--results", "mistyped"]) == 2
    assert "mistyped holds no records; make one with" in capsys.readouterr().err
    assert not (tmp_path / "mistyped").exists()
    with pytest.raises(SystemExit):
        main(["tables", "--help"])
    assert "show every run" in " ".join(capsys.readouterr().out.split())
    assert main(["tables", "--readme", "--results", str(RESULTS)]) == 0
    assert capsys.readouterr().out == readme_table(Evidence.load(RESULTS), PUBLISHED)
    assert main(["tables", "--pending", "--scale", "paper", "--results", str(RESULTS)]) == 0
    out = capsys.readouterr().out
    done = {record.preset for record in RECORDS if record.scale == "paper" and not record.overrides}
    assert f"{len(preset_names()) - len(done)} of {len(preset_names())} presets have no record at scale paper" in out
    assert ["cifar10", "seqmatch_mtt", "10,", "50,", "100,", "200,", "500"] in [line.split()[:7] for line in out.splitlines()]


def test_a_run_with_changed_settings_leaves_its_cell_pending():
    benchmark = load_benchmark(newest_benchmark(RESULTS / "benchmarks"))
    changed = as_run_of("svhn-ipc10-mtt", overrides={"mtt.iterations": 10})
    records = [*(as_run_of(f"svhn-ipc{ipc}-random") for ipc in (1, 10, 50)), changed]
    lines = [line.split() for line in format_pending("paper", CostModel(benchmark, records)).splitlines()]
    assert ["svhn", "mtt", "1,", "10,", "50"] in [line[:5] for line in lines]
    assert ["svhn", "random"] not in [line[:2] for line in lines]


def test_at_scale_short_the_longest_run_stands_for_a_preset_that_was_not_run():
    """And its numbers of iterations and teachers stand beside it."""
    preset, two = "svhn-ipc10-mtt", {"teachers.num_teachers": 2}
    runs = [
        as_run_of(preset, "short", 0, 50.0, two | {"mtt.iterations": 100}, 100),
        as_run_of(preset, "short", 0, 55.0, two | {"mtt.iterations": 300}, 300),
        as_run_of(preset, "short", 0, 90.0, {"mtt.syn_steps": 7}),
    ]
    row = row_of(build_table("svhn", runs, PUBLISHED), preset, "short")
    assert (row["ours"], row["iterations"], row["teachers"], row["seeds"]) == (55, 300, 2, 1)


def draw(published, records, dataset="svhn"):
    """Returns the panels of ipc 10: rows from below, as `method: [means of ours]`, one a panel."""
    figure = charts.plot_table(published, records, dataset)
    rows = [axis for axis in figure.axes if "10 images" in axis.get_title()]
    firsts = {round(axis.get_position().y0, 3): axis for axis in figure.axes if axis.get_subplotspec().is_first_col()}
    panels = {}
    for axis in rows:
        names = [label.get_text() for label in firsts[round(axis.get_position().y0, 3)].get_yticklabels()]
        points = [tuple(point) for found in axis.containers if hasattr(found, "has_xerr") for point in found[0].get_xydata()]
        panels[axis.get_title()] = names, sorted((names[round(y)], x) for x, y in points)
    plt.close(figure)
    return panels


def test_the_figure_shows_runs_of_the_presets_alone():
    plain = as_run_of("svhn-ipc10-mtt", mean=60.0)
    changed = as_run_of("svhn-ipc10-mtt", mean=80.0, overrides={"mtt.iterations": 10})
    assert draw(PUBLISHED, [plain, changed])["10 images per class"][1] == [("MTT", 60.0)]


def test_the_figure_draws_each_number_of_teachers_and_writes_it_beside_the_circles():
    two, five = {"teachers.num_teachers": 2, "mtt.iterations": 400}, {}
    runs = [
        as_run_of("cifar10-ipc10-mtt", "short", mean=mean, overrides=changes) for mean, changes in ((50.0, two), (58.0, five))
    ]
    runs.append(as_run_of("cifar10-ipc10-seqmatch_mtt", "short", mean=54.0, overrides=two))
    runs.append(as_run_of("cifar10-ipc10-seqmatch_mtt", "short", mean=54.0, overrides=five))
    drawn = draw(PUBLISHED, runs, "cifar10")["10 images per class"][1]
    assert drawn == [("MTT", 50.0), ("MTT", 58.0), ("SeqMatch-MTT", 54.0), ("SeqMatch-MTT", 54.0)]
    figure = charts.plot_table(PUBLISHED, runs, "cifar10")
    (axis,) = [axis for axis in figure.axes if axis.get_title() == "10 images per class"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    beside = [(names[round(text.xy[1])], text.xy[0], text.get_text()) for text in axis.texts]
    assert beside == [("MTT", 50.0, "2"), ("MTT", 58.0, "5"), ("SeqMatch-MTT", 54.0, "2"), ("SeqMatch-MTT", 54.0, "5")]
    assert len({text.xy[1] for text in axis.texts}) == 4, "equal accuracies do not hide each other"
    note = figure.legends[0].get_title().get_text()
    assert "10 images per class, MTT: 2 teachers, 1,500 iterations; 5 teachers, 1,500 iterations\n" in note
    assert "10 images per class, SeqMatch-MTT: 2 teachers, " in note
    plt.close(figure)


def test_rehearsals_are_never_drawn_over_published_bars():
    records = [as_run_of(f"svhn-ipc10-{method}", "reduced", mean=mean) for method, mean in (("mtt", 70.0), ("dm", 60.0))]
    panels = draw(PUBLISHED, [*records, as_run_of("svhn-ipc10-idc", "short", mean=80.0)])
    assert panels["10 images per class"][1] == [("IDC", 80.0)]
    assert panels["rehearsal (reduced)\n10 images per class"][1] == [("DM", 21.0), ("DM", 60.0), ("MTT", 21.0), ("MTT", 70.0)]


def test_methods_without_a_published_number_have_a_fixed_order_in_the_figure():
    """They once stood as a set gave them out, so that equal records made unequal figures."""
    names = ["dm", "krr", "seqmatch_dm", "seqmatch_krr"]
    unknown = PUBLISHED[~PUBLISHED["method"].isin(names)]
    panels = draw(unknown, [as_run_of(f"svhn-ipc10-{name}", mean=60.0) for name in reversed(names)])
    assert panels["10 images per class"][0][: len(names)] == ["DM", "KRR", "SeqMatch-DM", "SeqMatch-KRR"]


def test_a_method_without_the_smallest_size_is_not_ahead_by_that_alone():
    found = [("a", 1, 50.0), ("b", 1, 40.0), ("a", 10, 70.0), ("c", 10, 65.0), ("b", 10, 60.0)]
    rows = pd.DataFrame(found, columns=["method", "ipc", "mean"])
    published = rows.assign(dataset="svhn", std=1.0, check="read in", source="")
    assert draw(published, [])["10 images per class"][0] == ["b", "c", "a"]


def test_a_data_set_without_any_number_makes_no_figure():
    with pytest.raises(StorageError, match="digits has no published accuracies and no records"):
        charts.plot_table(PUBLISHED, [], "digits")

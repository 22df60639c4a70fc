"""Figures: what is drawn, not how it looks."""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from seqmatch_lib.errors import ConfigError, StorageError
from seqmatch_lib.report import charts, figures
from seqmatch_lib.report.controls import SETS
from seqmatch_lib.report.looks import look_of
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.experiment import run_experiment
from seqmatch_lib.runs.records import load_runs

ROOT = Path(__file__).parents[1]

QUICK = {"mtt.iterations": 6, "training.epochs": 2, "evaluation.num_networks": 1, "evaluation.num_selections": 3}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def quick_config(**overrides):
    return RunConfig.from_preset("digits-ipc10-seqmatch_mtt", "smoke", overrides=QUICK | overrides)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return run_experiment(quick_config(), tmp_path_factory.mktemp("results"))


def test_images_stand_by_class_and_subset():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 2) / 10  # three classes of two images
    blocks = {"seqmatch_mtt, $S_1$, step size 0.5": images, "$S_2$": images}
    figure = figures.show_pictures(blocks, ["a", "b", "c"], "title")
    left, right = figure.axes
    shown = left.images[0].get_array()
    assert shown.shape == (8, 5)  # images of 2 pixels, with a white one between them
    assert shown[::3, ::3].tolist() == pytest.approx(torch.tensor([[0, 0.1], [0.2, 0.3], [0.4, 0.5]]))
    assert (shown[2::3] == 1).all()
    assert (shown[:, 2::3] == 1).all()
    frames = [path.get_extents().extents.tolist() for path in left.collections[0].get_paths()]
    assert sorted(frames) == [[x - 0.5, y - 0.5, x + 1.5, y + 1.5] for x in (0, 3) for y in (0, 3, 6)], "one an image"
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in right.get_yticklabels()] == []
    assert left.get_title() == "SeqMatch-MTT\n$S_1$\nstep size 0.5"
    one = figures.show_pictures(blocks, ["a", "b", "c"], max_per_class=1, classes=[2, 0]).axes[0]
    assert one.images[0].get_array()[::3, ::3].tolist() == pytest.approx(torch.tensor([[0.4], [0.0]]))
    assert [label.get_text() for label in one.get_yticklabels()] == ["c", "a"]


def test_losses_of_later_stages_follow_those_of_earlier_ones(record):
    axis = figures.plot_losses({"SeqMatch": record}, window=2)
    first, second = axis.lines
    assert (first.get_label(), second.get_label()) == ("SeqMatch, $S_1$", "SeqMatch, $S_2$")
    assert first.get_xdata().tolist() == [2, 3, 4, 5, 6]
    assert second.get_xdata().tolist() == [8, 9, 10, 11, 12]
    losses = record.stages[0]["losses"]
    assert first.get_ydata()[0] == pytest.approx((losses[0] + losses[1]) / 2)


def test_whole_ticks_are_whole():
    axis = plt.subplots()[1]
    axis.plot([0, 1, 2], [0, 1, 2])
    figures.whole_ticks([axis])
    assert all(float(tick).is_integer() for tick in axis.get_xticks())


def test_equal_figures_become_equal_files(tmp_path, monkeypatch):
    figures.set_style()
    for name, moment in (("first", "1000000000"), ("second", "1100000000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", moment)  # what matplotlib takes for the time
        written = figures.save_figure(figures.plot_idea(), tmp_path / "made" / name)
        assert [path.name for path in written] == [f"{name}.svg", f"{name}.png"]
    for kind in ("svg", "png"):
        first, second = ((tmp_path / "made" / f"{name}.{kind}").read_bytes() for name in ("first", "second"))
        assert first == second


def test_accuracies_are_points_between_limits_at_which_differences_can_be_seen():
    sets = {name: {"mean": mean, "std": 1.0, "n": 5} for name, mean in (("a", 84.0), ("b", 94.0))}
    axis = figures.plot_accuracies(sets, {"mean": 98.8, "std": 0.1, "n": 5})
    low, high = axis.get_ylim()
    assert 70 <= low < 83
    assert 98.8 < high <= 105
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b"]
    assert [bars.lines[0].get_ydata().tolist() for bars in axis.containers] == [[84], [94]]


def test_architectures_stand_beside_random_real_images():
    columns = ["method", "network", "accuracy", "accuracy_std", "random", "random_std"]
    frame = pd.DataFrame(
        [("mtt", "convnet", 47.0, 1.0, 28.0, 1.0), ("mtt", "vit", 26.0, float("nan"), 24.0, 1.0)], columns=columns
    )
    (axis,) = figures.plot_transfer(frame, "smoke: means nothing").axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["ConvNet", "ViT"]
    assert axis.containers[0].lines[0].get_ydata().tolist() == [47.0, 26.0]
    assert axis.containers[1].lines[0].get_ydata().tolist() == [28.0, 24.0]
    with pytest.raises(StorageError, match="no set was evaluated on two architectures"):
        figures.plot_transfer(frame.iloc[:0], "")


@pytest.mark.parametrize("scale", ["short", "reduced"])
def test_the_committed_sets_are_drawn_with_the_accuracies_of_their_records(tmp_path, monkeypatch, scale):
    monkeypatch.setenv("SEQMATCH_DATA", str(tmp_path))  # sheets are kept of those that are whitened
    figure = charts.plot_distilled(str(ROOT / "paper_results"), scale=scale)
    titles = [axis.get_title() for axis in figure.axes]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["airplane", "bird", "deer", "frog", "ship"]
    plt.close(figure)
    runs = {run.run_id: run for run in load_runs(ROOT / "paper_results") if run.scale == scale}
    sets = (ROOT / "paper_results" / "distilled").glob("cifar10-mtt-ipc10-*.safetensors")
    named = [f"MTT\n{runs[path.stem].accuracy_last['mean']:.1f} %" for path in sets if path.stem in runs]
    assert len(set(named).intersection(titles)) == 1, "of several numbers of teachers one is drawn"
    assert "SeqMatch-MTT\n$S_1$" in titles
    with pytest.raises(charts.NothingToDraw, match="has no set of CIFAR-10"):
        charts.plot_distilled(tmp_path)


def make_errors(*sets):
    rows = [(epoch, teacher, error + 0.1 * teacher, name) for name, error in sets for epoch in (0, 4) for teacher in (0, 1)]
    return pd.DataFrame(rows, columns=["epoch", "teacher", "error", "set"])


def test_matching_errors_of_distilled_and_of_real_images_have_axes_of_their_own():
    """Those of real images are so large that the others would lie on one line."""
    frame = make_errors(("MTT", 0.8), ("$S_1$", 0.9), ("5 random real", 3.0))
    figure = figures.plot_errors(frame, "setting")
    distilled, real = figure.axes
    assert distilled.get_ylim()[1] < 1.5 < real.get_ylim()[1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["MTT", "$S_1$", "5 random real"]
    trained = frame.assign(set=frame["set"].replace({"$S_1$": "real training, after S_1"}))
    assert "real training, other batches" in [axis.get_title() for axis in figures.plot_errors(trained, "setting").axes]
    (alone,) = figures.plot_errors(frame[frame["set"] != "5 random real"], "setting").axes
    assert alone.get_title() == "distilled images"
    for axis in figure.axes:
        assert [label.get_text() for label in axis.get_xticklabels() if label.get_visible()] == ["0", "4"]
    means = {line.get_label(): list(line.get_ydata()) for line in distilled.lines}
    assert means["MTT"] == pytest.approx([0.85, 0.85])


def test_a_set_has_one_colour_and_one_marker_in_all_figures():
    sets = ("MTT", "MTT, as many epochs", "SeqMatch", "SeqMatch, selected iterate", "$S_1$ repeated", "independent halves")
    errors = figures.plot_errors(make_errors(("$S_1$ repeated, after $S_1$", 1.0), ("MTT, 10 images", 0.8)), "").axes[0]
    deciles = pd.DataFrame([(0, name, 1.0) for name in sets], columns=["decile", "training", "gain"])
    lines = {line.get_label(): line for line in (*errors.lines, *figures.plot_deciles(deciles, "").axes[0].lines)}
    drawn = {name: (line.get_color(), line.get_marker()) for name, line in lines.items()}
    assert drawn["MTT"] == drawn["MTT, 10 images"]
    assert drawn["$S_1$ repeated"] == drawn["$S_1$ repeated, after $S_1$"]
    for part in range(2):
        assert len({drawn[name][part] for name in sets}) == len(sets)


@pytest.mark.parametrize("name", sorted({*SETS, "real data", "stage 1", "stage 2", "$S_1 \\cup S_2$, after $S_1$"}))
def test_every_set_has_a_look(name):
    assert look_of(name)["markerfacecolor"] == ("white" if "jointly" in name else look_of(name)["color"])


def test_a_set_without_a_look_is_refused():
    with pytest.raises(ConfigError, match="no colour is known for the set 'two sets'"):
        look_of("two sets")


def test_losses_have_a_panel_for_each_training_and_no_empty_one():
    rows = [(name, step, images, 2.0) for name in ("real data", "MTT", "SeqMatch", "$S_1$ repeated") for step in (0, 1)
            for images in ("easy", "hard")]  # fmt: skip
    figure = figures.plot_image_losses(pd.DataFrame(rows, columns=["training", "step", "images", "loss"]), "setting", 8)
    assert [axis.get_title() for axis in figure.axes] == ["real data", "MTT", "SeqMatch", "$S_1$ repeated"]
    assert [axis.get_xlabel() for axis in figure.axes] == ["epoch of training", *["stage of training"] * 3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["easy images", "hard images"]
    guessing = [line.get_ydata()[0] for axis in figure.axes for line in axis.lines if line.get_zorder() == 1]
    assert guessing == [pytest.approx(math.log(8))] * 4

"""Spreads, differences and intervals: they cover what they should, and are shown as they are meant."""

import numpy as np
import pandas as pd
import pytest
from conftest import SEED

from seqmatch_lib.errors import StorageError
from seqmatch_lib.report import numbers
from seqmatch_lib.report.texts import format_frame, format_gap


def test_two_accuracies_of_one_seed_are_refused():
    rows = pd.DataFrame({"seed": [0, 0], "values": [[40.0], [50.0]], "record": ["a", "b"]})
    with pytest.raises(StorageError, match="two accuracies of one seed, in records a, b"):
        numbers.values_by_seed(rows)


def test_a_spread_is_over_seeds_or_else_over_networks():
    several = numbers.mean_and_std({0: [40.0, 42.0], 1: [44.0, 46.0]})
    assert several == {"accuracy": 43.0, "accuracy_std": pytest.approx(np.std([41, 45], ddof=1))}
    assert numbers.mean_and_std({0: [40.0, 42.0]})["accuracy_std"] == pytest.approx(np.sqrt(2))
    assert np.isnan(numbers.mean_and_std({0: [40.0]})["accuracy_std"]), "one network has no spread"
    assert np.isnan(numbers.mean_and_std({})["accuracy"])


def test_a_difference_is_over_the_seeds_that_both_have():
    values, reference = {seed: [50.0 + seed] * 2 for seed in range(4)}, {seed: [40.0] * 2 for seed in (1, 2)}
    two = numbers.difference(values, reference)
    assert (two["difference"], two["difference_seeds"]) == (11.5, 2)
    assert np.isnan(two["difference_low"]), "an interval needs three seeds"
    three = numbers.difference(values, reference | {3: [40.0, 40.0]}, "gain")
    half = 4.302653 / 3**0.5  # the quantile of t with two degrees of freedom, of gaps that scatter by 1
    assert (three["gain_low"], three["gain"], three["gain_high"]) == pytest.approx((12 - half, 12, 12 + half))
    assert np.isnan(numbers.difference(values, {9: [1.0]})["difference"])


def test_intervals_of_three_seeds_cover_the_true_difference():
    """Two methods 3 points apart; seeds scatter by 4 for both alike and by 1 for each, networks by 2."""
    generator = np.random.default_rng(SEED)

    def draw_pair():
        shared = generator.normal(0, 4, 3)
        return [
            {seed: mean + shared[seed] + generator.normal(0, 1) + generator.normal(0, 2, 5) for seed in range(3)}
            for mean in (43.0, 40.0)
        ]

    gaps = [numbers.difference(*draw_pair()) for _ in range(1000)]
    covered = sum(gap["difference_low"] < 3.0 < gap["difference_high"] for gap in gaps)
    assert 920 <= covered <= 980, "of 1,000 intervals of 95 %; one time in fifty thousand it is outside"
    widths = [gap["difference_high"] - gap["difference_low"] for gap in gaps]
    assert np.median(widths) < 12, "what a seed does to both sides alike widens no interval"
    same = numbers.difference({seed: [3.0] for seed in range(3)}, {seed: [1.0] for seed in range(3)})
    assert (same["difference_low"], same["difference_high"]) == (2.0, 2.0)


def test_numbers_are_shown_with_their_spread_and_interval():
    frame = pd.DataFrame({
        "num_subsets": [1, 2000], "accuracy": [47.16, np.nan], "accuracy_std": [0.58, np.nan], "gain": [1.14, -2.0],
        "gain_low": [0.11, np.nan], "gain_high": [2.22, np.nan], "seeds": [3, 0],
    })  # fmt: skip
    shown = format_frame(frame)
    assert shown.columns.tolist() == ["num subsets", "accuracy", "gain", "seeds"]
    assert shown.to_numpy().tolist() == [["1", "47.2 ± 0.6", "+1.1 [+0.1, +2.2]", "3"], ["2,000", "not run", "-2.0", "0"]]
    assert format_gap(-0.04, float("nan"), float("nan")) == "+0.0"
    assert format_gap(1.7, 0.008, 3.3) == "+1.7 [+0.01, +3.3]", "an interval above 0 does not read as one that holds it"


def test_all_real_images_are_called_so_and_texts_stay_as_they_are():
    assert format_frame(pd.DataFrame({"ipc": [0, 1000], "images": [0, 1000]})).to_numpy().tolist() == [
        ["all", "0"],
        ["1,000"] * 2,
    ]
    assert format_frame(pd.DataFrame({"ipc": ["all", "10"]}))["ipc"].tolist() == ["all", "10"]


def test_independent_subsets_are_called_halves_where_there_are_two_of_them():
    frame = pd.DataFrame({"num_subsets": [2, 3, 1], "set": ["independent halves, jointly"] * 2 + ["one set"]})
    assert format_frame(frame)["set"].tolist() == ["independent halves, jointly", "independent parts, jointly", "one set"]


def test_pages_name_methods_and_data_sets_as_papers_do_and_leave_those_of_a_users_own():
    frame = pd.DataFrame({"dataset": ["tiny_imagenet", "mine"], "method": ["seqmatch_mtt", "seqmatch_mine"], "record": "mtt"})
    assert format_frame(frame).to_numpy().tolist() == [
        ["Tiny ImageNet", "SeqMatch-MTT", "mtt"], ["mine", "SeqMatch-mine", "mtt"]
    ]  # fmt: skip

"""Verdicts: what is confirmed, what is not, and what is not decided, by the rule that the report states."""

from math import nan
from pathlib import Path

import pandas as pd
import pytest
from test_queries import COMMITTED, make_run

from seqmatch_lib.report.queries import Evidence
from seqmatch_lib.report.tables import load_published
from seqmatch_lib.report.verdicts import Gap, judge_accuracy, judge_difference, list_verdicts, summarise

RESULTS = Path(__file__).parents[1] / "paper_results"
PUBLISHED = load_published(RESULTS)
AHEAD, BEHIND, LEVEL = Gap(2.0, 1.0, 3.0, 3), Gap(-2.0, -3.0, -1.0, 3), Gap(0.1, -1.0, 1.0, 3)
FEW = Gap(5.0, nan, nan, 2)
NONE = Gap(nan, nan, nan, 0)


@pytest.mark.parametrize(
    ("gap", "controls", "verdict"),
    [
        (AHEAD, {}, "confirmed"),
        (AHEAD, {"equal cost": AHEAD}, "confirmed"),
        (AHEAD, {"equal cost": AHEAD, "halves": LEVEL}, "not confirmed (halves: level)"),
        (AHEAD, {"equal cost": BEHIND}, "not confirmed (equal cost: behind)"),
        (AHEAD, {"equal cost": FEW}, "not decided (equal cost: 2 seeds)"),
        (AHEAD, {"equal cost": NONE}, "not decided (equal cost: not run)"),
        (AHEAD, {"equal cost": NONE, "halves": BEHIND}, "not confirmed (halves: behind)"),
        (LEVEL, {"equal cost": AHEAD}, "not confirmed (level)"),
        (BEHIND, {}, "not confirmed (behind)"),
        (FEW, {}, "not decided (2 seeds)"),
        (NONE, {}, "not decided (not run)"),
    ],
)
def test_a_claimed_gain_is_decided_at_published_settings_with_its_controls(gap, controls, verdict):
    for scale in ("paper", "short"):
        assert judge_difference(gap, scale, controls) == verdict


def test_a_rehearsal_decides_nothing_and_says_what_it_shows():
    assert judge_difference(AHEAD, "reduced", {"equal cost": AHEAD}) == "not decided (rehearsal: ahead)"
    assert judge_difference(AHEAD, "reduced", {"equal cost": BEHIND}) == "not decided (rehearsal: ahead; equal cost: behind)"
    assert judge_difference(FEW, "reduced") == "not decided (rehearsal: 2 seeds)"


def test_a_published_accuracy_is_reached_within_two_standard_deviations():
    assert judge_accuracy(64.0, 0.3, 65.3, 0.7, 3, "paper") == "confirmed"
    assert judge_accuracy(63.0, 0.3, 65.3, 0.7, 3, "paper") == "not confirmed (-2.3)"
    assert judge_accuracy(63.0, 0.3, 65.3, 0.7, 3, "short") == "not decided (-2.3)", "fewer iterations refute nothing"
    assert judge_accuracy(70.0, nan, 65.3, nan, 3, "short") == "confirmed"
    assert judge_accuracy(70.0, 0.3, 65.3, 0.7, 2, "paper") == "not decided (2 seeds)"


def find(found, claim, setting):
    (row,) = found[(found["claim"] == claim) & found["setting"].str.startswith(setting)].to_dict("records")
    return row


def test_the_committed_records_confirm_and_refute_nothing_but_at_published_settings():
    found = list_verdicts(COMMITTED, PUBLISHED, RESULTS)
    rehearsed = found[found["setting"].str.contains("rehearsal")]
    assert len(rehearsed) >= 10
    assert rehearsed["verdict"].str.startswith("not decided (rehearsal").all()
    claimed = PUBLISHED[PUBLISHED["method"].str.startswith("seqmatch_")]
    assert found["claim"].str.contains("^SeqMatch-(?:MTT|IDC) is ahead").sum() == len(claimed), (
        "every published gain has a row"
    )
    assert find(found, "SeqMatch-IDC is ahead of IDC", "cifar10, 50")["measured"] == "+2.3 [+1.9, +2.7], 3 seeds"


def test_records_at_published_settings_lead_and_are_judged():
    runs = list(COMMITTED.runs)
    for seed in range(3):
        runs.append(make_run("cifar10-ipc10-mtt", seed, (61.0, 62.0), iterations=(1500,), scale="short"))
        sequence = ("cifar10-ipc10-seqmatch_mtt", seed, (64.0, 65.0), (60.0, 61.0), None, (1500, 1500), "short")
        runs.append(make_run(*sequence))
    found = list_verdicts(Evidence(runs, COMMITTED.reevaluations, COMMITTED.orders), PUBLISHED, RESULTS)
    gain = find(found, "SeqMatch-MTT is ahead of MTT", "cifar10, 10 images per class, short")
    assert gain["measured"].startswith("+3.0 [")
    assert gain["verdict"] == "not decided (equal cost: not run)"
    assert find(found, "MTT is ahead of random real images", "cifar10, 10 images per class, short")["verdict"] == "confirmed"
    assert find(found, "MTT: the published accuracy is reached", "cifar10, 10")["verdict"] == "not decided (-3.8)"


def test_a_sequence_with_fewer_teachers_leads_the_rehearsal_and_names_the_set_that_it_is_compared_with():
    runs = list(COMMITTED.runs)
    for method, joint, iterations in (("mtt", None, (400,)), ("seqmatch_mtt", (60.0, 61.0), (200, 200))):
        runs = [run for run in runs if (run.preset, run.scale) != (f"cifar10-ipc10-{method}", "short")]
        changes = {"teachers.num_teachers": 2, "mtt.iterations": iterations[0]}
        runs.append(make_run(f"cifar10-ipc10-{method}", 0, (61.0, 62.0), joint, changes, iterations, "short"))
    found = list_verdicts(Evidence(runs, COMMITTED.reevaluations, COMMITTED.orders), PUBLISHED, RESULTS)
    gain = find(found, "SeqMatch-MTT is ahead of MTT", "cifar10, 10 images per class, short, mtt: teachers.num_teachers=2")
    assert gain["measured"] == "+0.0, 1 seed (one set, as many iterations)"
    assert gain["verdict"] == "not decided (1 seed)"


def test_the_verdicts_are_counted():
    found = pd.DataFrame(
        {"verdict": ["confirmed", "not confirmed (level)", "not decided (rehearsal: ahead)", "not decided (x)"]}
    )
    text = summarise(found)
    assert "Of 4 claims, 1 confirmed, 1 not confirmed, 2 not decided." in text
    assert "1 of them were only rehearsed" in text

"""Verdicts: what is confirmed, what is not, and what is not decided, by the rule that the report states."""

from dataclasses import replace
from math import nan

import pandas as pd
import pytest
from made_records import (
    COMMITTED,
    PUBLISHED,
    RESULTS,
    accuracy,
    make_order,
    make_reevaluation,
    make_run,
    make_sequence,
    make_transfer,
)

from seqmatch_lib.report.evidence import Evidence
from seqmatch_lib.report.verdicts import CONTROLS, Gap, judge_accuracy, judge_difference, list_verdicts, summarise
from seqmatch_lib.runs.records import load_orders

AHEAD, BEHIND, LEVEL = Gap(2.0, 1.0, 3.0, 3), Gap(-2.0, -3.0, -1.0, 3), Gap(0.1, -1.0, 1.0, 3)
FEW = Gap(5.0, nan, nan, 2)
NONE = Gap(nan, nan, nan, 0)


@pytest.mark.parametrize(
    ("gap", "controls", "verdict"),
    [
        (AHEAD, {}, "confirmed"),
        (AHEAD, {"equal cost": AHEAD}, "confirmed"),
        (AHEAD, {"equal cost": AHEAD, "halves": LEVEL}, "not confirmed (ahead; equal cost: ahead; halves: level)"),
        (AHEAD, {"equal cost": BEHIND}, "not confirmed (ahead; equal cost: behind)"),
        (AHEAD, {"equal cost": FEW}, "not decided (ahead; equal cost: 2 seeds)"),
        (AHEAD, {"equal cost": NONE, "halves": NONE}, "not decided (ahead; equal cost, halves: not run)"),
        (AHEAD, {"equal cost": NONE, "halves": BEHIND}, "not confirmed (ahead; equal cost: not run; halves: behind)"),
        (LEVEL, {"equal cost": AHEAD}, "not confirmed (level; equal cost: ahead)"),
        (BEHIND, {}, "not confirmed (behind)"),
        (FEW, {}, "not decided (2 seeds)"),
        (FEW, {"equal cost": BEHIND}, "not confirmed (2 seeds; equal cost: behind)"),
        (NONE, {}, "not decided (not run)"),
    ],
)
def test_a_claimed_gain_is_decided_at_published_settings_with_its_controls(gap, controls, verdict):
    for scale in ("paper", "short"):
        assert judge_difference(gap, scale, controls) == verdict


def test_a_rehearsal_decides_nothing_and_says_what_it_shows():
    assert judge_difference(AHEAD, "reduced") == "not decided (rehearsal: ahead)"
    assert judge_difference(AHEAD, "reduced", {"equal cost": BEHIND}) == "not decided (rehearsal: ahead; equal cost: behind)"
    assert judge_difference(Gap(-0.2, seeds=1), "reduced") == "not decided (rehearsal: 1 seed)"


def test_runs_with_fewer_teachers_or_iterations_than_their_scale_decide_nothing():
    assert judge_difference(AHEAD, "short", {"halves": AHEAD}, True) == "not decided (cut short: ahead; halves: ahead)"
    assert judge_difference(NONE, "short", cut_short=True) == "not decided (not run)"
    assert judge_accuracy(70.0, 0.3, 65.3, 0.7, 3, "short", cut_short=True) == "not decided (cut short: 3 seeds)"


def test_a_published_accuracy_is_reached_within_two_standard_deviations():
    assert judge_accuracy(63.8, 0.3, 65.3, 0.7, 3, "paper") == "confirmed"
    assert judge_accuracy(63.7, 0.3, 65.3, 0.7, 3, "paper") == "not confirmed (-1.6)"
    assert judge_accuracy(63.7, 0.3, 65.3, 0.7, 3, "short") == "not decided (-1.6)", "fewer iterations refute nothing"
    assert judge_accuracy(70.0, nan, 65.3, nan, 3, "short") == "confirmed"
    assert judge_accuracy(70.0, 0.3, 65.3, 0.7, 2, "paper") == "not decided (2 seeds)"


def find(found, claim, setting, scale):
    chosen = (found["claim"] == claim) & (found["setting"] == f"CIFAR-10, {setting}") & found["scale"].str.startswith(scale)
    (row,) = found[chosen].to_dict("records")
    return row


def test_the_committed_records_confirm_and_refute_nothing_but_at_published_settings():
    found = list_verdicts(COMMITTED, PUBLISHED, RESULTS)
    rehearsed = found[found["scale"].str.contains("rehearsal")]
    assert len(rehearsed) >= 10
    assert rehearsed["verdict"].str.startswith("not decided (rehearsal").all()
    claimed = PUBLISHED[PUBLISHED["method"].str.startswith("seqmatch_")]
    gains = found[found["claim"].str.contains("^SeqMatch-(?:MTT|IDC) is ahead")]
    assert len(gains.drop_duplicates(["claim", "setting"])) == len(claimed), "every published gain has a row"
    assert gains["whose"].eq("the paper").all()
    gain = find(found, "SeqMatch-IDC is ahead of IDC", "50 images per class", "rehearsal")
    assert gain["measured"] == "+2.3 [+1.3, +3.2], 3 seeds"


TRANSFER = "SeqMatch-{0} keeps its lead over {0} on another architecture"


def test_a_claim_shows_every_scale_that_it_was_asked_at_and_its_halves_in_both_trainings():
    """The less favourable of two scales, or of two controls, must not be left out."""
    found = list_verdicts(COMMITTED, PUBLISHED, RESULTS)
    claim = "SeqMatch-MTT is ahead of MTT", "10 images per class"
    five, two, rehearsal = (find(found, *claim, scale) for scale in ("short, 5 teachers", "short, 2 teachers", "rehearsal"))
    for row in (five, two, rehearsal):
        assert all(name in row["control"] for name in CONTROLS)
    assert rehearsal["measured"].startswith("-1.1 [")
    assert (five["measured"], five["verdict"]) == ("-2.9, 1 seed", "not decided (1 seed)")


def test_the_lead_on_another_architecture_stands_beside_that_on_the_convnet():
    found = list_verdicts(COMMITTED, PUBLISHED, RESULTS)
    row = find(found, TRANSFER.format("MTT"), "10 images per class, VGG-11", "short")
    assert (row["measured"], row["verdict"]) == ("+10.7, 1 seed", "not decided (cut short: 1 seed)")
    assert row["control"].startswith("on the ConvNet +4.4, 1 seed")
    assert row["records"] == "d20c5315, 178da106", "of the seed that both have"
    assert find(found, TRANSFER.format("IDC"), "10 images per class", "")["verdict"] == "not decided (not run)"


@pytest.mark.parametrize(
    ("selected", "verdict"), [(35.0, "confirmed"), (45.0, "not confirmed (ahead; both by selected iterates: behind; ")]
)
def test_a_lead_on_another_architecture_is_confirmed_if_all_its_controls_are_passed_there(tmp_path, selected, verdict):
    """The sequence has 40 %, MTT's set 30 % and its selected iterate `selected`, all other controls 35 %."""
    runs, again, names = [], [], ("divided, staged", "divided, joint", "divided, joint, as many epochs")
    for seed in range(3):
        mtt = make_run("cifar10-ipc10-mtt", seed, (58.0, 59.0), iterations=(1500,), scale="short")
        longer = ("cifar10-ipc10-mtt", seed, (58.0, 59.0), None, {"mtt.iterations": 3000}, (3000,), "short")
        longer = make_run(*longer)
        sequence = make_run("cifar10-ipc10-seqmatch_mtt", seed, (64.0, 65.0), (60.0, 61.0), None, (1500, 1500), "short")
        runs += [mtt, longer, sequence]
        again += [make_transfer(mtt, 30.0), make_transfer(sequence, 40.0), make_transfer(longer, 35.0, epochs=2000)]
        again += [make_transfer(mtt, selected, True), make_transfer(sequence, 40.0, True)]
        make_order(tmp_path, seed, {f"{name} (vit)": [34.0, 36.0] for name in names}, scale="short")
    evidence = Evidence(runs, again, load_orders(tmp_path))
    row = find(list_verdicts(evidence, PUBLISHED, RESULTS), TRANSFER.format("MTT"), "10 images per class, ViT", "short")
    assert row["verdict"].startswith(verdict)
    assert "not run" not in row["control"]
    assert "as many iterations and epochs +5.0 [+5.0, +5.0], 3 seeds" in row["control"]
    assert all(run.config_hash[:8] in row["records"] for run in runs)
    of_two = Evidence(runs, [one for one in again if one.last_sha256 is None], evidence.orders)
    row = find(list_verdicts(of_two, PUBLISHED, RESULTS), TRANSFER.format("MTT"), "10 images per class, ViT", "short")
    assert row["verdict"].startswith("not decided (ahead; both by selected iterates: not run; ")


def test_records_at_published_settings_lead_and_are_judged():
    runs = [run for run in COMMITTED.runs if run.scale != "short"]
    for seed in range(3):
        runs.append(make_run("cifar10-ipc10-mtt", seed, (61.0, 62.0), iterations=(1500,), scale="short"))
        sequence = ("cifar10-ipc10-seqmatch_mtt", seed, (64.0, 65.0), (60.0, 61.0), None, (1500, 1500), "short")
        runs.append(make_run(*sequence))
    found = list_verdicts(Evidence(runs), PUBLISHED, RESULTS)
    cell = "10 images per class", "short"
    gain = find(found, "SeqMatch-MTT is ahead of MTT", *cell)
    assert gain["measured"].startswith("+3.0 [")
    assert gain["verdict"] == f"not decided (ahead; both by selected iterates: ahead; {', '.join(CONTROLS)}: not run)"
    assert found["claim"].iloc[0] == gain["claim"]
    assert found["scale"].iloc[0].startswith("short")
    assert find(found, "MTT is ahead of random real images", *cell)["verdict"] == "confirmed"
    assert find(found, "MTT: the published accuracy is reached", *cell)["verdict"] == "not decided (-3.8)"


def test_a_lead_over_a_spoiled_last_iterate_confirms_nothing():
    """The last iterate of MTT may come after a leap of its loss; the published code reports the best one."""
    plain = [make_run("cifar10-ipc10-mtt", seed, (58.0, 59.0), iterations=(1500,), scale="short") for seed in range(3)]
    plain = [replace(run, accuracy_selected=accuracy(61.0, 63.0)) for run in plain]
    sequence = ("cifar10-ipc10-seqmatch_mtt", (60.0, 61.0), (60.0, 61.0), None, (1500, 1500), "short")
    runs = plain + [make_run(sequence[0], seed, *sequence[1:]) for seed in range(3)]
    found = list_verdicts(Evidence(runs), PUBLISHED, RESULTS)
    gain = find(found, "SeqMatch-MTT is ahead of MTT", "10 images per class", "short")
    assert gain["measured"].startswith("+2.0 [")
    assert gain["control"].startswith("both by selected iterates -1.5 [-1.5, -1.5], 3 seeds; not run")
    assert gain["verdict"].startswith("not confirmed (ahead; both by selected iterates: behind; ")


def test_seeds_that_only_one_side_has_decide_nothing():
    """Three seeds on each side, of which one is common: the difference is of that one."""
    runs = [make_run("cifar10-ipc10-mtt", seed, (60.0, 62.0), scale="paper") for seed in (2, 3, 4)]
    for seed in range(3):
        runs.append(make_run("cifar10-ipc10-seqmatch_mtt", seed, (50.0, 52.0), (49.0, 51.0), None, (300, 300), "paper"))
    gain = find(
        list_verdicts(Evidence(runs), PUBLISHED, RESULTS), "SeqMatch-MTT is ahead of MTT", "10 images per class", "paper"
    )
    assert gain["measured"] == "-10.0, 1 seed"
    assert gain["verdict"].startswith("not decided (1 seed)")


def test_halves_are_compared_over_the_seeds_that_have_them_and_with_one_sign(tmp_path):
    """Two seeds of the sequence, halves of one: every number is the sequence minus the other set."""
    runs = [make_run("cifar10-ipc10-mtt"), make_sequence(0, (50.0, 52.0)), make_sequence(1, (90.0, 92.0))]
    make_order(tmp_path, 0, {"divided, staged": [48.0], "divided, joint": [47.5], "SeqMatch, $S_2$ first": [46.0]})
    found = list_verdicts(Evidence(runs, orders=load_orders(tmp_path)), PUBLISHED, RESULTS)
    claim = "SeqMatch-MTT: S_2, distilled after S_1, is ahead of an independent half"
    row = find(found, claim, "10 images per class", "rehearsal")
    assert (row["measured"], row["control"]) == ("+3.0, 1 seed", "both jointly -2.5; trained on S_2 first +5.0")
    gain = find(found, "SeqMatch-MTT is ahead of MTT", "10 images per class", "rehearsal")
    assert gain["control"] == (
        "both by selected iterates +10.0, 1 seed; halves in stages +3.0, 1 seed; halves jointly +3.5, 1 seed; "
        "not run: as many iterations and epochs, halves jointly for as many epochs"
    )


def test_a_sequence_with_fewer_teachers_names_the_set_that_it_is_compared_with():
    runs = [run for run in COMMITTED.runs if run.scale != "short"]
    for method, joint, iterations in (("mtt", None, (400,)), ("seqmatch_mtt", (60.0, 61.0), (200, 200))):
        changes = {"teachers.num_teachers": 2, "mtt.iterations": iterations[0]}
        runs.append(make_run(f"cifar10-ipc10-{method}", 0, (61.0, 62.0), joint, changes, iterations, "short"))
    found = list_verdicts(Evidence(runs), PUBLISHED, RESULTS)
    gain = find(found, "SeqMatch-MTT is ahead of MTT", "10 images per class", "short, 2 teachers")
    assert gain["measured"] == "+0.0, 1 seed (one set, as many iterations)"
    assert gain["verdict"].startswith("not decided (cut short: 1 seed)")


def test_claims_are_counted_once_by_their_leading_scale_and_by_whose_they_are():
    rows = [
        ("the paper", "a", "confirmed"),
        ("the paper", "a", "not decided (rehearsal: ahead)"),
        ("the paper", "b", "not confirmed (level)"),
        ("our own questions", "c", "not decided (x)"),
    ]
    text = summarise(pd.DataFrame(rows, columns=["whose", "claim", "verdict"]).assign(setting="x"))
    assert "Claims of the paper: 1 confirmed, 1 not confirmed, 0 not decided." in text
    assert "Questions of our own: 0 confirmed, 0 not confirmed, 1 not decided." in text
    assert "1 of the 4 rows are rehearsals" in text


@pytest.mark.parametrize("control", ["$S_1$ repeated", "independent halves"])
@pytest.mark.parametrize(
    ("joint", "sequence", "longer", "in_its_place", "verdict"),
    [
        ((2.0, 2.5), (2.0, 2.2, 2.1), None, None, "seen"),
        ((2.0, 1.5), (2.0, 2.2, 2.1), None, None, "not seen"),
        ((2.0, 2.5), (2.0, 1.9, 2.0), None, None, "not seen"),
        ((2.0, 2.5), (2.0, 2.2, 2.1), (2.0, 2.6), (2.0, 2.2, 2.3), "seen"),
        ((2.0, 2.5), (2.0, 2.2, 2.1), (2.0, 1.9), (2.0, 2.2, 2.3), "not seen"),
        ((2.0, 2.5), (2.0, 2.2, 2.1), (2.0, 2.6), (2.0, 2.2, 2.0), "not seen"),
    ],
)
def test_a_claim_on_hard_images_is_seen_if_the_last_subset_lowers_their_loss_and_neither_one_set_nor_the_controls_do(
    tmp_path, joint, sequence, longer, in_its_place, verdict, control
):
    """`in_its_place` is the course with `control` in the place of the last subset."""
    run = make_sequence()
    folder = tmp_path / "coupling" / run.run_id
    folder.mkdir(parents=True)

    def write(name, courses):
        rows = [(training, "hard", loss) for training, losses in courses.items() for loss in losses]
        rows += [(training, "easy", loss) for training in courses for loss in (2.0, 1.0, 3.0)]
        pd.DataFrame(rows, columns=["training", "images", "loss"]).to_csv(folder / name)

    write("losses.csv", {"real data": (3.0, 1.0), "MTT": joint, "SeqMatch": sequence})
    if longer:
        write("control_losses.csv", {"MTT, as many epochs": longer, control: in_its_place})
    found = list_verdicts(Evidence([run]), PUBLISHED, tmp_path)
    (row,) = found[found["claim"].str.contains("hard real images")].to_dict("records")
    assert row["verdict"] == f"not decided (rehearsal: {verdict} in 1 seed)"
    assert row["control"].startswith("MTT, as many epochs" if longer else "not run: MTT, as many epochs, $S_1$ repeated")
    (other,) = {"$S_1$ repeated", "independent halves"} - {control}
    assert row["control"].endswith(f"not run: {other}" if longer else "independent halves")


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ({"MTT": [1.0, 1.1, 0.9]}, "seen"),
        ({"MTT": [1.0]}, "level"),
        ({"MTT": [1.0, 1.1, 0.9], "$S_1$ repeated": [1.0, 0.0, 2.5]}, "level"),
        ({"MTT": [3.0, 3.0, 3.0]}, "not seen"),
        ({"MTT": [1.0], "$S_1$ repeated": [0.0], "independent halves": [3.0]}, "not seen"),
    ],
)
def test_hard_images_are_taught_by_a_later_subset_if_all_controls_gain_less_on_them(tmp_path, gains, verdict):
    """Each network gains 2 points on the hard half of the test images by the sequence, and loses 1 on the easy half.

    On one network, or where a control gains more on some network, a lead can be chance.
    """
    run = make_sequence()
    folder = tmp_path / "coupling" / run.run_id
    folder.mkdir(parents=True)

    def write(name, halves):
        rows = [
            (decile, 50 + (hard if decile > 4 else easy), after, network)
            for after, (easy, of_networks) in halves.items()
            for network, hard in enumerate(of_networks)
            for decile in range(10)
        ]
        table = pd.DataFrame(rows, columns=["decile", "accuracy", "after", "network"])
        older = table.drop(columns="network") if count == 1 else table
        older.to_csv(folder / name, index=False)

    count = len(gains["MTT"])
    write("control_deciles.csv", {name: (9, values) for name, values in gains.items()})
    found = list_verdicts(Evidence([run]), PUBLISHED, tmp_path)
    assert not found["claim"].str.contains("teaches hard images").any(), "nothing to compare the controls with"
    write("deciles.csv", {"stage 1": (0, [0] * count), "stage 2": (-1, [2] * count)})
    found = list_verdicts(Evidence([run]), PUBLISHED, tmp_path)
    (row,) = found[found["claim"].str.contains("teaches hard images")].to_dict("records")
    assert row["measured"] == f"hard half +2.0, easy -1.0 (points over S_1{'; 3 networks' if count > 1 else ''})"
    assert row["control"].startswith(f"MTT {gains['MTT'][0]:+.1f}, easy +9.0; ")
    assert "not run: MTT, as many epochs" in row["control"]
    assert "independent halves" in row["control"]
    assert row["verdict"] == f"not decided (rehearsal: {verdict} in 1 seed)"


@pytest.mark.parametrize(("real", "verdict"), [(0.1, "seen"), (0.3, "not seen")])
def test_repair_is_seen_if_it_grows_more_than_that_of_real_images_at_every_teacher(tmp_path, real, verdict):
    """At teacher 0 the share grows by 0.5 and by 0 for real images, at teacher 1 by 0.2 and by `real`."""
    run = make_sequence()
    folder = tmp_path / "coupling" / run.run_id
    folder.mkdir(parents=True)
    for name, growths in (("gradients", (0.5, 0.2)), ("real_gradients", (0.0, real))):
        rows = [(ipc, 0, teacher, (ipc - 2) / 8 * growth) for teacher, growth in enumerate(growths) for ipc in (10, 2)]
        pd.DataFrame(rows, columns=["ipc", "start epoch", "teacher", "repair_share"]).to_csv(folder / f"{name}.csv")
    found = list_verdicts(Evidence([run]), PUBLISHED, tmp_path)
    (row,) = found[found["claim"].str.contains("repair")].to_dict("records")
    assert row["verdict"] == f"not decided (rehearsal: {verdict} in 1 seed)"
    assert row["measured"] == "repair(B) 0.00 to 0.35 (start epoch 0); means of 2 teachers"


def test_where_the_control_of_equal_effort_is_missing_those_of_a_part_of_it_are_named():
    runs = [make_run("cifar10-ipc10-mtt", seed) for seed in range(3)] + [make_sequence(seed) for seed in range(3)]
    longer = make_reevaluation(runs[0], epochs=600)  # of accuracy 31
    found = list_verdicts(Evidence(runs, [longer]), PUBLISHED, RESULTS)
    row = find(found, "SeqMatch-MTT is ahead of MTT", "10 images per class", "rehearsal")
    missing = ", ".join(CONTROLS)
    assert row["control"] == (
        f"both by selected iterates +10.0 [+10.0, +10.0], 3 seeds; as many epochs +20.0, 1 seed; not run: {missing}"
    )
    assert row["verdict"].endswith("as many epochs: 1 seed)")
    longest = make_run("cifar10-ipc10-mtt", 0, overrides={"mtt.iterations": 600}, iterations=(600,))
    equal = replace(make_reevaluation(longest, epochs=600), seed=1)
    both = list_verdicts(Evidence([*runs, longest], [longer, equal]), PUBLISHED, RESULTS)
    assert "as many epochs +" not in find(both, row["claim"], "10 images per class", "rehearsal")["control"]

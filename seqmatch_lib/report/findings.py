"""What notebooks say first: sentences whose numbers are those of the records, and how sure they are.

A function a question. Each returns Markdown: what we find, then how sure that is. Where a control was not run, it says so.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from seqmatch_lib.report import queries
from seqmatch_lib.report.controls import (
    DECIDING,
    EQUAL,
    HALVES,
    HALVES_JOINTLY,
    HALVES_LONGER,
    JOINTLY,
    LONGER,
    MORE_EPOCHS,
    ONE_SET,
    SELECTED,
    STAGED,
    comparison,
    controls_by_network,
    leads,
    order,
)
from seqmatch_lib.report.evidence import Evidence, runs_of
from seqmatch_lib.report.numbers import SEEDS_FOR_AN_INTERVAL, of_common_seeds
from seqmatch_lib.report.texts import (
    count_seeds,
    format_frame,
    format_range,
    label_scale,
    name_ipc,
    name_of,
    name_runs,
    name_scale,
    name_set,
    name_setting,
    style_frame,
)
from seqmatch_lib.runs.config import REFERENCES, SCALES, SEQUENTIAL_PREFIX
from seqmatch_lib.runs.coupling_measurements import FIRST_REPEATED, ONE_SET_LONGER, PARTS_IN_PLACE, find_table
from seqmatch_lib.runs.records import RunRecord

CHANGES = {  # of a sequence: set of `order` -> in words
    "sequence, S_2 first": "networks trained on S_2 first",
    JOINTLY: "networks trained jointly",
    "sequence, S_2 undistilled": "S_2 replaced by the real images that it began as",
    "sequence, S_1 twice": "S_2 replaced by S_1",
}
GRADIENTS = {"the one set": "gradients", "random real images": "real_gradients"}  # images -> their table of measurements
CONTROLS_IN_WORDS = {  # of the coupling measurements
    ONE_SET_LONGER: "the one set for as many epochs",
    FIRST_REPEATED: "$S_1$ in every stage",
    PARTS_IN_PLACE: "independent halves",
}
TENTHS = {  # parts of the test images by difficulty -> deciles
    "easiest tenth": [0], "easy half": range(5), "hard half": range(5, 10), "hardest tenth": [9], "all": range(10),
}  # fmt: skip
DECILES = ("deciles", "selected_deciles", "control_deciles")  # tables of accuracy by difficulty
SEQUENCE = "SeqMatch"  # its name in measurements of coupling, after its last stage
CONTROLS_OF_TRANSFER = {  # in words -> the sets of `comparison`
    "one set with as many iterations and epochs": (EQUAL,),
    "independent halves": (HALVES, HALVES_JOINTLY, HALVES_LONGER),
    "selected iterates": tuple(SELECTED.values()),
}
WHOLE, EQUAL_EFFORT = "whole data set", "MTT, equal effort"  # their names among runs
NOTHING = "Nothing yet: no such run has a record."
OF_SCALES = {
    "smoke": "Scale smoke: these numbers mean nothing.",
    "reduced": "A rehearsal has smaller networks, fewer teachers, fewer iterations and other learning rates than published. "
    "It decides nothing about the paper's own settings.",
    "short": "Networks and training are the published ones, but for fewer teachers and iterations. Of SeqMatch only the "
    "settings of CIFAR-10 with 50 images per class are known; others are ours. Arithmetic is in bfloat16, and a tenth of the "
    "training images is held out to choose iterates.",
}


def shown_parts(query: Callable[..., pd.DataFrame], evidence: Evidence, *cell: Any) -> list[tuple[Evidence, str]]:
    """Returns the records in which a query finds something, and their scale: see `Evidence.parts`.

    Those nearest to published settings come first. The query takes records, cell and scale.
    """
    return [(part, scale) for part, scale in evidence.parts_of(reversed(SCALES)) if len(query(part, *cell, scale))]


def large_sequences(evidence: Evidence, dataset: str, scale: str) -> list[int]:
    """Returns the images per class of the sets above ten that were also distilled in sequence."""
    ipcs = {run.ipc for run in evidence.runs if run.dataset == dataset and run.scale == scale and run.num_subsets > 1}
    return [ipc for ipc in sorted(ipcs) if ipc > 10 and len(comparison(evidence, dataset, ipc, scale))]


def tabulate_comparison(evidence: Evidence, dataset: str, ipc: int, scale: str) -> Styler:
    """Returns `comparison` as notebooks show it, with its setting above."""
    frame = format_frame(comparison(evidence, dataset, ipc, scale))
    return style_frame(frame, name_runs(evidence, dataset, ipc, scale))


def find_claim(evidence: Evidence, published: pd.DataFrame, dataset: str, ipc: int, base: str = "mtt") -> str:
    """What the runs with the published network and training say of the paper's claim, in three sentences."""
    numbers = published[(published["dataset"] == dataset) & (published["ipc"] == ipc)].set_index("method")["mean"]
    sequence, ours, gaps, seeds = SEQUENTIAL_PREFIX + base, [], [], []
    for part in evidence.parts("short"):
        rows = comparison(part, dataset, ipc, "short", bases=[base]).set_index("set")
        one_set, halves = leads(rows.reset_index())
        if one_set:
            teachers = f"with {name_scale(part, dataset, ipc, 'short', [base]).partition(', ')[2]}"
            ours.append(f"{rows.loc[one_set[0], 'accuracy']:.1f} and {rows.loc[STAGED, 'accuracy']:.1f} % {teachers}")
            of_halves = f"and {_name_gap(rows, halves)}" if halves else "(independent halves were not run)"
            gaps.append(f"{teachers}, {_name_gap(rows, one_set[0])} {of_halves}")
            seeds.append(int(rows.loc[one_set[0], "difference_seeds"]))
    if not ours:
        return NOTHING
    return (
        f"**In three sentences** ({name_of(dataset)}, {name_ipc(ipc)} images per class, scale `short`).\n\n"
        f"1. Published are {numbers[base]:.1f} % with {name_of(base)} and {numbers[sequence]:.1f} % with {name_of(sequence)}; "
        f"with fewer teachers and iterations we get {'; '.join(ours)}.\n"
        f"2. The sequence is, over the seeds that both sides have, {'; '.join(gaps)}.\n"
        "3. That neither confirms nor refutes that a set is better distilled in sequence: it takes "
        f"{SEEDS_FOR_AN_INTERVAL} seeds with all controls, and there {'is' if max(seeds) == 1 else 'are'} "
        f"{format_range(pd.Series(seeds))}."
    )


def _name_gap(rows: pd.DataFrame, name: str) -> str:
    """Returns where the sequence is beside one set of a comparison, which its rows are named by, in words."""
    gap = rows.loc[name, "difference"]
    return f"{abs(gap):.1f} points {'behind' if gap < 0 else 'ahead of'} *{name_set(name, rows['num_subsets'].max())}*"


def find_leads(evidence: Evidence, dataset: str) -> str:
    """Whether the sequence helps, as tables show it: its lead over one set and over independent halves, at every scale."""
    lines = []
    for (part, scale), ipc in product(evidence.parts_of(reversed(SCALES)), (10, 50)):
        for base, rows in comparison(part, dataset, ipc, scale).groupby("base", sort=False):
            one_set, halves = leads(rows)
            count, named = rows["num_subsets"].max(), [*one_set, *([halves] if halves else [])]
            parts = [f"{_gaps(rows, name, named=False)} against *{name_set(name, count)}*" for name in named]
            parts += [] if halves else [f"{name_set('independent halves', count)} were not run"]
            where = f"{name_ipc(ipc)} images per class, {name_scale(part, dataset, ipc, scale, [base])}"
            lines.append(f"\n- {name_of(SEQUENTIAL_PREFIX + base)}, {where}: {'; '.join(parts)}")
    if not lines:
        return "**Does the sequence help?** Nothing yet: no base method was run both alone and in sequence."
    return (
        "**Does the sequence help?** Each line has the lead of the sequence in stages, in points; with a minus it is behind. "
        "Of several kinds of independent halves (or parts) it is the lead over the best. *One set* has fewer iterations and "
        "epochs than the sequence, unless the line says *as many*. Fewer than three seeds decide nothing.\n"
        f"{''.join(lines)}"
    )


def find_subsets(evidence: Evidence, dataset: str, ipc: int, scale: str) -> str:
    """How accuracy changes with K, and how far the sequence is ahead of its controls."""
    if (frame := queries.subsets(evidence, dataset, ipc, scale)).empty:
        return _finding(name_runs(evidence, dataset, ipc, scale), scale)
    frame = queries.of_one_interval(frame[frame["even"]]).sort_values("num_subsets", kind="stable")
    by_seed = queries.subsets(evidence, dataset, ipc, scale, by_seed=True)
    courses, seeds = [], set()
    for base, rows in queries.of_one_interval(by_seed[by_seed["even"]]).groupby("base", sort=False):
        rows = of_common_seeds(rows, "num_subsets")
        means = rows.groupby("num_subsets")["accuracy"].mean()
        if len(means) > 1:
            seeds |= {*rows["seed"]}
            ends = [f"{means[count]:.1f} at K = {count}" for count in (means.index[0], means.index[-1])]
            courses.append(f"{name_of(base)} {' and '.join(ends)}")
    compared = comparison(evidence, dataset, ipc, scale)
    counts = compared[compared["set"] == STAGED]["num_subsets"]
    found = "Only one K was run, and no sequence beside one set."
    if len(compared):
        found = _minus(compared, _compared_with(compared))
    if courses:
        found = (
            "Accuracy in stages, in per cent, over the seeds that were run at every K (seed "
            f"{', '.join(map(str, sorted(seeds)))}): {', '.join(courses)}. {found}"
        )
    sure = f"Seeds of distillation: {_seeds_by(frame, 'num_subsets', 'K = {}')}."
    if len(counts):
        sure += f" The controls are those of K = {format_range(counts)}; no other K has any."
    return _finding(name_runs(evidence, dataset, ipc, scale), scale, found, sure)


def find_order(evidence: Evidence, dataset: str, ipc: int, scale: str) -> str:
    """What matters: the division, the sequence, or the order of training."""
    if (frame := order(evidence, dataset, ipc, scale)).empty:
        return _finding(name_runs(evidence, dataset, ipc, scale), scale)
    lines = []
    for base, rows in frame.set_index("set").groupby("base", sort=False):
        names = [name for name in (STAGED, HALVES, HALVES_JOINTLY, HALVES_LONGER, ONE_SET) if name in rows.index]
        count = rows["num_subsets"].max()
        parts = [f"{rows.loc[name, 'accuracy']:.1f} ({name_set(name, count)})" for name in names]
        if HALVES not in names:
            parts.append(f"{name_set('independent halves', count)}: not run")
        leads = [f"{rows.loc[name, 'difference']:+.1f} ({text})" for name, text in CHANGES.items() if name in rows.index]
        lines.append(f"\n- {name_of(base)}: {'; '.join(parts)}." + (f" *Lead*: {'; '.join(leads)}." if leads else ""))
    found = (
        "Accuracies are in per cent. *Lead* is the sequence in stages minus the same sequence with one change, in points. "
        f"Where networks are trained jointly, they also have the epochs of one stage and one step size.\n{''.join(lines)}"
    )
    sure = f"{_seeds(frame)}; leads are over the seeds that both sides have."
    return _finding(name_runs(evidence, dataset, ipc, scale), scale, found, sure)


def find_gains(evidence: Evidence, dataset: str, scale: str) -> str:
    """How MTT's lead over random real images changes as the set grows, alone and in sequence."""
    if (frame := queries.gains_at_several_sizes(evidence, dataset, scale)).empty:
        return _finding(name_runs(evidence, dataset, None, scale), scale)
    alone, sequence = (frame[frame["method"] == name] for name in ("mtt", "seqmatch_mtt"))

    def course(rows: pd.DataFrame) -> str:
        return ", ".join(f"{row.gain:+.1f} at {row.ipc}" for row in rows.itertuples())

    found = (
        f"MTT's lead over the same number of random real images, in points, by images per class: {course(alone)}. "
        f"The lead of its sequence: {course(sequence) or 'not run at two sizes'}."
    )
    records = evidence.accuracies.set_index("record")["iterations"]
    counts = [records.loc[row.records.split(", ")].max() for row in alone.itertuples()]
    given = ", ".join(f"{count:,} at ipc {ipc}" for count, ipc in zip(counts, alone["ipc"], strict=True))
    given = f"{counts[0]:,} at every size" if len(set(counts)) == 1 else given
    settings = "equal at all sizes" if alone["equal"].all() else "those of each size's preset, which differ in more"
    sure = f"Seeds of distillation: {_seeds_by(alone, 'ipc', 'ipc {}')}. Settings of MTT: {settings}. Iterations: {given}."
    return _finding(name_runs(evidence, dataset, None, scale), scale, found, sure)


def find_growth(evidence: Evidence, results_dir: Path, dataset: str, scale: str) -> str:
    """Whether coupling grows with the number of images, as far as it was measured."""
    paths = [
        (run.ipc, find_table(run, "gradients", results_dir))
        for run in evidence.runs
        if (run.dataset, run.scale) == (dataset, scale) and run in runs_of(run.preset, scale, evidence.runs)
    ]
    measured = [(ipc, path) for ipc, path in paths if path is not None]
    largest_set = max(measured, default=(0, None))[0]  # smaller sets are other ones, and no seeds of it
    tables = [pd.read_csv(path) for ipc, path in measured if ipc == largest_set]
    if not tables:
        return f"Coupling was not measured on {name_setting(dataset, None, scale)}."
    gradients = pd.concat(tables)
    means, teachers = gradients.pivot_table("coupling", "ipc", "start epoch"), gradients["teacher"].nunique()
    parts = [f"{values.iloc[0]:.2f} and {values.iloc[-1]:.2f} at start epoch {epoch}" for epoch, values in means.items()]
    largest, seeds = means.index[-1], "One seed" if len(tables) == 1 else f"Means over {len(tables)} seeds"
    return (
        f"**What we find** ({label_scale(scale)}). Within one set of MTT, c(A|B) at 2 and at {largest} images per class "
        f"is {'; '.join(parts)}. **How sure.** {seeds}; {_count_teachers(teachers)}. Beyond {largest} images per class, "
        "and so beyond 50, coupling was not measured: the question of the title stays open."
    )


def find_bases(evidence: Evidence, dataset: str, ipc: int, scale: str) -> str:
    """Whether the sequence helps each base method: its lead over one set of the preset, then over the controls."""
    if (frame := comparison(evidence, dataset, ipc, scale)).empty:
        return _finding(name_runs(evidence, dataset, ipc, scale), scale)
    found = _minus(frame, _compared_with(frame))
    sure = f"{_seeds(frame[frame['set'] == STAGED])} for the sequences. A difference is over the seeds that both sides have."
    return _finding(name_runs(evidence, dataset, ipc, scale), scale, found, sure)


def _compared_with(frame: pd.DataFrame) -> Sequence[str]:
    """Returns the sets of a comparison that the sequence is to be told beside: one set, as far as it was run, and controls."""
    first = ONE_SET if _gaps(frame, ONE_SET) else LONGER
    selected = [name for name in SELECTED.values() if _gaps(frame, name)]
    without = frame[~frame["base"].isin(frame[(frame["set"] == EQUAL) & (frame["seeds"] > 0)]["base"])]
    partial = [name for name in (LONGER, MORE_EPOCHS) if name != first and _gaps(without, name)]  # for want of both at once
    return (first, *selected, *partial, *DECIDING)


def find_transfer(evidence: Evidence, dataset: str, ipc: int, scale: str) -> str:
    """The accuracy of sets on architectures that they were not distilled with."""
    if (frame := queries.transfer(evidence, dataset, ipc, scale)).empty:
        return _finding(name_runs(evidence, dataset, ipc, scale), scale)
    parts = [f"{name_of(method)} {_by_network(rows, 'gain')}" for method, rows in frame.groupby("method", sort=False)]
    leads = frame[frame["lead"].notna()]
    cell = [run for run in evidence.runs if (run.dataset, run.ipc, run.scale) == (dataset, ipc, scale)]
    missing = sorted({run.method for run in cell if run.method not in REFERENCES} - set(frame["method"]))
    found = f"Lead over random real images under the same training, in points: {'; '.join(parts)}. "
    for method, rows in leads.groupby("method", sort=False):
        found += f"{name_of(method)} minus {name_of(method.removeprefix(SEQUENTIAL_PREFIX))}: {_by_network(rows, 'lead')}. "
    controls = controls_by_network(evidence, dataset, ipc, scale)
    for (base, name), rows in controls.groupby(["base", "set"], sort=False):
        control = name_set(name, rows["num_subsets"].max())
        found += f"{name_of(SEQUENTIAL_PREFIX + base)} minus {control}: {_by_network(rows, 'difference')}. "
    alone = []
    for name, sets in CONTROLS_OF_TRANSFER.items():
        networks = sorted({*leads["network"]} - {*controls[controls["set"].isin(sets)]["network"], "convnet"})
        alone += [f"{name} on {', '.join(map(name_of, networks))}"] if networks else []
    if alone:
        found += f"Controls that were not evaluated: {'; '.join(alone)}. "
    if missing:
        found += f"Not evaluated on other architectures: the sets of {', '.join(map(name_of, missing))}."
    sure = f"{_seeds(frame)}, {format_range(frame['n'])} networks of each architecture."
    return _finding(name_runs(evidence, dataset, ipc, scale), scale, found, sure)


def _by_network(rows: pd.DataFrame, name: str) -> str:
    """Returns a difference for each architecture, as "+5.5 on AlexNet, +1.9 on ViT"."""
    return ", ".join(f"{row[name]:+.1f} on {name_of(row['network'])}" for row in rows.to_dict("records"))


def find_digits(runs: Mapping[str, RunRecord]) -> str:
    """What the quickstart shows: what can be told apart on digits, and what cannot. `runs` maps names to records."""
    random, mtt, seqmatch, whole = (runs[name].accuracy_last for name in ("random real", "MTT", "SeqMatch", WHOLE))
    first = runs["MTT"]
    found = (
        f"Networks that are trained on {first.ipc} distilled images per class reach {mtt['mean']:.1f} % (MTT) and "
        f"{seqmatch['mean']:.1f} % (SeqMatch), on as many random real ones {random['mean']:.1f} %, on the whole data set "
        f"{whole['mean']:.1f} %. "
        f"{_beside_equal_effort(runs)}"
    )
    sure = (
        f"One seed of distillation, {mtt['n']} networks each: enough to see that distillation works, and not to rank MTT and "
        "SeqMatch. Digits are too easy for that."
    )
    return _finding(name_setting(first.dataset, first.ipc, first.scale), first.scale, found, sure)


def _beside_equal_effort(runs: Mapping[str, RunRecord]) -> str:
    """Returns how far SeqMatch is ahead of its control of equal effort, in sentences."""
    equal, seqmatch = (runs[name].accuracy_last for name in (EQUAL_EFFORT, "SeqMatch"))
    gap, spread = seqmatch["mean"] - equal["mean"], max(seqmatch["std"], equal["std"])
    return (
        f"MTT with as many iterations and epochs as SeqMatch reaches {equal['mean']:.1f} %. SeqMatch minus this is {gap:+.1f} "
        f"points; networks trained on one set differ by a standard deviation of {spread:.1f}."
    )


def find_task(runs: Mapping[str, RunRecord], dataset: str, scale: str) -> str:
    """The accuracy of networks trained on sets of another kind of data; `runs` maps names to records.

    SeqMatch stands beside MTT with as many iterations and epochs; without that run, it says so.
    """
    if not runs:
        where = name_setting(dataset, None, scale)
        return f"**What we find** ({where}). Nothing yet: no run has a record. With compute = True they are run."
    reached = ", ".join(f"{run.accuracy_last['mean']:.1f} for {name}" for name, run in runs.items())
    counts = ", ".join(map(str, sorted({run.accuracy_last["n"] for run in runs.values()})))
    sure = f"One seed of distillation, {counts} networks each. Independent halves were not distilled."
    found = f"Test accuracy in per cent, by training data: {reached}. "
    is_controlled = {EQUAL_EFFORT, "SeqMatch"} <= runs.keys()
    found += _beside_equal_effort(runs) if is_controlled else "MTT with as many iterations and epochs as SeqMatch: not run."
    return _finding(name_setting(dataset, None, scale), scale, found, sure)


def split_reference(runs: Mapping[str, RunRecord]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Returns the accuracies of sets by name, and that of the whole data set, as `figures.plot_accuracies` takes them."""
    accuracies = {name: run.accuracy_last for name, run in runs.items()}
    whole = accuracies.pop(WHOLE, None)
    return accuracies, whole


def find_coupling(measured: dict[str, pd.DataFrame], setting: str) -> str:
    """What losses and gradients of one set and of one sequence say about the paper's argument, in short."""
    parts = []
    if "losses" in measured:
        losses = measured["losses"].query("images == 'hard'").groupby("training")["loss"].agg(["first", "last"])
        joint, sequence = (" to ".join(map("{:.2f}".format, losses.loc[name])) for name in ("MTT", "SeqMatch"))
        parts.append(
            f"Training on the one set takes the mean loss of hard real images from {joint}, on the sequence from {sequence}."
        )
    if "control_losses" in measured:
        last = measured["control_losses"].query("images == 'hard'").groupby("training", sort=False)["loss"].last()
        ends = ", ".join(f"{loss:.2f} on {CONTROLS_IN_WORDS[name]}" for name, loss in last.items())
        parts.append(f"At the end of training on a control it is {ends}.")
    if "gradients" in measured:
        courses, sizes = [], measured["gradients"]["ipc"]
        for images, rows in list_gradients(measured).query("quantity == 'repair(B)'").groupby("images", sort=False):
            means = rows[rows["start epoch"] == rows["start epoch"].min()].groupby("ipc")["value"].mean()
            courses.append(f"{means.iloc[0]:.2f} to {means.iloc[-1]:.2f} for {images}")
        parts.append(
            "*Repair* is 1 where one half of a set only mends the error that the other half leaves, and 0 where it ignores "
            f"that error. Where teachers begin untrained, repair goes from {', and from '.join(courses)}, as the set grows "
            f"from {sizes.min()} to {sizes.max()} images per class."
        )
    sure = "One set and one sequence, one seed, one network each."
    if "control_losses" not in measured:
        sure += " What more epochs of training do to these losses by themselves was not measured."
    return f"**What we find** ({setting}). {' '.join(parts)}\n\n**How sure.** {sure}"


def tabulate_gradients(measured: dict[str, pd.DataFrame], setting: str) -> Styler:
    """Returns coupling and repair in the smallest and the largest set, by start epoch: means over teachers."""
    rows = list_gradients(measured)
    sizes = rows["ipc"].min(), rows["ipc"].max()
    ends = rows[rows["ipc"].isin(sizes)]
    frame = ends.pivot_table("value", ["images", "start epoch"], ["quantity", "ipc"], sort=False).map("{:.2f}".format)
    frame.columns = [f"{quantity}, {ipc} images per class" for quantity, ipc in frame.columns]
    return style_frame(frame.reset_index().astype(str), f"{setting}, {_count_teachers(rows['teacher'].nunique())}")


def list_losses(measured: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns the losses of easy and hard real images and, where measured, those of the controls, one a row."""
    return pd.concat([measured[name] for name in ("losses", "control_losses") if name in measured], ignore_index=True)


def list_errors(measured: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns the matching errors of the sets and, where measured, of unseen teachers and all controls, one a row."""
    names = ("errors", "unseen_errors", "real_errors", "training_errors")
    return pd.concat([measured[name] for name in names if name in measured], ignore_index=True)


def tabulate_losses(measured: dict[str, pd.DataFrame], setting: str) -> Styler:
    """Returns the mean loss of easy and hard real images after each step of each training, and its change at that step."""
    losses = list_losses(measured).pivot_table("loss", ["training", "step"], "images", sort=False)
    changes = losses.groupby("training", sort=False).diff()
    frame = losses.map("{:.2f}".format) + changes.map(lambda change: "" if pd.isna(change) else f" ({change:+.2f})")
    return style_frame(frame.reset_index().astype(str), f"mean loss of real images (change at this step); {setting}")


def tabulate_errors(measured: dict[str, pd.DataFrame], setting: str) -> Styler:
    """Returns the matching errors of each set by the start epoch of the teacher: means over teachers."""
    errors = list_errors(measured).pivot_table("error", "set", "epoch", sort=False)
    frame = errors.map(lambda error: "" if pd.isna(error) else f"{error:.2f}").reset_index()
    return style_frame(frame.rename(columns=str), f"matching error by start epoch, means over teachers; {setting}")


def find_deciles(measured: dict[str, pd.DataFrame], setting: str) -> str:
    """How accuracy on easy and on hard test images changes from stage 1 to stage 2 of training."""
    gains = list_deciles(measured).query("training == @SEQUENCE")
    gain, count = gains.groupby("decile")["gain"].mean(), gains["network"].nunique()
    networks = "one network" if count == 1 else f"means over {count} networks"
    return (
        f"**{setting}**. From stage 1 to stage 2, accuracy changes by {gain.iloc[0]:+.1f} points on the easiest tenth of test "
        f"images, by {gain.iloc[-1]:+.1f} on the hardest, and by {gain.mean():+.1f} on average ({networks})."
    )


def list_accuracies(measured: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns the accuracies by difficulty after each training that was measured, with `training` for `after`."""
    names = [name for name in DECILES if name in measured]
    return pd.concat([measured[name] for name in names], ignore_index=True).rename(columns={"after": "training"})


def list_deciles(measured: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns how far each network is ahead of itself after stage 1, on each tenth of test images after each training.

    Columns `decile`, `training`, `network`, `gain` (points) and `log_odds` (the gain of log(p / (1 - p)), where p is the
    accuracy; 0 and 100 % count as 0.05 and 99.95 %). The trainings are later stages, the last one called SeqMatch, and, where
    they were measured, the selected iterate of the sequence and the controls.
    """
    rows = list_accuracies(measured)
    rows["odds"] = np.log(1 / (100 / rows["accuracy"].clip(0.05, 99.95) - 1))
    first, place = rows[rows["training"] == "stage 1"], ["network", "decile"]
    last = measured["deciles"]["after"].iloc[-1]
    rows = rows[rows["training"] != "stage 1"].replace({"training": {last: SEQUENCE}})
    rows = rows.merge(first[[*place, "accuracy", "odds"]], on=place, suffixes=("", "_first"))
    rows["gain"], rows["log_odds"] = rows["accuracy"] - rows["accuracy_first"], rows["odds"] - rows["odds_first"]
    return rows[["decile", "training", "network", "gain", "log_odds"]]


def mean_on(part: str, rows: pd.DataFrame, column: str = "gain") -> pd.DataFrame:
    """Returns the mean of a column on one of `TENTHS`, parts of the test images: rows are trainings, columns are networks."""
    rows = rows[rows["decile"].isin(TENTHS[part])]
    return rows.pivot_table(column, "training", "network", sort=False)


def tabulate_deciles(measured: dict[str, pd.DataFrame], setting: str) -> Styler:
    """Returns the accuracy on easy and on hard test images after each training: mean ± std over networks."""
    rows = list_accuracies(measured)
    frame = pd.DataFrame({part: _with_spread(mean_on(part, rows, "accuracy"), ".1f") for part in TENTHS})
    return style_frame(frame.reset_index(), f"test accuracy, %; {setting}")


def tabulate_gains(measured: dict[str, pd.DataFrame], setting: str) -> Styler:
    """Returns how far each training is ahead of stage 1 on easy and on hard test images: mean ± std over networks."""
    gains = list_deciles(measured)
    frame = pd.DataFrame({part: _with_spread(mean_on(part, gains), "+.1f") for part in TENTHS})
    for part in ("easiest tenth", "hardest tenth"):
        frame[f"log-odds, {part}"] = _with_spread(mean_on(part, gains, "log_odds"), "+.2f")
    return style_frame(frame.reset_index(), f"points more than after stage 1; {setting}")


def _with_spread(values: pd.DataFrame, form: str) -> pd.Series:
    """Returns the mean of each row in words, with the standard deviation where there are several values."""
    spread = values.std(axis=1).map(lambda std: "" if pd.isna(std) else f" ± {std:{form.removeprefix('+')}}")
    return values.mean(axis=1).map(f"{{:{form}}}".format) + spread


def _count_teachers(count: int) -> str:
    return "one teacher" if count == 1 else f"means over {count} teachers"


def list_gradients(measured: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns c(A|B) and repair(B) one a row, of the one set and, where they were measured, of random real images.

    Columns `images` (which of the two), `ipc`, `start epoch`, `teacher`, `quantity` and `value`.
    """
    both = pd.concat([measured[name].assign(images=images) for images, name in GRADIENTS.items() if name in measured])
    both = both.rename(columns={"coupling": "c(A|B)", "repair_share": "repair(B)"})
    return both.melt(["images", "ipc", "start epoch", "teacher"], ["c(A|B)", "repair(B)"], "quantity")


def _minus(frame: pd.DataFrame, names: Sequence[str]) -> str:
    """Returns a list of how far the sequence in stages is ahead of these sets of a comparison."""
    lines = [f"\n- *{name_set(name, frame['num_subsets'].max())}*: {_gaps(frame, name) or 'not run'}" for name in names]
    return f"The sequence in stages minus each of these sets, in points:\n{''.join(lines)}"


def _gaps(frame: pd.DataFrame, name: str, named: bool = True) -> str:
    """Returns the gaps to one set, by base method, and perhaps with its name; "" if it was run for none."""
    rows = frame[frame["set"] == name]
    if not rows["seeds"].any():
        return ""
    gaps = zip(rows["base"], format_frame(rows)["difference"], rows["difference_seeds"], strict=True)
    parts = []
    for base, text, seeds in gaps:
        parts.append(f"{name_of(base)} " * named + (f"{text} ({count_seeds(seeds)})" if seeds else "not run"))
    return ", ".join(parts)


def _seeds(frame: pd.DataFrame) -> str:
    counts = format_range(frame["seeds"])
    return f"{counts} seed{'s' * (counts != '1')} of distillation"


def _seeds_by(frame: pd.DataFrame, column: str, name: str) -> str:
    """Returns the numbers of seeds at each value of a column."""
    groups = frame.groupby(column)["seeds"]
    return ", ".join(f"{format_range(counts)} at {name.format(value)}" for value, counts in groups)


def _finding(setting: str, scale: str, found: str = NOTHING, sure: str = "") -> str:
    return f"**What we find** ({setting}). {found}\n\n**How sure.** {sure} {OF_SCALES.get(scale, '')}"

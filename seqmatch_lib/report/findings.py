"""What notebooks say first: sentences whose numbers are those of the records, and how sure they are.

A function a question. Each returns Markdown: what we find, then how sure that is. Where a control was not run, it says so.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from seqmatch_lib.report import queries
from seqmatch_lib.report.queries import Evidence, format_range, gains_at_several_sizes, label_scale, name_runs, name_setting
from seqmatch_lib.runs.config import SCALES
from seqmatch_lib.runs.records import RunRecord, load_runs

OTHERWISE = {"S_2 first": "SeqMatch, S_2 first", "S_2 undistilled": "SeqMatch, S_2 undistilled", "jointly": "SeqMatch, joint"}
NOTHING = "Nothing yet: no such run has a record."
OF_SCALES = {
    "smoke": "Scale smoke: these numbers mean nothing.",
    "reduced": "A rehearsal has smaller networks, fewer teachers and fewer iterations than published, and decides nothing "
    "about the paper's own settings.",
    "short": "These are published settings with fewer teachers and iterations.",
}


def shown_scales(query: Callable[..., pd.DataFrame], *arguments: Any) -> list[str]:
    """Returns the scales at which a query finds something, the nearest to published settings first; it takes them last."""
    return [scale for scale in reversed(SCALES) if len(query(*arguments, scale))]


def large_sequences(evidence: Evidence, dataset: str, scale: str) -> list[int]:
    """Returns the images per class of the sets above ten that were also distilled in sequence."""
    ipcs = {run.ipc for run in evidence.runs if run.dataset == dataset and run.scale == scale and run.num_subsets > 1}
    return [ipc for ipc in sorted(ipcs) if ipc > 10 and len(queries.comparison(evidence, dataset, ipc, scale))]


def tabulate_comparison(evidence: Evidence, dataset: str, ipc: int, scale: str) -> Styler:
    """Returns `queries.comparison` as notebooks show it, with its setting above."""
    frame = queries.format_frame(queries.comparison(evidence, dataset, ipc, scale))
    return queries.style_frame(frame, name_runs(evidence, dataset, ipc, scale))


def find_subsets(evidence: Evidence, dataset: str, ipc: int, scale: str) -> str:
    """How accuracy changes with K, beside one set of equal cost."""
    frame = queries.subsets(evidence, dataset, ipc, scale)
    if frame.empty:
        return _finding(dataset, ipc, scale)
    frame = frame[frame["even"]].sort_values("num_subsets", kind="stable")
    courses = []
    for base, rows in frame.groupby("base", sort=False):
        if len(rows) > 1:
            ends = [f"{row.accuracy:.1f} at K = {row.num_subsets}" for row in rows.iloc[[0, -1]].itertuples()]
            courses.append(f"{base.upper()} {' and '.join(ends)}")
    controls = _controls(evidence, dataset, ipc, scale, queries.EQUAL)
    found = f"Accuracy in stages, in per cent: {', '.join(courses)}. {controls}"
    sure = f"Seeds of distillation: {_seeds_by(frame, 'num_subsets', 'K = {}')}."
    return _finding(dataset, ipc, scale, found, sure)


def find_order(evidence: Evidence, dataset: str, ipc: int, scale: str) -> str:
    """Whether the division, the sequence or the order of training is what matters."""
    frame = queries.order(evidence, dataset, ipc, scale)
    if frame.empty:
        return _finding(dataset, ipc, scale)
    halves, parts = [], []
    for base, rows in frame.set_index("set").groupby("base", sort=False):
        if "divided, staged" in rows.index:
            divided, sequence = rows.loc[["divided, staged", "SeqMatch"], "accuracy"]
            halves.append(f"{base.upper()} {divided:.1f} (the sequence {sequence:.1f})")
        gaps = [f"{text} {rows.loc[name, 'difference']:+.1f}" for text, name in OTHERWISE.items() if name in rows.index]
        parts.append(f"{base.upper()}: {', '.join(gaps)}")
    found = (
        "Halves that were distilled without knowing of each other are worth, in stages: "
        f"{', '.join(halves) or 'not run'}. Points lost or won by training in another way on the sequence's images: "
        f"{'; '.join(parts)}."
    )
    return _finding(dataset, ipc, scale, found, f"{_seeds(frame)}; differences are over the same seeds.")


def find_gains(evidence: Evidence, dataset: str, scale: str) -> str:
    """How MTT's lead over random real images changes as the set grows, alone and in sequence."""
    frame = gains_at_several_sizes(evidence, dataset, scale)
    if frame.empty:
        return _finding(dataset, None, scale)
    alone, sequence = (frame[frame["method"] == name] for name in ("mtt", "seqmatch_mtt"))

    def course(rows: pd.DataFrame) -> str:
        return ", ".join(f"{row.gain:+.1f} at {row.ipc}" for row in rows.itertuples())

    found = (
        f"The lead of MTT over as many random real images, in points by images per class: {course(alone)}. "
        f"That of its sequence: {course(sequence) or 'not run'}."
    )
    sure = (
        f"Seeds of distillation: {_seeds_by(alone, 'ipc', '{} images')}. Iterations are the same at every size, so that "
        "larger sets are further from finished."
    )
    return _finding(dataset, None, scale, found, sure)


def find_growth(results_dir: Path, dataset: str, scale: str) -> str:
    """Whether coupling grows with the set, as far as it was measured."""
    known = {run.run_id for run in load_runs(results_dir) if run.scale == scale}
    parts, largest = [], 0
    for path in sorted((results_dir / "coupling").glob(f"{dataset}-*/gradients.csv")):
        if path.parent.name in known:
            means = pd.read_csv(path).groupby("ipc")["coupling"].mean()
            parts.append(
                f"{means.iloc[0]:.2f} at {means.index[0]} images per class and {means.iloc[-1]:.2f} at {means.index[-1]} "
                f"(beside `{path.parent.name[-8:]}`)"
            )
            largest = max(largest, int(means.index[-1]))
    if not parts:
        return f"Coupling was not measured on {dataset}, {label_scale(scale)}."
    return (
        f"**What we find** ({label_scale(scale)}). Within one joint set of MTT, c(A|B) is {'; '.join(parts)}. "
        f"**How sure.** One seed, three segments of one teacher. Beyond {largest} images per class, and so beyond 50, "
        "coupling was not measured: the question of the title stays open."
    )


def find_bases(evidence: Evidence, dataset: str, ipc: int, scale: str) -> str:
    """Whether the sequence helps each base method, first against one set as the preset makes it, then against its controls."""
    frame = queries.comparison(evidence, dataset, ipc, scale)
    if frame.empty:
        return _finding(dataset, ipc, scale)
    plain = _gaps(frame, queries.ONE_SET) or "not run"
    controls = " ".join(_controls(evidence, dataset, ipc, scale, name) for name in queries.DECIDING)
    found = f"The sequence in stages less one set of its preset, in points: {plain}. {controls}"
    return _finding(dataset, ipc, scale, found, f"{_seeds(frame[frame['set'] == queries.STAGED])} for the sequences.")


def find_transfer(evidence: Evidence, dataset: str, ipc: int, scale: str) -> str:
    """What sets are worth for architectures that they were not distilled with."""
    frame = transfer(evidence, dataset, ipc, scale)
    if frame.empty:
        return _finding(dataset, ipc, scale)
    parts = []
    for method, rows in frame.groupby("method", sort=False):
        gains = ", ".join(f"{row.gain:+.1f} on {row.network}" for row in rows.itertuples())
        parts.append(f"{method} {gains}")
    missing = sorted({"mtt", "idc", "seqmatch_mtt", "seqmatch_idc"} - set(frame["method"]))
    found = f"Points over random real images under the same training: {'; '.join(parts)}. "
    if missing:
        found += f"Other architectures were not asked about the sets of {', '.join(missing)}."
    return _finding(dataset, ipc, scale, found, f"{_seeds(frame)}, {frame['n'].min()} networks and more of each architecture.")


def transfer(evidence: Evidence, dataset: str, ipc: int, scale: str) -> pd.DataFrame:
    """Returns what sets of presets are worth for several architectures: a row a method and architecture.

    Columns `method`, `network`, `accuracy`, `random`, `gain`, each with its spread, `seeds`, `n`; methods of which one
    architecture is known are left out.
    """
    rows = evidence.accuracies
    rows = rows[(rows["dataset"] == dataset) & (rows["ipc"] == ipc) & (rows["scale"] == scale)]
    of_networks = {"evaluation.networks", "evaluation.num_networks"}
    rows = queries.where(rows, (changes.keys() <= of_networks for changes in rows["changes"]))
    rows = queries.where(rows, (all(key.startswith("evaluation.") for key in asked) for asked in rows["asked"]))
    rows = rows[(rows["trained"] != "jointly") & (rows["method"] != "random")]
    pooled = []
    for (method, network), group in rows.groupby(["method", "network"], sort=False):
        last, random = (queries.values_by_seed(group[group["kind"].str.startswith(kind)]) for kind in ("last", "random"))
        if random:
            row = {"method": method, "network": network} | queries.mean_and_std(last)
            row |= queries.mean_and_std(random, "random") | queries.difference(last, random, "gain")
            pooled.append(row | {"seeds": len(last), "n": sum(map(len, last.values()))})
    if not pooled:
        return pd.DataFrame(columns=["method", "network", "accuracy", "random", "gain", "seeds", "n"])
    frame = pd.DataFrame(pooled)
    return frame[frame.groupby("method")["network"].transform("nunique") > 1].reset_index(drop=True)


def find_digits(runs: Mapping[str, RunRecord]) -> str:
    """What the quickstart shows: what can be told apart on digits, and what cannot. `runs` are by what they are called."""
    random, mtt, seqmatch, whole = (runs[name].accuracy_last for name in ("random real", "MTT", "SeqMatch", WHOLE))
    gains = [accuracy["mean"] - random["mean"] for accuracy in (mtt, seqmatch)]
    gap, spread = seqmatch["mean"] - mtt["mean"], max(seqmatch["std"], mtt["std"])
    apart = "less" if abs(gap) <= 2 * spread else "more"
    first = runs["MTT"]
    found = (
        f"Random real images reach {random['mean']:.1f} %; distilled ones are ahead of them by {gains[0]:.1f} (MTT) and "
        f"{gains[1]:.1f} points (SeqMatch), and the whole data set reaches {whole['mean']:.1f} %. SeqMatch less MTT is "
        f"{gap:+.1f} points: {apart} than twice the spread over networks, {spread:.1f}."
    )
    sure = (
        f"One seed of distillation, {mtt['n']} networks each. That distillation works can be seen here; digits are too easy "
        "to rank methods by."
    )
    return _finding(first.dataset, first.ipc, first.scale, found, sure)


def find_task(runs: Mapping[str, RunRecord], dataset: str, scale: str) -> str:
    """What networks reach that were trained on sets of another kind of data; `runs` are by what they are called."""
    if not runs:
        where = name_setting(dataset, None, scale)
        return f"**What we find** ({where}). Nothing yet: no run has a record; compute = True runs them."
    reached = ", ".join(f"{run.accuracy_last['mean']:.1f} on {name}" for name, run in runs.items())
    counts = ", ".join(map(str, sorted({run.accuracy_last["n"] for run in runs.values()})))
    sure = f"One seed of distillation, {counts} networks each; no control of equal cost."
    return _finding(dataset, None, scale, f"Networks reach, in per cent of test labels: {reached}.", sure)


WHOLE = "whole data set"


def split_reference(runs: Mapping[str, RunRecord]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Returns the accuracies of sets by name, and that of the whole data set, as `figures.plot_accuracies` takes them."""
    accuracies = {name: run.accuracy_last for name, run in runs.items()}
    whole = accuracies.pop(WHOLE, None)
    return accuracies, whole


def find_coupling(measured: dict[str, pd.DataFrame], setting: str) -> str:
    """What the measurements of one joint and one sequential set say about the paper's argument, as far as they were made."""
    parts, sure = [], ["One joint and one sequential set, one seed"]
    if "losses" in measured:
        losses = measured["losses"].groupby(["training", "images"])["loss"].agg(["first", "last"])
        parts.append(
            f"After training on the joint set, the loss of easy real images is {losses.loc[('MTT', 'easy'), 'last']:.2f} and "
            f"that of hard ones {losses.loc[('MTT', 'hard'), 'last']:.2f}, where fresh networks begin at "
            f"{losses.loc[('MTT', 'hard'), 'first']:.2f}; after the sequence they are "
            f"{losses.loc[('SeqMatch', 'easy'), 'last']:.2f} and {losses.loc[('SeqMatch', 'hard'), 'last']:.2f}."
        )
    if "gradients" in measured:
        gradients = measured["gradients"].groupby("ipc")["coupling"].mean()
        parts.append(
            f"When the other half of the joint set is added, the gradient of one half changes by {gradients.iloc[0]:.2f} of "
            f"its length at {gradients.index[0]} images per class, and by {gradients.iloc[-1]:.2f} at {gradients.index[-1]}."
        )
        sure.append(f"gradients at {measured['gradients']['match'].nunique()} segments of one teacher")
    if "deciles" in measured:
        deciles = measured["deciles"].pivot_table("accuracy", "decile", "after")
        gain = deciles.iloc[:, -1] - deciles.iloc[:, 0]
        parts.append(
            f"The second subset adds {gain.iloc[0]:+.1f} points on the easiest tenth of test images and "
            f"{gain.iloc[-1]:+.1f} on the hardest, {gain.mean():+.1f} on average."
        )
    if "errors" in measured:
        late = measured["errors"].groupby(["set", "epoch"], sort=False)["error"].mean().groupby("set", sort=False).last()
        errors = ", ".join(f"{value:.2f} for {name}" for name, value in late.items())
        parts.append(f"At the last start epoch the matching error is {errors}.")
        sure.append("errors over all teachers")
    return (
        f"**What we find** ({setting}). {' '.join(parts)}\n\n**How sure.** {'; '.join(sure)}. A control is missing here: "
        "the second subset comes with a second stage of training, and `21_ablation_order` shows what independent halves do in "
        "its place."
    )


def _controls(evidence: Evidence, dataset: str, ipc: int, scale: str, name: str) -> str:
    """Returns a sentence about a control of the sequences."""
    gaps = _gaps(queries.comparison(evidence, dataset, ipc, scale), name)
    return f"The control, {name}: the sequence less that, {gaps}." if gaps else f"The control, {name}, was not run."


def _gaps(frame: pd.DataFrame, name: str) -> str:
    rows = frame[(frame["set"] == name) & (frame["seeds"] > 0)]
    gaps = zip(rows["base"], queries.format_frame(rows)["difference"], rows["seeds"], strict=True)
    return ", ".join(f"{base.upper()} {text} ({seeds} seed{'s' * (seeds > 1)})" for base, text, seeds in gaps)


def _seeds(frame: pd.DataFrame) -> str:
    counts = format_range(frame["seeds"])
    return f"{counts} seed{'s' * (counts != '1')} of distillation"


def _seeds_by(frame: pd.DataFrame, column: str, name: str) -> str:
    """Returns the numbers of seeds at each value of a column."""
    groups = frame.groupby(column)["seeds"]
    return ", ".join(f"{format_range(counts)} at {name.format(value)}" for value, counts in groups)


def _finding(dataset: str, ipc: int | None, scale: str, found: str = NOTHING, sure: str = "") -> str:
    setting = name_setting(dataset, ipc, scale)
    return f"**What we find** ({setting}). {found}\n\n**How sure.** {sure} {OF_SCALES.get(scale, '')}"

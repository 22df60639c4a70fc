"""The paper's claims, one a row: what was measured, beside which control, and the verdict that one rule gives.

The rule: a claim is decided at published settings alone (scales "paper" and "short"), by three seeds of distillation or more.
Then a difference is confirmed if its 95 % interval, and that from every control, lies above 0, and an accuracy if it is not
more than two standard deviations below the published mean. Otherwise it is not confirmed; but an accuracy that is missed at
scale "short", which has fewer iterations, decides nothing. Nor does what was measured at other scales, with fewer seeds or
without its controls.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import hypot, isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from seqmatch_lib.methods import method_names
from seqmatch_lib.report import queries
from seqmatch_lib.report.queries import HALVES, LONGER, ONE_SET, PUBLISHED_SETTINGS, SEEDS_FOR_AN_INTERVAL, STAGED, Evidence
from seqmatch_lib.report.tables import DAGGER, DATASETS, UNVERIFIED, build_table, format_table
from seqmatch_lib.runs.config import SEQUENTIAL_PREFIX

CONFIRMED, NOT_CONFIRMED, NOT_DECIDED = "confirmed", "not confirmed", "not decided"
SCALES = (*PUBLISHED_SETTINGS, "reduced")  # the one that decides first
COLUMNS = ("claim", "setting", "published", "measured", "control", "verdict", "records")


class Gap(NamedTuple):
    """A difference of accuracy in points, with its 95 % interval (NaN below three seeds) and its number of seeds."""

    mean: float = nan
    low: float = nan
    high: float = nan
    seeds: int = 0

    def __str__(self) -> str:
        interval = "" if pd.isna(self.low) else f" [{self.low:+.1f}, {self.high:+.1f}]"
        return f"{self.mean:+.1f}{interval}, {_seeds(self.seeds)}" if self.seeds else "not run"

    @property
    def direction(self) -> str:
        """What the interval says of the first side: "ahead", "behind", "level", or how few seeds there are."""
        if self.seeds < SEEDS_FOR_AN_INTERVAL:
            return _seeds(self.seeds) if self.seeds else "not run"
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else "level"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def judge_difference(gap: Gap, scale: str, controls: Mapping[str, Gap] | None = None) -> str:
    """Returns the verdict on a claimed gain; see the head of this file.

    Args:
        gap: what is claimed to be positive.
        scale: of the runs.
        controls: name -> the gap to that control, which must be positive, too.
    """
    if not gap.seeds:
        return f"{NOT_DECIDED} (not run)"
    directions = {name: control.direction for name, control in (controls or {}).items()}
    if scale not in PUBLISHED_SETTINGS:
        failed = [f"{name}: {direction}" for name, direction in directions.items() if direction in ("behind", "level")]
        return f"{NOT_DECIDED} (rehearsal: {'; '.join([gap.direction, *failed])})"
    for verdict, words in ((NOT_CONFIRMED, ("level", "behind")), (NOT_DECIDED, ("not run", "1 seed", "2 seeds"))):
        for name, direction in ({"": gap.direction} | directions).items():
            if direction in words:
                return f"{verdict} ({f'{name}: ' if name else ''}{direction})"
    return CONFIRMED


def judge_accuracy(ours: float, ours_std: float, published: float, published_std: float, seeds: int, scale: str) -> str:
    """Returns the verdict on a published accuracy; see the head of this file."""
    if seeds < SEEDS_FOR_AN_INTERVAL:
        return f"{NOT_DECIDED} ({_seeds(seeds)})"
    spread = hypot(*(0.0 if pd.isna(std) else std for std in (ours_std, published_std)))
    if ours >= published - 2 * spread:
        return CONFIRMED
    return f"{NOT_CONFIRMED if scale == 'paper' else NOT_DECIDED} ({ours - published:+.1f})"


def list_verdicts(evidence: Evidence, published: pd.DataFrame, results_dir: Path) -> pd.DataFrame:
    """Returns one page: every claim with its setting, what was measured, its control, the verdict, and the records behind it.

    `published` is of `tables.load_published`; the coupling measurements are read from `results_dir`.
    """
    known = published.set_index(["dataset", "ipc", "method"])
    rows = [
        *_sequences(evidence, known),
        *_knowing(evidence),
        *_coupling(evidence, results_dir),
        *_over_random(evidence, known),
        *_accuracies(evidence, published),
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def summarise(verdicts: pd.DataFrame) -> str:
    """Returns how many claims have which verdict, in a sentence, as Markdown."""
    given = verdicts["verdict"].str
    counts = ", ".join(f"{given.startswith(kind).sum()} {kind}" for kind in (CONFIRMED, NOT_CONFIRMED, NOT_DECIDED))
    rehearsed = given.contains("rehearsal").sum()
    return (
        f"**What we find.** Of {len(verdicts)} claims, {counts}. **How sure.** {rehearsed} of them were only rehearsed: "
        "smaller networks, fewer teachers and iterations. What a rehearsal shows stands in brackets and decides nothing."
    )


def _accuracies(evidence: Evidence, published: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    """Published accuracies of what was run at published settings."""
    for dataset in DATASETS:
        table = build_table(dataset, evidence.runs, published)
        table = table[(table["seeds"] > 0) & table["published"].notna()]
        for (_, row), shown in zip(table.iterrows(), format_table(table).to_dict("records"), strict=True):
            augmented = pd.notna(row["augmented"])
            mean, std = (row["augmented"], 0.0) if augmented else (row["published"], row["published_std"])
            verdict = judge_accuracy(row["ours"], row["ours_std"], mean, std, row["seeds"], row["scale"])
            records = ", ".join(run.config_hash[:8] for run in queries.runs_of(row["preset"], row["scale"], evidence.runs))
            setting = queries.name_setting(dataset, row["ipc"], row["scale"])
            measured = f"{shown['ours']}, {_seeds(row['seeds'])}"
            claim = f"{_name(row['method'])}: the published accuracy is reached"
            control = "" if row["method"] == "random" else f"random real {shown['random']}"
            yield claim, setting, shown["published"], measured, control, verdict, records


def _sequences(evidence: Evidence, known: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    """The gain of the sequence over its base method, wherever it was published, and on CIFAR-10 for the other base methods."""
    cells = [key for key in known.index if key[2].startswith(SEQUENTIAL_PREFIX)]
    cells += [("cifar10", 10, SEQUENTIAL_PREFIX + base) for base in method_names()]
    for dataset, ipc, method in dict.fromkeys(cells):
        base = method.removeprefix(SEQUENTIAL_PREFIX)
        scale, frame = _leading(partial(queries.comparison, bases=[base]), evidence, dataset, ipc)
        sets = frame.set_index("set")
        one_set = next((name for name in (ONE_SET, LONGER) if _gap(sets, name).seeds), ONE_SET)
        gap = _gap(sets, one_set)
        controls = {"equal cost": _gap(sets, queries.EQUAL), "independent halves": _gap(sets, HALVES)}
        yield (
            f"{_name(method)} is ahead of {_name(base)}", queries.name_runs(evidence, dataset, ipc, scale, [base]),
            " over ".join(_printed(known, dataset, ipc, name) for name in (method, base)),
            f"{gap} ({one_set})" if one_set == LONGER else str(gap),
            "; ".join(f"{name} {control}" for name, control in controls.items()) if gap.seeds else "",
            judge_difference(gap, scale, controls), ", ".join(sets.loc[[one_set, STAGED], "records"] if gap.seeds else []),
        )  # fmt: skip


def _printed(known: pd.DataFrame, dataset: str, ipc: int, method: str) -> str:
    if (dataset, ipc, method) not in known.index:
        return "–"
    row = known.loc[(dataset, ipc, method)]
    return f"{row['mean']:.1f}{DAGGER * (row['check'] == UNVERIFIED)}"


def _over_random(evidence: Evidence, known: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    """The gain of MTT's images over random real ones, at every published size."""
    for ipc in (1, 10, 50):
        scale, frame = _leading(queries.gain_over_random, evidence, "cifar10", method="mtt", ipc=ipc)
        for row in frame.to_dict("records"):
            gap = Gap(row["gain"], row["gain_low"], row["gain_high"], row["seeds"])
            printed = " over ".join(_printed(known, "cifar10", ipc, method) for method in ("mtt", "random"))
            control = f"random real {row['accuracy'] - row['gain']:.1f}, trained alike"
            verdict, setting = judge_difference(gap, scale), queries.name_setting("cifar10", ipc, scale)
            yield "MTT is ahead of random real images", setting, printed, str(gap), control, verdict, row["records"]


def _knowing(evidence: Evidence) -> Iterable[tuple[str, ...]]:
    """Whether a second subset gains from being distilled for networks that know the first one."""
    for base in method_names():
        scale, frame = _leading(queries.order, evidence, "cifar10", 10, base=base)
        sets = frame.set_index("set")
        if "divided, staged" in sets.index:
            halves = sets.loc["divided, staged"]
            gap = Gap(-halves["difference"], -halves["difference_high"], -halves["difference_low"], halves["seeds"])
            first = sets["difference"].get("SeqMatch, S_2 first", nan)
            control = "S_2 first: not run" if isnan(first) else f"S_2 first {first:+.1f}"
            claim = f"SeqMatch-{_name(base)}: an S_2 that knows S_1 is ahead of an independent half"
            setting, verdict = queries.name_setting("cifar10", 10, scale), judge_difference(gap, scale)
            yield claim, setting, "argument", str(gap), control, verdict, halves["records"]


def _coupling(evidence: Evidence, results_dir: Path) -> Iterable[tuple[str, ...]]:
    """How training on a joint set, and on a sequence stage by stage, changes the loss of hard real images."""
    for run in evidence.runs:
        path = results_dir / "coupling" / run.run_id / "losses.csv"
        if path.is_file() and run in queries.runs_of(run.preset, run.scale, evidence.runs):
            losses = pd.read_csv(path).query("images == 'hard' and training != 'real data'")
            changes = {name: rows["loss"].diff().dropna() for name, rows in losses.groupby("training", sort=False)}
            measured = "; ".join(f"{name} {', then '.join(map('{:+.2f}'.format, steps))}" for name, steps in changes.items())
            yield (
                "One set raises the loss of hard real images, a later subset lowers it",
                queries.name_runs(evidence, run.dataset, run.ipc, run.scale, ["mtt"]), "figure 1", measured,
                "one set trained on for as long: not run", judge_difference(Gap(seeds=1), run.scale),
                run.config_hash[:8],
            )  # fmt: skip


def _leading(query: Callable[..., pd.DataFrame], evidence: Evidence, *cell: Any, **equal: Any) -> tuple[str, pd.DataFrame]:
    """Returns the first of `SCALES` at which a query finds rows that are equal in these columns, and these rows."""
    for scale in SCALES:
        rows = query(evidence, *cell, scale)
        for column, value in equal.items():
            rows = rows[rows[column] == value]
        if len(rows):
            return scale, rows
    return "", pd.DataFrame(columns=["set"])


def _gap(sets: pd.DataFrame, name: str) -> Gap:
    """Returns the gap of the staged sequence to a set of a comparison."""
    if name not in sets.index or not sets.loc[name, "seeds"]:
        return Gap()
    row = sets.loc[name]
    return Gap(row["difference"], row["difference_low"], row["difference_high"], min(row["seeds"], sets.loc[STAGED, "seeds"]))


def _name(method: str) -> str:
    """Returns a method as the paper writes it."""
    base = method.removeprefix(SEQUENTIAL_PREFIX)
    shown = {"random": "Random real images", "whole": "The whole data set"}.get(base, base.upper())
    return f"SeqMatch-{shown}" if method != base else shown

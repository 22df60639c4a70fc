"""The paper's claims: what was measured at each scale, the controls, and the verdict that one rule gives.

The rule: three seeds of distillation or more decide a claim, at scale "paper", or at scale "short" with all its teachers and
iterations.

- Confirmed: the 95 % interval of a difference lies above 0, and so does that from every control; or an accuracy is at least
  the published mean minus two standard deviations of both together. A difference of last iterates is controlled by
  that of the selected ones, since a last iterate can come after a leap of the loss, and public code reports the best.
- Not confirmed: one of these intervals does not lie above 0, or the accuracy is lower. But an accuracy that is missed
  at scale "short", which has fewer iterations, decides nothing.
- Not decided: everything else, such as other scales, fewer seeds, or controls that were not run. Claims on losses and
  gradients were measured in single pairs: they are seen there or not, and never decided.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from math import hypot, nan
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from seqmatch_lib.data.datasets import PAPER_DATASETS
from seqmatch_lib.methods import get_method, method_names
from seqmatch_lib.report.controls import (
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
    order,
)
from seqmatch_lib.report.evidence import PUBLISHED_SETTINGS, Evidence, runs_of
from seqmatch_lib.report.findings import SEQUENCE, list_deciles, mean_on
from seqmatch_lib.report.numbers import SEEDS_FOR_AN_INTERVAL, difference
from seqmatch_lib.report.queries import gain_over_random, transfer
from seqmatch_lib.report.tables import build_table, format_table, mark_published
from seqmatch_lib.report.texts import count_seeds, format_gap, name_cell, name_of, name_scale, name_scale_of, name_set
from seqmatch_lib.runs.config import REFERENCES, SEQUENTIAL_PREFIX, RunConfig
from seqmatch_lib.runs.coupling_measurements import COUPLING_CONTROLS, ONE_SET_LONGER, find_table, read_table
from seqmatch_lib.runs.records import RunRecord

CONFIRMED, NOT_CONFIRMED, NOT_DECIDED = "confirmed", "not confirmed", "not decided"
SCALES = (*PUBLISHED_SETTINGS, "reduced")  # the one that decides first
COLUMNS = ("whose", "claim", "setting", "scale", "published", "measured", "control", "verdict", "records")
PAPER, BASE, OURS = "the paper", "base methods", "our own questions"  # whose claim it is, in the order of the page
SEEN, LEVEL, NOT_SEEN = "seen", "level", "not seen"  # what a measurement of coupling says, with one seed
PAPER_BASES = ("mtt", "idc")  # base methods that the paper puts its sequence on
OF_REFERENCES = {"random": "Random real images", "whole": "The whole data set"}  # as a claim begins
CONTROLS = {
    "as many iterations and epochs": EQUAL,
    "halves in stages": HALVES,
    "halves jointly": HALVES_JOINTLY,
    "halves jointly for as many epochs": HALVES_LONGER,
}
PARTIAL = {"as many iterations": LONGER, "as many epochs": MORE_EPOCHS}  # for want of the first of them


class Gap(NamedTuple):
    """A difference of accuracy in points, with its 95 % interval (NaN below three seeds) and its number of seeds."""

    mean: float = nan
    low: float = nan
    high: float = nan
    seeds: int = 0

    @classmethod
    def read(cls, row: Mapping[str, Any], name: str) -> "Gap":
        """Returns the gap of this name in a row, with its interval and seeds, as `numbers.difference` names them."""
        return cls(row[name], row[f"{name}_low"], row[f"{name}_high"], int(row[f"{name}_seeds"]))

    def __str__(self) -> str:
        return f"{format_gap(self.mean, self.low, self.high)}, {count_seeds(self.seeds)}" if self.seeds else "not run"

    @property
    def decides(self) -> bool:
        """Whether there are seeds enough for an interval."""
        return self.seeds >= SEEDS_FOR_AN_INTERVAL

    @property
    def direction(self) -> str:
        """Where the first side is by the interval: "ahead", "behind" or "level"; without an interval, the number of seeds."""
        if not self.decides:
            return count_seeds(self.seeds) if self.seeds else "not run"
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else "level"


def judge_difference(gap: Gap, scale: str, controls: Mapping[str, Gap] | None = None, cut_short: bool = False) -> str:
    """Returns the verdict on a claimed gain, and in brackets what was seen; see the head of this file.

    Args:
        gap: the difference that is claimed to be positive.
        scale: of the runs.
        controls: name -> the difference from that control, which must be positive, too.
        cut_short: whether the runs have fewer teachers or iterations than their scale.
    """
    gaps, named = [gap, *(controls or {}).values()], {}
    for name, control in (controls or {}).items():
        named.setdefault(control.direction, []).append(name)
    seen = gap.direction
    if any(each.decides for each in gaps):
        seen = "; ".join([seen, *(f"{', '.join(names)}: {direction}" for direction, names in named.items())])
    if scale not in PUBLISHED_SETTINGS and gap.seeds:
        return f"{NOT_DECIDED} (rehearsal: {seen})"
    if cut_short and gap.seeds:
        return f"{NOT_DECIDED} (cut short: {seen})"
    if any(each.decides and each.low <= 0 for each in gaps):
        return f"{NOT_CONFIRMED} ({seen})"
    return CONFIRMED if all(each.decides for each in gaps) else f"{NOT_DECIDED} ({seen})"


def judge_accuracy(
    ours: float, ours_std: float, published: float, published_std: float, seeds: int, scale: str, cut_short: bool = False
) -> str:
    """Returns the verdict on a published accuracy; see the head of this file."""
    if cut_short:
        return f"{NOT_DECIDED} (cut short: {count_seeds(seeds)})"
    if seeds < SEEDS_FOR_AN_INTERVAL:
        return f"{NOT_DECIDED} ({count_seeds(seeds)})"
    spread = hypot(*(0.0 if pd.isna(std) else std for std in (ours_std, published_std)))
    if ours >= published - 2 * spread:
        return CONFIRMED
    return f"{NOT_CONFIRMED if scale == 'paper' else NOT_DECIDED} ({ours - published:+.1f})"


def list_verdicts(evidence: Evidence, published: pd.DataFrame, results_dir: Path) -> pd.DataFrame:
    """Returns every claim with its setting, what was measured, the controls, the verdict, and the records behind it.

    A claim has a row for each scale at which it was asked, and at scale "short" for each number of teachers, see
    `Evidence.parts`. The scale that decides comes first, and so do the paper's claims.

    Args:
        evidence: the records.
        published: of `tables.load_published`.
        results_dir: where the coupling measurements are.
    """
    known = published.set_index(["dataset", "ipc", "method"])
    rows = [
        *_sequences(evidence, known),
        *_knowing(evidence),
        *_transfer(evidence),
        *_coupling(evidence, results_dir),
        *_over_random(evidence, known),
        *_accuracies(evidence, published),
    ]
    places: dict[tuple[str, str], int] = {}  # so that the rows of one claim on one setting follow each other
    for _, claim, setting, *_ in rows:
        places.setdefault((claim, setting), len(places))
    rows.sort(key=lambda row: ((PAPER, BASE, OURS).index(row[0]), places[row[1], row[2]]))
    return pd.DataFrame(rows, columns=COLUMNS)


def summarise(verdicts: pd.DataFrame) -> str:
    """Returns how many claims have which verdict, in sentences, as Markdown."""
    counted = []
    for whose, name in ((PAPER, "Claims of the paper"), (BASE, "Claims about base methods"), (OURS, "Questions of our own")):
        claims = verdicts[verdicts["whose"] == whose].drop_duplicates(["claim", "setting"])["verdict"].str
        counts = ", ".join(f"{claims.startswith(kind).sum()} {kind}" for kind in (CONFIRMED, NOT_CONFIRMED, NOT_DECIDED))
        counted.append(f"{name}: {counts}.")
    rehearsed = verdicts["verdict"].str.contains("rehearsal").sum()
    return (
        f"**What we find.** {' '.join(counted)} **How sure.** {rehearsed} of the {len(verdicts)} rows are rehearsals: smaller "
        "networks, fewer teachers and iterations. A rehearsal decides nothing; what it shows stands in brackets."
    )


def _accuracies(evidence: Evidence, published: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    """Published accuracies of what was run at scales paper and short."""
    for dataset, (part, scale) in product(PAPER_DATASETS, evidence.parts_of(PUBLISHED_SETTINGS)):
        table = build_table(dataset, part.runs, published, [scale])
        table = table[(table["seeds"] > 0) & table["published"].notna()]
        for row, shown in zip(table.to_dict("records"), format_table(table).to_dict("records"), strict=True):
            augmented = pd.notna(row["augmented"])
            mean, std = (row["augmented"], 0.0) if augmented else (row["published"], row["published_std"])
            control = "" if row["method"] == "random" else f"random real {shown['random']}"
            runs = runs_of(row["preset"], scale, part.runs)
            cut_short = any(map(_is_cut_short, runs))
            yield (
                PAPER if row["method"].startswith(SEQUENTIAL_PREFIX) else BASE,
                f"{OF_REFERENCES.get(row['method']) or name_of(row['method'])}: the published accuracy is reached",
                name_cell(dataset, row["ipc"]),
                name_scale_of(runs, scale),
                shown["published"],
                f"{shown['ours']}, {count_seeds(row['seeds'])}", control,
                judge_accuracy(row["ours"], row["ours_std"], mean, std, row["seeds"], scale, cut_short),
                ", ".join(run.config_hash[:8] for run in runs),
            )  # fmt: skip


def _sequences(evidence: Evidence, known: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    """The gain of the sequence over its base method: where it was published, and on CIFAR-10 for the other base methods."""
    cells = [key for key in known.index if key[2].startswith(SEQUENTIAL_PREFIX)]
    cells += [("cifar10", 10, SEQUENTIAL_PREFIX + base) for base in method_names()]
    for dataset, ipc, method in dict.fromkeys(cells):
        base = method.removeprefix(SEQUENTIAL_PREFIX)
        printed = " over ".join(_printed(known, dataset, ipc, name) for name in (method, base))
        for part, scale, frame in _by_part(partial(comparison, bases=[base]), evidence, dataset, ipc):
            sets = frame.set_index("set")
            one_set = next((name for name in (ONE_SET, LONGER) if _gap(sets, name).seeds), ONE_SET)
            gap = _gap(sets, one_set)
            controls = {"both by selected iterates": _gap(sets, SELECTED[one_set])}
            controls |= {name_set(name, frame["num_subsets"].max()): _gap(sets, row) for name, row in CONTROLS.items()}
            if not _gap(sets, EQUAL).seeds:
                others = {name: _gap(sets, row) for name, row in PARTIAL.items() if row != one_set}
                controls |= {name: other for name, other in others.items() if other.seeds}
            yield (
                PAPER if base in PAPER_BASES else OURS, f"{name_of(method)} is ahead of {name_of(base)}",
                name_cell(dataset, ipc), name_scale(part, dataset, ipc, scale, [base]), printed,
                f"{gap} ({one_set})" if one_set == LONGER else str(gap),
                _list_controls(controls) if gap.seeds else "",
                judge_difference(gap, scale, controls, _any_cut_short(part, dataset, ipc, scale, base)),
                ", ".join(sets.loc[[one_set, STAGED], "records"] if gap.seeds else []),
            )  # fmt: skip


def _list_controls(controls: Mapping[str, Gap]) -> str:
    """Returns the differences from controls, then the names of those that were not run."""
    run = [f"{name} {control}" for name, control in controls.items() if control.seeds]
    missing = ", ".join(name for name, control in controls.items() if not control.seeds)
    return "; ".join([*run, *([f"not run: {missing}"] if missing else [])])


def _printed(known: pd.DataFrame, dataset: str, ipc: int, method: str) -> str:
    if (dataset, ipc, method) not in known.index:
        return "–"
    row = known.loc[(dataset, ipc, method)]
    return f"{row['mean']:.1f}{mark_published(row['check'])}"


def _over_random(evidence: Evidence, known: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    """The gain of MTT's images over random real ones, at every published size."""
    for ipc in (1, 10, 50):
        printed = " over ".join(_printed(known, "cifar10", ipc, method) for method in ("mtt", "random"))
        for part, scale, frame in _by_part(gain_over_random, evidence, "cifar10", method="mtt", ipc=ipc):
            for row in frame.to_dict("records"):
                gap = Gap.read(row, "gain")
                yield (
                    BASE, "MTT is ahead of random real images", name_cell("cifar10", ipc),
                    name_scale_of(runs_of(f"cifar10-ipc{ipc}-mtt", scale, part.runs), scale),
                    printed, str(gap), f"random real {row['accuracy'] - row['gain']:.1f}, same training",
                    judge_difference(gap, scale, None, _any_cut_short(part, "cifar10", ipc, scale, "mtt", ("",))),
                    row["records"],
                )  # fmt: skip


def _knowing(evidence: Evidence) -> Iterable[tuple[str, ...]]:
    """Whether a second subset gains from being distilled for networks that know the first one."""
    for base in method_names():
        for part, scale, frame in _by_part(partial(comparison, bases=[base]), evidence, "cifar10", 10):
            sets = frame.set_index("set")
            gap = _gap(sets, HALVES)
            if gap.seeds:
                by_seed = comparison(part, "cifar10", 10, scale, bases=[base], by_seed=True)
                by_seed = by_seed.pivot_table("accuracy", "seed", "set").reindex(columns=[JOINTLY, HALVES_JOINTLY])
                joint = (by_seed[JOINTLY] - by_seed[HALVES_JOINTLY]).mean()
                of_order = order(part, "cifar10", 10, scale).set_index(["base", "set"])["difference"]
                first = of_order.get((base, "sequence, S_2 first"))
                wrong_way = "not run" if first is None else f"{first:+.1f}"
                yield (
                    PAPER if base in PAPER_BASES else OURS,
                    f"{name_of(SEQUENTIAL_PREFIX + base)}: S_2, distilled after S_1, is ahead of an independent half",
                    name_cell("cifar10", 10), name_scale(part, "cifar10", 10, scale, [base]), "argument",
                    str(gap), f"both jointly {joint:+.1f}; trained on S_2 first {wrong_way}",
                    judge_difference(gap, scale, None, _any_cut_short(part, "cifar10", 10, scale, base)),
                    sets.loc[HALVES, "records"],
                )  # fmt: skip


def _transfer(evidence: Evidence) -> Iterable[tuple[str, ...]]:
    """Whether the sequence keeps its lead on architectures that its images were not distilled with."""
    cell = "cifar10", 10
    for base in PAPER_BASES:
        method = SEQUENTIAL_PREFIX + base
        for part, scale, frame in _by_part(transfer, evidence, *cell, method=method):
            gaps = {row["network"]: Gap.read(row, "lead") for row in frame.to_dict("records")}
            own = gaps.pop("convnet", Gap())
            pair = [runs_of(f"cifar10-ipc10-{name}", scale, part.runs) for name in (base, method)]
            seeds = set.intersection(*({run.seed for run in runs} for runs in pair))
            records = [run.config_hash[:8] for runs in pair for run in runs if gaps and run.seed in seeds]
            on_networks = controls_by_network(part, *cell, scale)
            for network, gap in gaps.items() or [("", Gap())]:
                chosen = (on_networks["base"] == base) & (on_networks["network"] == network)
                sets = on_networks[chosen].set_index("set")
                selected = next((_gap(sets, name) for name in SELECTED.values() if name in sets.index), Gap())
                controls = {"both by selected iterates": selected}
                controls |= {name_set(name, sets["num_subsets"].max()): _gap(sets, row) for name, row in CONTROLS.items()}
                of_controls = [name for names in sets["records"] for name in names.split(", ")]
                yield (
                    PAPER, f"{name_of(method)} keeps its lead over {name_of(base)} on another architecture",
                    ", ".join(filter(None, (name_cell(*cell), name_of(network)))), name_scale(part, *cell, scale, [base]), "–",
                    str(gap), f"on the ConvNet {own}; {_list_controls(controls)}" if gap.seeds else "",
                    judge_difference(gap, scale, controls, _any_cut_short(part, *cell, scale, base)),
                    ", ".join(dict.fromkeys([*records, *of_controls])),
                )  # fmt: skip


def _coupling(evidence: Evidence, results_dir: Path) -> Iterable[tuple[str, ...]]:
    """What the coupling measurements of runs that stand for presets say: of losses, accuracy by difficulty, and gradients."""
    asked = {("losses",): _hard_images, ("deciles", "control_deciles"): _hard_half, ("gradients",): _repair}
    for names, ask in asked.items():
        for part, scale in evidence.parts_of(SCALES):
            for run in part.runs:
                paths = [find_table(run, name, results_dir) if run.scale == scale else None for name in names]
                if all(paths) and run in runs_of(run.preset, scale, part.runs):
                    claim, source, measured, control, seen = ask(*paths)
                    rehearsal = "" if scale in PUBLISHED_SETTINGS else "rehearsal: "
                    yield (
                        PAPER, claim, name_cell(run.dataset, run.ipc),
                        name_scale_of([run], scale), source, measured, control,
                        f"{NOT_DECIDED} ({rehearsal}{seen} in 1 seed)", run.config_hash[:8],
                    )  # fmt: skip


def _hard_images(path: Path) -> tuple[str, str, str, str, str]:
    """How training on one set, and on a sequence stage by stage, changes the loss of hard real images.

    Seen if one set does not lower it and the last subset does. One set must not lower it in as many epochs either, and the
    last subset must lower it by more than each control in its place, as far as these were measured.
    """
    changes, measured = _changes_of_hard_images(path)
    claim, source = "One set does not lower the loss of hard real images, a later subset does", "our test of figure 1"
    of_controls = path.with_name(f"control_{path.name}")
    controls, control = _changes_of_hard_images(of_controls) if of_controls.is_file() else ({}, "")
    of_one_set = [changes["MTT"][0], *(steps[0] for name, steps in controls.items() if name == ONE_SET_LONGER)]
    in_its_place = [steps[-1] for name, steps in controls.items() if name != ONE_SET_LONGER]
    seen = min(of_one_set) > 0 and changes["SeqMatch"][-1] < min([0, *in_its_place])
    return claim, source, measured, _with_missing(control, controls), SEEN if seen else NOT_SEEN


def _with_missing(control: str, measured: Collection[str]) -> str:
    """Adds to what controls say which of `COUPLING_CONTROLS` were not measured."""
    missing = [name for name in COUPLING_CONTROLS if name not in measured]
    return "; ".join(filter(None, (control, f"not run: {', '.join(missing)}" if missing else "")))


def _changes_of_hard_images(path: Path) -> tuple[dict[str, list[float]], str]:
    """Returns by how much each stage of training changes the mean loss of hard real images, by training set; also in words."""
    hard = pd.read_csv(path).query("images == 'hard' and training != 'real data'").groupby("training", sort=False)["loss"]
    changes = {name: list(values.diff().dropna()) for name, values in hard}
    return changes, "; ".join(f"{name} {', then '.join(map('{:+.2f}'.format, steps))}" for name, steps in changes.items())


def _hard_half(path: Path, of_controls: Path) -> tuple[str, str, str, str, str]:
    """How far the sequence is ahead of S_1 on the hard and on the easy half of the test images.

    Seen if on the hard half it is ahead of S_1, of one set and of each control that was measured, each time with a 95 %
    interval over networks that lies above zero; level if only its means are ahead.
    """
    claim, source = "A later subset teaches hard images, more so than one set", "our test of the argument"
    gains = list_deciles({"deciles": read_table(path), "control_deciles": read_table(of_controls)})
    hard, easy = (mean_on(half, gains) for half in ("hard half", "easy half"))
    words = {name: f"{hard.loc[name].mean():+.1f}, easy {easy.loc[name].mean():+.1f}" for name in hard.index}
    count = hard.shape[1]
    measured = f"hard half {words.pop(SEQUENCE)} (points over S_1{f'; {count} networks' if count > 1 else ''})"
    control = _with_missing("; ".join(f"{name} {found}" for name, found in words.items()), words)
    own, *others = ({n: [gain] for n, gain in hard.loc[name].items()} for name in (SEQUENCE, *words))
    leads = [difference(own, other) for other in ({n: [0.0] for n in own}, *others)]
    if min(lead["difference"] for lead in leads) <= 0:
        return claim, source, measured, control, NOT_SEEN
    return claim, source, measured, control, SEEN if all(lead["difference_low"] > 0 for lead in leads) else LEVEL


def _repair(path: Path) -> tuple[str, str, str, str, str]:
    """How much of the second half of one set repairs what the first one leaves, as the set grows.

    Seen if the share grows at every start epoch of every teacher, and by more than that of random real images where they were
    measured.
    """
    claim = "Within one set, the more images, the more they repair each other's errors"
    growth, measured = _growth_of_repair(path)
    of_real = path.with_name(f"real_{path.name}")
    real, control = _growth_of_repair(of_real) if of_real.is_file() else (None, "not run")
    seen = bool((growth > 0).all()) and (real is None or bool((growth > real).all()))
    return claim, "argument", measured, f"random real images: {control}", SEEN if seen else NOT_SEEN


def _growth_of_repair(path: Path) -> tuple[pd.Series, str]:
    """Returns by how much the repair share grows from the smallest set to the largest, by start epoch and teacher.

    And, in words, the means over teachers.
    """
    repair = pd.read_csv(path).pivot_table("repair_share", ["start epoch", "teacher"], "ipc")
    growth, teachers = repair.iloc[:, -1] - repair.iloc[:, 0], repair.index.get_level_values("teacher").nunique()
    means = repair.groupby("start epoch").mean()
    words = (f"{row.iloc[0]:.2f} to {row.iloc[-1]:.2f} (start epoch {epoch})" for epoch, row in means.iterrows())
    return growth, f"repair(B) {'; '.join(words)}" + f"; means of {teachers} teachers" * (teachers > 1)


def _any_cut_short(
    evidence: Evidence, dataset: str, ipc: int, scale: str, base: str, prefixes: Sequence[str] = ("", SEQUENTIAL_PREFIX)
) -> bool:
    """Whether a preset, alone or in sequence, is represented by runs that are cut short."""
    runs = [run for prefix in prefixes for run in runs_of(f"{dataset}-ipc{ipc}-{prefix}{base}", scale, evidence.runs)]
    return any(map(_is_cut_short, runs))


def _is_cut_short(run: RunRecord) -> bool:
    """Whether a run has fewer teachers or iterations than its preset has at its scale."""
    if run.method in REFERENCES:
        return False
    config, preset = RunConfig.from_dict(run.config), RunConfig.from_preset(run.preset, run.scale, run.seed)
    if config.uses_teachers and config.teachers.num_teachers < preset.teachers.num_teachers:
        return True
    return _count_iterations(config) < _count_iterations(preset)


def _count_iterations(config: RunConfig) -> int:
    method = get_method(config.base_method)(config.options)
    return sum(method.num_iterations(k) for k in range(1, config.num_subsets + 1))


def _by_part(
    query: Callable[..., pd.DataFrame], evidence: Evidence, *cell: Any, **equal: Any
) -> list[tuple[Evidence, str, pd.DataFrame]]:
    """Returns the records of each of `SCALES`, see `Evidence.parts`, with the scale and the rows that a query finds there.

    Rows are those equal in these columns. If there are none at all, the scale is "".
    """
    found = []
    for part, scale in evidence.parts_of(SCALES):
        rows = query(part, *cell, scale)
        for column, value in equal.items():
            rows = rows[rows[column] == value]
        if len(rows):
            found.append((part, scale, rows))
    return found or [(evidence, "", pd.DataFrame(columns=["set", "num_subsets"]))]


def _gap(sets: pd.DataFrame, name: str) -> Gap:
    """Returns the gap of the staged sequence to a set of a comparison."""
    return Gap.read(sets.loc[name], "difference") if name in sets.index and sets.loc[name, "seeds"] else Gap()

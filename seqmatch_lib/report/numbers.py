"""Accuracies in numbers: their spread, differences with their intervals, and one row of a frame for each group.

Accuracies are of test images, in per cent. Beside a column `x`, `x_std` is its spread: the standard deviation over the means
of the seeds of distillation where there are several, over networks where there is one seed, NaN where there is one network.
A difference is over the seeds that both sides have, and `…_seeds` counts them. `…_low` and `…_high` are its 95 % interval from
three seeds on, that of a paired t-test, since both sides of a seed share the images that they begin with and, but for
re-evaluations with a seed of their own, the starts of evaluation. All seeds share the teachers of stage 1, so an interval does
not say how much teachers differ.
`seeds` counts distillations, `n` networks; `records` names each record by the last eight characters of its file name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, nan, sqrt
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from seqmatch_lib.errors import StorageError, require

SEEDS_FOR_AN_INTERVAL = 3
Values = Mapping[int, Sequence[float]]  # seed of distillation -> accuracies of its networks, in per cent


def mean_and_std(values: Values, name: str = "accuracy") -> dict[str, float]:
    """Returns the columns `name` and `name_std`: the one definition of a spread (see the head of this file)."""
    seeds = list(values.values())
    parts = seeds[0] if len(seeds) == 1 else [fmean(accuracies) for accuracies in seeds]
    return {name: fmean(parts) if parts else nan, f"{name}_std": stdev(parts) if len(parts) > 1 else nan}


def difference(values: Values, reference: Values, name: str = "difference") -> dict[str, float]:
    """Returns `name`, `name_low`, `name_high`, `name_seeds`: mean(values) - mean(reference) over the seeds that both have."""
    gaps = [fmean(values[seed]) - fmean(reference[seed]) for seed in sorted(values.keys() & reference.keys())]
    mean, half = fmean(gaps) if gaps else nan, nan
    if len(gaps) >= SEEDS_FOR_AN_INTERVAL:
        half = float(stats.t.ppf(0.975, len(gaps) - 1)) * stdev(gaps) / sqrt(len(gaps))
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half, f"{name}_seeds": len(gaps)}


def robust_score(weighted: float) -> float:
    """Returns a weighted sum of differences of accuracy, in [-1, 1], as DD-Ranking normalises it: 0 … 100 per cent."""
    return 100 * (exp(weighted) - exp(-1)) / (exp(1) - exp(-1))


def values_by_seed(rows: pd.DataFrame) -> dict[int, list[float]]:
    """Returns seed of distillation -> accuracies, of rows with one for each seed; two of one seed would hide each other."""
    require(rows["seed"].is_unique, f"two accuracies of one seed, in records {', '.join(rows['record'])}", StorageError)
    return dict(zip(rows["seed"], rows["values"], strict=True))


def _counts(rows: pd.DataFrame) -> dict[str, Any]:
    values = values_by_seed(rows)
    return {"seeds": len(values), "n": sum(map(len, values.values())), "records": ", ".join(dict.fromkeys(rows["record"]))}


def pool(rows: pd.DataFrame, by: Sequence[str], kinds: Mapping[str, str], by_seed: bool = False) -> pd.DataFrame:
    """Returns one row for each group of rows equal in the columns `by`, with mean and spread of each kind.

    Args:
        rows: of `Evidence.accuracies`.
        by: columns that are kept.
        kinds: name of a column -> the kind in it; seeds, n and records are those of the first one.
        by_seed: whether every seed is a group of its own.
    """
    by = [*by, "seed"] if by_seed else list(by)
    pooled = []
    for key, group in rows.groupby(by, sort=False):
        row = dict(zip(by, key, strict=True))
        for name, kind in kinds.items():
            row |= mean_and_std(values_by_seed(group[group["kind"] == kind]), name)
        pooled.append(row | _counts(group[group["kind"] == next(iter(kinds.values()))]))
    columns = [*by, *(f"{name}{end}" for name in kinds for end in ("", "_std")), "seeds", "n", "records"]
    return pd.DataFrame(pooled, columns=columns).astype(rows[by].dtypes)  # without rows, too


def summarise(group: pd.DataFrame, name: str, reference: Values, by_seed: bool) -> Iterable[dict[str, Any]]:
    """Yields mean, spread, difference and counts of one group: in one row, or in one for each seed.

    Args:
        group: rows with `seed`, `values` and `record`.
        name: "gain", the group minus the reference, or "difference", the reference minus the group.
        reference: accuracies that those of the group are compared with.
        by_seed: whether each seed has a row.
    """
    parts = [({"seed": seed}, part) for seed, part in group.groupby("seed")] if by_seed else [({}, group)]
    for key, part in parts:
        values = values_by_seed(part)
        gap = difference(values, reference, name) if name == "gain" else difference(reference, values, name)
        yield key | mean_and_std(values) | gap | _counts(part)


def make_frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Returns rows as a frame; without rows, one with the columns that tables show of any."""
    if rows:
        return pd.DataFrame(rows)
    empty = pd.DataFrame(columns=[*columns, "accuracy", "accuracy_std", "seeds", "n", "records"])
    return empty.astype({name: bool for name in columns if name == "of_preset"})


def of_common_seeds(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Returns the rows of the seeds that every value of a column has, so that means over them can be compared."""
    seeds = rows.groupby(column)["seed"].agg(set)
    return rows[rows["seed"].isin(set.intersection(*seeds) if len(seeds) else ())]


def where(rows: pd.DataFrame, is_wanted: Callable[[Any], bool]) -> pd.DataFrame:
    """Returns the rows for which a function of a row, as `itertuples` gives it, is true."""
    return rows[np.fromiter(map(is_wanted, rows.itertuples()), bool)]  # keeps the columns of a frame without rows

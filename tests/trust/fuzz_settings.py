"""Fuzzing of settings, of what is typed, of notebook parameters, of the published numbers."""

import ast
import csv
import json
import math
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import helpers
import nbformat
import pandas as pd
import papermill
from fuzz_engine import TEXTS, VALUES, WORDS, Target, changed, file_target
from fuzz_samples import ROOT, settings_of
from hypothesis import strategies as st
from papermill.parameterize import parameterize_notebook

from seqmatch_lib.report.notebooks import run_notebook
from seqmatch_lib.report.tables import load_published
from seqmatch_lib.runs.config import RunConfig, parse_override

PRESETS = ("digits-ipc10-seqmatch_mtt", "digits-ipc10-idc", "digits-ipc10-krr", "digits-ipc10-dm", "digits-ipc10-random",
           "digits-whole")  # fmt: skip


def fits_config(config: RunConfig) -> bool:
    """Whether a configuration is one that names files in place, and comes back from its own settings."""
    names = (config.dataset, config.run_id)
    plain = all(Path(name).name == name and name.isprintable() and "/" not in name for name in names)
    finite = all(math.isfinite(value) for value in _numbers_in(config.as_dict()))
    return plain and finite and RunConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def _numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [number for one in (value.values() if isinstance(value, dict) else value) for number in _numbers_in(one)]
    return [value] if isinstance(value, float) else []


VALID = (("zca", "true"), ("ipc", "10"), ("mtt.syn_steps", "4"), ("mtt.lr_img", "3"), ("training.epochs", "1_0"),
         ("network.name", "vit"), ("subset_ipcs", "[10]"), ("intervals", "[[0, 4]]"),
         ("evaluation.networks", '["vit"]'))  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(
        ["mtt.syn_steps", "mtt.lr_img", "ipc", "subset_ipcs", "intervals", "dataset", "zca", "network.name", "method"]
    ),
    TEXTS,
)
TOML = st.one_of(
    TEXTS,
    VALUES.map(lambda value: json.dumps(value)),
    st.sampled_from(
        [
            "1\nb = 2",
            "[" * 5_000,
            "9" * 5_000,
            "0x" + "f" * 5_000,
            "1979-05-27",
            "07:32:00",
            "{a.b = 1}",
            "'''",
            "1e999",
            "nan",
        ]
    ),
    st.text(alphabet="[]{}='\"\\\n0123456789.,-+_eE#abtrufls", max_size=40),
)


def read_override(folder: Path, text: str) -> Any:
    """Parses what is typed after --set, and builds a preset with it."""
    key, value = parse_override(text)
    return RunConfig.from_preset("digits-ipc10-mtt", "smoke", overrides={key: value})


NOTEBOOK = {"scale": '"smoke"', "seed": "0", "subsets": "[5, 5]", "results_dir": '"paper_results"'}


def write_notebook(folder: Path) -> None:
    """Writes a notebook of one cell with parameters."""
    helpers.write_notebook(folder / "one.ipynb", "\n".join(f"{name} = {value}" for name, value in NOTEBOOK.items()))


def read_parameter(folder: Path, drawn: tuple[str, str]) -> Any:
    """Hands what is typed to a notebook, up to the cell that papermill would execute; returns what that cell says."""
    key, value = parse_override(f"{drawn[0]}={drawn[1]}")
    sources = []

    def capture(path: str, out: str, parameters: dict[str, Any], **options: Any) -> nbformat.NotebookNode:
        notebook = nbformat.read(path, 4)
        notebook.metadata["papermill"] = {}
        sources.extend(cell.source for cell in parameterize_notebook(notebook, parameters).cells[1:])
        Path(out).touch()
        return notebook

    with patch.object(papermill, "execute_notebook", capture):
        run_notebook(folder / "one.ipynb", folder / "out.ipynb", {key: value})
    return key, value, sources


def fits_parameter(found: tuple[str, Any, list[str]]) -> bool:
    """Whether the cell assigns the value to the parameter, as a literal, and does nothing else."""
    key, value, (source,) = found
    (statement,) = ast.parse(source).body
    (name,) = statement.targets
    return name.id == key and _same(_literal(statement.value), value)


def _literal(node: ast.expr) -> Any:
    """Returns a literal's value; NaN and infinity have no literals, so papermill writes `float('nan')`."""
    if isinstance(node, ast.Call):
        (text,) = node.args
        if node.func.id == "float" and not node.keywords and text.value in ("nan", "inf", "-inf"):
            return float(text.value)
    if isinstance(node, ast.List):
        return [_literal(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(key): _literal(one) for key, one in zip(node.keys, node.values, strict=True)}
    return ast.literal_eval(node)


def _same(found: Any, wanted: Any) -> bool:
    """Equal, in type too; dates and times of TOML reach a notebook as text."""
    if not isinstance(wanted, str | int | float | list | dict | None):
        return found == str(wanted)
    return repr(found) == repr(_plain(wanted))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value if isinstance(value, str | int | float | None) else str(value)


@cache
def published_rows() -> list[list[str]]:
    """Returns the first published accuracies."""
    with open(ROOT / "paper_results" / "published" / "accuracy.csv", newline="") as handle:
        return list(csv.reader(handle))[:8]


def write_published(folder: Path) -> None:
    """Writes them."""
    (folder / "published").mkdir()
    write_rows(folder, published_rows())


def write_rows(folder: Path, rows: list[list[Any]]) -> None:
    """Writes rows of a table as text."""
    (folder / "published").mkdir(exist_ok=True)
    with open(folder / "published" / "accuracy.csv", "w", newline="", errors="surrogatepass") as handle:
        csv.writer(handle).writerows(rows)


def read_odd_published(folder: Path, drawn: Any) -> pd.DataFrame:
    """Reads a table of other rows."""
    write_rows(folder, [row if isinstance(row, list) else [row] for row in drawn])
    return load_published(folder)


def fits_published(table: pd.DataFrame) -> bool:
    """Whether the columns are there that tables are built from."""
    numeric = all(pd.api.types.is_numeric_dtype(table[name]) for name in ("ipc", "mean", "std"))
    return {"dataset", "ipc", "method", "mean", "std", "source", "check"} <= set(table.columns) and numeric


SETTINGS = [
    Target(
        "settings",
        st.sampled_from(PRESETS).flatmap(lambda preset: changed(settings_of(preset))),
        lambda folder, drawn: RunConfig.from_dict(drawn),
        accepts=fits_config,
        share=4,
        named=False,
    ),
    Target("settings, anything", VALUES, lambda folder, drawn: RunConfig.from_dict(drawn), accepts=fits_config, named=False),
    Target(
        "--set",
        st.one_of(st.sampled_from(VALID).map("=".join), st.tuples(KEYS, TOML).map("=".join), TEXTS),
        read_override,
        accepts=fits_config,
        share=3,
        named=False,
    ),
    Target(
        "notebook parameter",
        st.tuples(st.sampled_from([*NOTEBOOK, *WORDS]), TOML),
        read_parameter,
        write_notebook,
        accepts=fits_parameter,
        share=0.7,
        named=False,
    ),
    file_target("published", write_published, load_published, accepts=fits_published),
    Target(
        "published, other rows",
        st.deferred(lambda: changed(published_rows())),
        read_odd_published,
        accepts=fits_published,
    ),
]

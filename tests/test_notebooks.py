"""Every notebook: stripped and parameterised; executed as it opens and computing; and the committed executed copies."""

import json
import re
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import fmean

import nbformat
import pandas as pd
import papermill
import pytest
from helpers import write_notebook

from seqmatch_lib.__main__ import EXECUTED, main
from seqmatch_lib.errors import NotebookError
from seqmatch_lib.report import queries
from seqmatch_lib.report.evidence import Evidence
from seqmatch_lib.report.notebooks import list_copies, read_parameters, run_notebook
from seqmatch_lib.report.pages import export_html, to_mathml
from seqmatch_lib.report.tables import load_published
from seqmatch_lib.runs.records import load_orders, load_runs

ROOT = Path(__file__).parents[1]
COPIES = list_copies(ROOT / "notebooks")
LIVE = ("00_quickstart", "02_seqmatch_step_by_step")  # they distil digits, which other processors round differently
SMOKE = {"compute": True, "dataset": "digits", "scale": "smoke", "networks": ["alexnet"], "num_networks": 1}
each_notebook = pytest.mark.parametrize("path", sorted({path for path, _ in COPIES.values()}), ids=lambda path: path.stem)
STEP_SIZES = {"0.001", "0.01", "0.021", "0.014", "0.010"}  # that prose names
each_copy = pytest.mark.parametrize("name", COPIES)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def sources(path: Path) -> list[str]:
    """All cells but those with the parameters that papermill injects."""
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def texts(path: Path) -> list[str]:
    """What an executed notebook says."""
    said = []
    for cell in code_cells(path):
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            said += ["".join(text) for kind, text in data.items() if kind.startswith("text/")]
    return said


def check_outputs(path: Path) -> None:
    """No bar, no warning, an alternative text for each picture, no path of this machine."""
    outputs = [output for cell in code_cells(path) for output in cell["outputs"]]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures
    assert all(output["metadata"]["image/png"]["alt"] for output in pictures)
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    assert str(ROOT) not in "".join(texts(path))


@each_notebook
def test_sources_are_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code_cells(path)
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells), "run nbstripout"
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
    for cell in cells:
        lines = "".join(cell["source"]).splitlines()
        assert len(lines) <= 14, lines
        assert not any(line.startswith(("def ", "class ", "import sys")) for line in lines)
    assert notebook.cells[0].source.startswith("# ")
    assert "**What the paper says" in notebook.cells[0].source
    assert sum("\ncheck_parameters()\n" in "".join(cell["source"]) for cell in cells) == 1


@each_notebook
def test_records_come_first(path):
    if path.stem not in LIVE:
        parameters = read_parameters(path)
        assert parameters["results_dir"] == '"paper_results"'
        assert parameters.get("compute", "False") == "False"  # the report never computes


@each_copy
def test_executed_copies_are_of_these_sources(name):
    assert sources(ROOT / EXECUTED / f"{name}.ipynb") == sources(COPIES[name][0])
    check_outputs(ROOT / EXECUTED / f"{name}.ipynb")


@cache
def recorded_numbers() -> set[str]:
    """Accuracies of CIFAR-10 at scale short, leads among published ones, and the errors of a trial, as prose states them."""
    evidence, published = Evidence.load(ROOT / "paper_results"), load_published(ROOT / "paper_results")
    rows = evidence.accuracies.query("dataset == 'cifar10' and scale == 'short'")
    known = [
        *map(fmean, rows["values"]),
        *queries.curves(evidence, ROOT / "paper_results", "cifar10", 10, "short")["accuracy"],
    ]
    for _, cell in published.groupby(["dataset", "ipc"]):
        known += [abs(one - other) for one, other in combinations(cell["mean"], 2)]
    trial = pd.read_csv(ROOT / "paper_results" / "trials" / "cifar10-seqmatch_mtt-ipc10-short-fresh-real.csv")
    errors = trial.groupby(["batch_size", "start_epoch"])["error"].min()
    return {f"{value:.1f}" for value in known} | {f"{value:.2f}" for value in errors}


@each_notebook
def test_numbers_of_the_prose_are_shown_or_recorded(path):
    """Each decimal in the text stands in what the notebook shows, or in `recorded_numbers`, or is a setting."""
    shown = [
        text for name, (source, _) in COPIES.items() if source == path for text in texts(ROOT / EXECUTED / f"{name}.ipynb")
    ]
    prose = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    stated, known = (set(re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])", "\n".join(some))) for some in (prose, shown))
    assert stated - known - STEP_SIZES <= recorded_numbers()


def test_executed_copies_are_all_and_small():
    kept = sorted((ROOT / EXECUTED).glob("*.ipynb"))
    assert {path.stem for path in kept} == set(COPIES)
    assert sum(path.stat().st_size for path in kept) < 8 * 2**20


@pytest.mark.notebooks
@each_copy
def test_as_it_opens_it_needs_no_data_and_says_what_the_executed_copy_says(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQMATCH_DATA", str(tmp_path / "nothing"))
    path, parameters = COPIES[name]
    if path.stem == "00_quickstart":
        parameters = parameters | {"scale": "smoke", "results_dir": str(tmp_path)}
    run_notebook(path, tmp_path / "executed.ipynb", parameters)
    check_outputs(tmp_path / "executed.ipynb")
    if path.stem not in LIVE:
        assert texts(tmp_path / "executed.ipynb") == texts(ROOT / EXECUTED / f"{name}.ipynb")


@pytest.fixture(scope="session")
def shared_results(tmp_path_factory):
    """One results folder for all notebooks: nothing is distilled twice."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.notebooks
@each_notebook
def test_it_computes_what_is_missing(path, tmp_path, shared_results):
    known = read_parameters(path)
    wanted = {name: value for name, value in SMOKE.items() if name in known} | {"results_dir": str(shared_results)}
    run_notebook(path, tmp_path / "executed.ipynb", wanted)
    check_outputs(tmp_path / "executed.ipynb")


@pytest.mark.notebooks
def test_order_and_division_can_be_asked_of_another_base_method(tmp_path, shared_results):
    path = ROOT / "notebooks" / "21_ablation_order.ipynb"
    wanted = {name: value for name, value in SMOKE.items() if name in read_parameters(path)}
    wanted |= {"results_dir": str(shared_results), "base_method": "krr", "seeds": 0}
    run_notebook(path, tmp_path / "executed.ipynb", wanted)
    methods = [record.method for record in load_orders(shared_results)]
    assert "seqmatch_krr" in methods


@pytest.mark.notebooks
def test_the_quickstart_becomes_a_page_with_pictures_and_without_bars(tmp_path):
    wanted = {"scale": "smoke", "results_dir": str(tmp_path / "results")}
    run_notebook(ROOT / "notebooks" / "00_quickstart.ipynb", tmp_path / "executed.ipynb", wanted)
    page = export_html(tmp_path / "executed.ipynb").read_text()
    assert page.count("<img alt=") == 6  # idea, accuracies, digits, losses, CIFAR-10 by MTT and by IDC
    assert 'alt=""' not in page
    assert "it/s" not in page
    assert page.count("<math") > 10
    assert not re.findall(r"(?:src|href)=.https?:", page), "the page is read without a network"
    assert "smoke: means nothing" in page
    assert len(load_runs(tmp_path / "results")) == 5  # a run for each point, and the whole data set


def test_the_index_of_an_accented_letter_stands_beside_it():
    assert "<msub>" in to_mathml(r"\hat\theta_{s+1}")
    assert "munder" not in to_mathml(r"\hat\theta_{s+1} = \hat W_0 - \dots")


@pytest.mark.notebooks
@pytest.mark.parametrize(
    ("name", "wanted", "said"),
    [
        ("02_seqmatch_step_by_step", {"ipcs": "10"}, r"ipcs 10 are not two numbers of images"),
        ("20_ablation_k", {"datset": "digits"}, "unknown parameter of .*'datset'; did you mean dataset"),
        ("20_ablation_k", {"dataset": "svhn2"}, "unknown preset 'svhn2-ipc10-mtt'; did you mean svhn-ipc10-mtt"),
        (
            "20_ablation_k",
            {"dataset": "svhn", "seeds": "[3]"},
            "3 of 3 runs have no record in .*set compute = True to run what is missing, about",
        ),
        ("20_ablation_k", {"compute": "true", "seeds": "[9]"}, "cifar10 .*SEQMATCH_DATA"),
    ],
)
def test_what_goes_wrong_is_said_in_one_sentence(name, wanted, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEQMATCH_DATA", str(tmp_path / "nothing"))
    settings = [f"{parameter}={value}" for parameter, value in wanted.items()]
    flags = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "executed.ipynb"
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert main(["notebook", str(path), "--out", str(out), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line
    failed = tmp_path / "failed" / "executed.ipynb"
    if failed.is_file():
        (error,) = [one for cell in code_cells(failed) for one in cell["outputs"] if one["output_type"] == "error"]
        assert len(error["traceback"]) == 1
    assert not out.exists()


@pytest.mark.notebooks
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_papermill_alone_stops_at_a_mistyped_parameter(tmp_path):
    path = ROOT / "notebooks" / "20_ablation_k.ipynb"
    with pytest.raises(
        papermill.PapermillExecutionError, match="unknown parameter of this notebook 'datset'; did you mean datas"
    ):
        papermill.execute_notebook(path, tmp_path / "executed.ipynb", {"datset": "digits"}, progress_bar=False)


def test_a_failing_cell_is_named_and_its_notebook_stays(tmp_path):
    write_notebook(tmp_path / "broken.ipynb", "x = 1", "print('before')", "x / 0")
    message = r"cell \d+ of .*broken.ipynb failed: ZeroDivisionError: division by zero; .*failed"
    with pytest.raises(NotebookError, match=message):
        run_notebook(tmp_path / "broken.ipynb", tmp_path / "out.ipynb", {"x": 2})
    cells = code_cells(tmp_path / "failed" / "out.ipynb")
    assert any("before" in str(cell["outputs"]) for cell in cells)
    assert any("x = 2" in "".join(cell["source"]) for cell in cells)
    (error,) = [one for cell in cells for one in cell["outputs"] if "ename" in one]
    assert len(error["traceback"]) > 1, "nobody shortened it, as for errors of ours"

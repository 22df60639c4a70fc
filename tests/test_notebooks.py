"""Every notebook: stripped, parameterised, without definitions, and executed at smoke scale."""

import json
from pathlib import Path

import nbformat
import papermill
import pytest

from seqmatch_lib.runs.records import load_orders

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# papermill and its kernel warn about their own internals
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_at_smoke_scale(path, tmp_path):
    parameters = {"results_dir": str(tmp_path / "results")}
    executed = papermill.execute_notebook(path, tmp_path / path.name, parameters, kernel_name="python3", progress_bar=False)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_order_and_division_can_be_asked_of_another_base_method(tmp_path):
    path = next(path for path in NOTEBOOKS if path.stem == "21_ablation_order")
    parameters = {"results_dir": str(tmp_path), "base_method": "krr", "num_networks": 1}
    papermill.execute_notebook(path, tmp_path / path.name, parameters, kernel_name="python3", progress_bar=False)
    (record,) = load_orders(tmp_path)
    assert (record.method, len(record.accuracy)) == ("seqmatch_krr", 11)


def test_quickstart_shows_its_numbers_and_pictures(tmp_path):
    path = next(path for path in NOTEBOOKS if path.stem == "00_quickstart")
    parameters = {"results_dir": str(tmp_path / "results")}
    executed = papermill.execute_notebook(path, tmp_path / path.name, parameters, kernel_name="python3", progress_bar=False)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs if output.output_type == "stream" and output.name == "stdout")
    for words in (
        "whole data set, 1347 images: ",
        "random real: ",
        "MTT: ",
        "SeqMatch (5 + 5): ",
    ):
        assert words in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6  # idea, three sets, losses, accuracies
    assert len(list((tmp_path / "results" / "runs" / "digits").glob("*.json"))) == 4

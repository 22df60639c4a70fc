"""Notebooks: figures with a text for those who do not see them, and execution as a batch does it."""

import ast
import re
import warnings
from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat

from seqmatch_lib.errors import ConfigError, NotebookError, first_line, require
from seqmatch_lib.runs.config import require_known
from seqmatch_lib.store.files import explain_refusal, write_text

OWN_PARAMETERS = "# Parameters: papermill replaces them"  # how the cell tagged "parameters" begins
GIVEN_PARAMETERS = "# Parameters\n"  # how the cell begins that papermill puts below it


def show(figure: Any, alt: str) -> None:
    """Shows a figure below a cell, with its alternative text, and closes it.

    Args:
        figure: a matplotlib figure, or axes or a seaborn grid that have one.
        alt: what it shows, in a sentence, for those who do not see it.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    figure, buffer = figure.figure, BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi, bbox_inches="tight")
    plt.close(figure)
    bundle = {"image/png": b64encode(buffer.getvalue()).decode(), "text/plain": alt}
    display(bundle, metadata={"image/png": {"alt": alt}}, raw=True)


def read_parameters(path: Path | str) -> dict[str, str]:
    """Returns the parameters of a notebook and their defaults, as they are written in the cell tagged "parameters".

    Raises:
        ConfigError: there is no such notebook.
    """
    import papermill

    where = "the notebooks are in the folder notebooks/"
    require(Path(path).is_file(), f"notebook {path} does not exist; {where}")
    require(Path(path).suffix == ".ipynb", f"{path} is no notebook, whose names end in .ipynb; {where}")
    try:
        found = papermill.inspect_notebook(_literally(path))
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ConfigError(f"{path} is no notebook ({first_line(error)}); {where}") from error
    return {name: parameter["default"] for name, parameter in found.items()}


def check_parameters() -> None:
    """Refuses what papermill was given and the notebook that calls this does not have; papermill itself only warns of it.

    Raises:
        ConfigError: an unknown parameter.
    """
    from IPython import get_ipython

    cells = get_ipython().user_ns["In"]  # what was executed
    own = _assigned(cells, OWN_PARAMETERS)
    for name in _assigned(cells, GIVEN_PARAMETERS):
        require_known("parameter of this notebook", name, own)


def _assigned(cells: Sequence[str], start: str) -> list[str]:
    """Returns the names that the first cell assigns that begins so."""
    cell = next((cell for cell in cells if cell.startswith(start)), "")
    return [node.targets[0].id for node in ast.parse(cell).body if isinstance(node, ast.Assign)]


def run_notebook(path: Path | str, out: Path | str, parameters: Mapping[str, Any]) -> None:
    """Executes a notebook with papermill.

    Args:
        path: of the notebook.
        out: where the executed copy goes: outputs as a reader sees them, without traces of bars, times and paths.
        parameters: names of its cell tagged "parameters" -> values; unlike in papermill, a name it lacks is an error.

    Raises:
        ConfigError: an unknown parameter, before anything is executed.
        NotebookError: a cell failed; the copy with the outputs up to there is in the folder `failed` beside `out`.
    """
    import papermill

    known = read_parameters(path)
    for name in parameters:
        require_known(f"parameter of {path}", name, known)
    out = Path(out)
    unfinished = out.parent / "failed" / out.name
    with explain_refusal(unfinished.parent):
        unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():  # papermill and its kernel warn about their own internals
            warnings.simplefilter("ignore")
            executed = papermill.execute_notebook(
                _literally(path), _literally(unfinished), dict(parameters), kernel_name="python3", progress_bar=False,
                coalesce_streams=True, extra_arguments=["--log-level=CRITICAL"], kernel_manager_class=_own_kernel(),
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        problem = f"cell {error.exec_count} of {path} failed: {error.ename}: {error.evalue}"
        raise NotebookError(f"{problem}; the copy up to there is {unfinished}") from error
    _clean(executed)
    write_text(out, f"{nbformat.writes(executed)}\n")
    unfinished.unlink()
    if not any(unfinished.parent.iterdir()):
        unfinished.parent.rmdir()


def _clean(notebook: nbformat.NotebookNode) -> None:
    """Removes, in place, what an executed notebook tells of its execution: times, paths, and bars that were wiped."""
    notebook.metadata = {name: notebook.metadata[name] for name in ("kernelspec", "seqmatch") if name in notebook.metadata}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_left_over(output)]
            for data in (output.data for output in cell.outputs if "text/plain" in output.get("data", {})):
                data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])  # addresses of objects


def _is_left_over(output: nbformat.NotebookNode) -> bool:
    """Returns whether an output is a bar that was wiped, or a widget, which shows nothing without its kernel."""
    if output.output_type == "stream":
        return not output.text.strip()
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def list_copies(folder: Path | str) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Returns name of an executed copy -> its notebook and parameters, for every notebook of a folder.

    A notebook that is to be executed with several parameters lists them in its metadata, under `seqmatch.copies`; their values
    end the names of the copies, as in `10_tables_svhn`.
    """
    copies = {}
    for path in sorted(Path(folder).glob("*.ipynb")):
        for parameters in nbformat.read(path, as_version=4).metadata.get("seqmatch", {}).get("copies", [{}]):
            copies["_".join([path.stem, *map(str, parameters.values())])] = path, dict(parameters)
    return copies


def batch_parameters(
    path: Path | str, own: Mapping[str, Any], scale: str, datasets: Sequence[str], seeds: Sequence[int], results_dir: str
) -> dict[str, Any]:
    """Returns the parameters that a batch executes a notebook with: it reads that folder, and runs what is missing there.

    Args:
        path: of the notebook; parameters that it does not have are left out.
        own: of the copy, see `list_copies`; a copy of a data set that the batch does not run shows the committed records.
        scale: of the batch.
        datasets: of the batch; notebooks on one data set take CIFAR-10, or else the first.
        seeds: of distillation.
        results_dir: folder of the batch.
    """
    if own.get("dataset", datasets[0]) not in datasets:
        return dict(own)
    wanted = {"dataset": "cifar10" if "cifar10" in datasets else datasets[0], "scale": scale, "seeds": list(seeds)}
    wanted |= {"seed": seeds[0], "results_dir": results_dir, "compute": True} | dict(own)
    known = read_parameters(path)
    return {name: value for name, value in wanted.items() if name in known}


def _own_kernel() -> type:
    """Returns what starts this very Python as a kernel, whatever else is called "python3" on JUPYTER_PATH."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from traitlets import default

    class OwnKernelManager(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _without_folders(self) -> KernelSpecManager:
            return KernelSpecManager(kernel_dirs=[])  # what is left is the kernel of `sys.executable`

    return OwnKernelManager


def _literally(path: Path | str) -> str:
    """Returns a path as papermill is to be told it: it fills parameters into the braces of paths."""
    return str(path).replace("{", "{{").replace("}", "}}")

"""Notebooks: figures with a text for those who do not see them, and execution as a batch does it."""

from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from seqmatch_lib.errors import ConfigError, NotebookError, require
from seqmatch_lib.runs.config import describe_unknown


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

    require(Path(path).is_file(), f"notebook {path} does not exist; the notebooks are in the folder notebooks/")
    return {name: found["default"] for name, found in papermill.inspect_notebook(_literally(path)).items()}


def run_notebook(path: Path | str, out: Path | str, parameters: Mapping[str, Any]) -> None:
    """Executes a notebook with papermill.

    Args:
        path: of the notebook.
        out: where the executed copy goes, with the outputs up to an error if there is one.
        parameters: names of its cell tagged "parameters" -> values; unlike in papermill, a name it lacks is an error.

    Raises:
        ConfigError: an unknown parameter, before anything is executed.
        NotebookError: a cell failed.
    """
    import papermill

    known = read_parameters(path)
    for name in parameters:
        require(name in known, describe_unknown(f"parameter of {path}", name, known), ConfigError)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            _literally(path), _literally(out), dict(parameters), kernel_name="python3", progress_bar=False
        )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(
            f"cell {error.exec_count} of {path} failed: {error.ename}: {error.evalue}; the executed copy is {out}"
        ) from error


def _literally(path: Path | str) -> str:
    """Returns a path as papermill is to be told it: it fills parameters into the braces of paths."""
    return str(path).replace("{", "{{").replace("}", "}}")

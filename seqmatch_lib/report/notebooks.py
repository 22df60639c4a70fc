"""Running a notebook as a batch does: parameters are checked, the executed copy stays for reading whatever happens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqmatch_lib.errors import ConfigError, NotebookError, require
from seqmatch_lib.runs.config import describe_unknown


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
            _literally(path), _literally(out), dict(parameters), kernel_name="python3", progress_bar=False,
            kernel_manager_class=_own_kernel(),
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        raise NotebookError(
            f"cell {error.exec_count} of {path} failed: {error.ename}: {error.evalue}; the executed copy is {out}"
        ) from error


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

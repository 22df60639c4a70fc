"""A static site: executed notebooks as HTML, the tables, and an index that shows the main figure first."""

import base64
from html import escape
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.store.files import write_atomically, write_text

MAIN_NOTEBOOK = "10_tables_cifar10"  # whose last picture opens the index, or the first notebook's if it was not executed

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>SeqMatch companion</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
img {{ max-width: 100% }} li {{ margin: 0.6rem 0 }} table {{ border-collapse: collapse; font-size: 0.8rem }}
td, th {{ padding: 0.2rem 0.5rem; text-align: left }} section {{ overflow-x: auto }}</style></head>
<body><h1>Sequential Subset Matching: a reproducible companion</h1>
{figure}
<h2>Notebooks</h2><ul>{notebooks}</ul>
<h2>Tables</h2>{tables}
</body></html>
"""


def build_site(executed_dir: Path | str, tables_dir: Path | str, out_dir: Path | str) -> Path:
    """Renders a site.

    Args:
        executed_dir: folder of executed notebooks.
        tables_dir: folder of tables as HTML, of `tables.write_tables`.
        out_dir: where the site goes.

    Returns:
        The index page.

    Raises:
        StorageError: no notebook was executed.
    """
    paths = sorted(Path(executed_dir).glob("*.ipynb"))
    require(bool(paths), f"{executed_dir} holds no executed notebooks; run `make tables SCALE=smoke` first", StorageError)
    out_dir = Path(out_dir)
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in paths}
    for stem, notebook in notebooks.items():
        html, _ = HTMLExporter().from_notebook_node(notebook)
        write_text(out_dir / f"{stem}.html", html)
    main = notebooks.get(MAIN_NOTEBOOK) or next(iter(notebooks.values()))
    pictures = _pictures(main)
    figure = ""
    if pictures:
        write_atomically(out_dir / "main.png", lambda temporary: temporary.write_bytes(pictures[-1]))
        figure = f'<p><img src="main.png" alt="{escape(_title(main))}"></p><p>{escape(_title(main))}</p>'
    links = [f'<li><a href="{stem}.html">{escape(_title(notebook))}</a></li>' for stem, notebook in notebooks.items()]
    tables = [
        f"<h3>{escape(path.stem)}</h3><section>{path.read_text(encoding='utf-8')}</section>"
        for path in sorted(Path(tables_dir).glob("*.html"))
    ]
    page = PAGE.format(figure=figure, notebooks="".join(links), tables="".join(tables))
    write_text(out_dir / "index.html", page)
    return out_dir / "index.html"


def _title(notebook: nbformat.NotebookNode) -> str:
    """Returns the heading of a notebook."""
    return notebook.cells[0].source.splitlines()[0].lstrip("# ")


def _pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    """Returns all PNGs among the outputs."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    encoded = [output.get("data", {}).get("image/png") for output in outputs]
    return [base64.b64decode(picture) for picture in encoded if picture]

"""The site: `make site` renders the guides, the log, the executed notebooks and the library's docstrings.

It is built and read without a network: nothing is loaded from other servers, and formulas are MathML, which browsers draw.
"""

from base64 import b64decode
from hashlib import sha256
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from seqmatch_lib.report.evidence import Evidence
from seqmatch_lib.report.pages import to_mathml
from seqmatch_lib.report.tables import load_published, to_markdown
from seqmatch_lib.report.verdicts import list_verdicts

RESULTS = Path(__file__).parents[1] / "paper_results"

project = "SeqMatch companion"
html_title = project
author = "The SeqMatch companion authors"
project_copyright = f"2026, {author}"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["**/.ipynb_checkpoints", "notebooks/failed"]

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_math_renderer = "mathml"
copybutton_exclude = ".linenos, .gp, .go"

nb_execution_mode = "off"  # `notebooks` holds executed copies, which a test compares with their sources
nb_render_markdown_format = "myst"  # with formulas and tables, as the text cells have them
nb_ipywidgets_js: dict[str, dict] = {}  # widgets need a kernel; the page shows what the cell drew
myst_enable_extensions = ["dollarmath", "substitution"]
verdicts = list_verdicts(Evidence.load(RESULTS), load_published(RESULTS), RESULTS)
myst_substitutions = {"verdicts": to_markdown(verdicts.drop(columns="records"))}
myst_heading_anchors = 3

highlight_language = "none"  # of blocks that name no language
default_role = "code"  # docstrings write `name` for code
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False


def render_inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Draws a formula within a line."""
    translator.body.append(to_mathml(node.astext()))
    raise nodes.SkipNode


def render_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Draws a formula on lines of its own."""
    translator.body.append(f'<div class="formula">{to_mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def write_api_pages(app: Sphinx) -> None:
    """Writes one page for each folder of the library, with the docstrings of its modules; `front.md` shows the interface."""
    pages = Path(app.srcdir) / "api"
    pages.mkdir(exist_ok=True)
    for page in pages.glob("*.rst"):
        page.unlink()
    library = Path(app.srcdir).parent / "seqmatch_lib"
    for folder in [library, *sorted(init.parent for init in library.glob("*/__init__.py"))]:
        name = ".".join(folder.relative_to(library.parent).parts)
        lines = [name, "=" * len(name), "", f".. automodule:: {name}", ""]
        for module in sorted(folder.glob("[a-z]*.py")):
            if module.stem != "front":
                lines += [module.stem, "-" * len(module.stem), "", f".. automodule:: {name}.{module.stem}", "   :members:", ""]
        (pages / f"{name}.rst").write_text("\n".join(lines))


def tidy_signature(app: Sphinx, what: str, name: str, thing: object, options: object, signature: str | None, returns: str):
    """Writes the defaults that a dataclass makes anew as `...`, since Sphinx cannot parse `<factory>`."""
    return signature and signature.replace("<factory>", "..."), returns


def add_alternative_texts(app: Sphinx, page: nodes.document) -> None:
    """Gives the pictures of a notebook the alternative texts of its outputs; myst-nb names picture files by their sha256."""
    source = Path(app.env.doc2path(app.env.docname))
    if source.suffix != ".ipynb":
        return
    outputs = [output for cell in nbformat.read(source, 4).cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    texts = {
        sha256(b64decode(output.data["image/png"])).hexdigest(): output.metadata.get("image/png", {}).get("alt")
        for output in pictures
    }
    for image in page.findall(nodes.image):
        text = texts.get(Path(image["uri"]).stem)
        if text:
            image["alt"] = text


def setup(app: Sphinx) -> None:
    """Called by Sphinx before anything is read."""
    app.add_html_math_renderer("mathml", (render_inline, None), (render_block, None))
    app.connect("builder-inited", write_api_pages)
    app.connect("autodoc-process-signature", tidy_signature)
    app.connect("doctree-read", add_alternative_texts)

"""Executed notebooks as HTML pages that need no network: formulas are MathML, pictures and their texts are in the page."""

import re
from pathlib import Path
from typing import Any

import nbformat
from docutils.utils.math.latex2mathml import tex2mathml
from jinja2 import DictLoader, pass_context
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from seqmatch_lib.store.files import write_text

TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block data_png %}<div class="jp-RenderedImage jp-OutputArea-output" style="max-width: 100%">
<img alt="{{ output.metadata.get('image/png', {}).get('alt', '') | escape_html }}" style="max-width: 100%; height: auto"
src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"></div>{% endblock %}"""


class _Renderer(IPythonRenderer):
    def inline_math(self, body: str) -> str:
        return to_mathml(body)

    def block_math(self, body: str) -> str:
        return to_mathml(body, as_block=True)


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """Returns a text cell or output as HTML, its formulas as MathML."""
        return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source)


def to_mathml(formula: str, as_block: bool = False) -> str:
    """Returns a LaTeX formula as MathML, which browsers draw.

    It is written for docutils, which knows dots by one of their two names, and draws the index of an accented letter below it
    unless more stands in the same braces.
    """
    formula = re.sub(r"\\hat\s*(\\[a-zA-Z]+|\w)", r"{\\hat \1{}}", formula.replace(r"\dots", r"\ldots"))
    return tex2mathml(formula, as_block=as_block)


def export_html(path: Path | str) -> Path:
    """Writes an executed notebook as an HTML page beside it; returns the page."""
    exporter = _Exporter(extra_loaders=[DictLoader({"page.html.j2": TEMPLATE})], template_file="page.html.j2")
    page, _ = exporter.from_notebook_node(nbformat.read(path, as_version=4))
    out = Path(path).with_suffix(".html")
    write_text(out, page)
    return out

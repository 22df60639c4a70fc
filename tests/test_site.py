"""The site: built without a warning, complete, and without anything from other servers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--fail-on-warning", "--keep-going", "--doctree-dir", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(folder / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_executed_notebook_and_every_folder_of_the_library_has_a_page(site):
    executed = {path.stem for path in (ROOT / "paper_results" / "executed").glob("*.ipynb")}
    assert {path.stem for path in (site / "notebooks").glob("*.html")} == executed
    packages = {f"seqmatch_lib.{path.parent.name}" for path in (ROOT / "seqmatch_lib").glob("*/__init__.py")}
    assert {path.stem for path in (site / "api").glob("*.html")} == packages | {"seqmatch_lib"}


def test_nothing_is_loaded_from_other_servers(site):
    tags = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*>", flags=re.IGNORECASE)
    for page in site.rglob("*.html"):
        for tag in tags.findall(page.read_text()):
            assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", tag), f"{page.name}: {tag}"
    for style in site.rglob("*.css"):
        assert not re.search(r"""(?:url\(|@import\s*)["']?(?:https?:)?//""", style.read_text()), style.name


def test_the_start_page_shows_figure_and_verdicts_and_links_lead_somewhere(site):
    page = (site / "index.html").read_text()
    assert page.index("comparison_10_short.svg") < page.index("<h2>Verdicts")
    assert "not decided" in page[page.index("<h2>Verdicts") :]
    for path in site.rglob("*.html"):
        for link in re.findall(r'href="([^"#:?]+\.html)', path.read_text()):
            assert (path.parent / link).resolve().is_file(), f"{path.name}: {link}"


def test_formulas_are_drawn_and_pictures_have_texts(site):
    for page in (site / "notebooks").glob("*.html"):
        text = page.read_text()
        assert "$$" not in text, page.name
        for picture in re.findall(r"<img[^>]+_images/[^>]+>", text):
            alt = re.search(r'alt="([^"]*)"', picture)[1]
            assert alt, f"{page.name} has a picture without a text"
            assert "_images/" not in alt, f"{page.name}: {alt}"
    assert "<math" in (site / "notebooks" / "02_seqmatch_step_by_step.html").read_text()

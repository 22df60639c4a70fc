"""Every text is UTF-8 on disk, whatever the locale is, and a terminal that lacks a sign ends no command."""

import ast
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import seqmatch_lib
from seqmatch_lib.__main__ import main

ROOT = Path(__file__).parents[2]
ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}  # the encoding of files where nobody names one


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "utf-8"])
def test_accuracies_are_printed_in_every_encoding(monkeypatch, encoding):
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["show", str(ROOT / "paper_results" / "smoke")]) == 0
        assert (b"\\xb1" if encoding == "ascii" else "±".encode(encoding)) in written.getvalue()


WRITE_TABLES = """
import sys
from pathlib import Path
from seqmatch_lib.report.evidence import Evidence
from seqmatch_lib.report.tables import load_published, write_tables
results = Path(sys.argv[1])
write_tables(Evidence.load(results), load_published(results), results)
"""


def test_tables_are_the_same_in_every_locale(tmp_path):
    results = tmp_path / "paper_results"
    for name in ("runs/svhn", "published"):
        shutil.copytree(ROOT / "paper_results" / name, results / name)
    command = [sys.executable, "-c", WRITE_TABLES, str(results)]
    done = subprocess.run(command, capture_output=True, env=os.environ | ASCII, check=False)
    assert done.returncode == 0, done.stderr
    wanted = (ROOT / "paper_results" / "tables" / "svhn.md").read_bytes()
    assert "±".encode() in wanted
    assert (results / "tables" / "svhn.md").read_bytes() == wanted


def find_texts_without_encoding(source: str) -> list[str]:
    """Returns the calls in a module that read or write text as the locale has it."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call)
        for call in calls
        for name in [getattr(call.func, "attr", getattr(call.func, "id", ""))]
        if name in ("read_text", "write_text", "open", "run", "Popen")
        and (name in ("read_text", "write_text") or _is_text(call, name))
        and not any(keyword.arg == "encoding" for keyword in call.keywords)
    ]


def _is_text(call: ast.Call, name: str) -> bool:
    """Whether `open` opens a text, or a process's output is read as one."""
    if name != "open":
        return any(keyword.arg == "text" for keyword in call.keywords)
    given = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    binary = any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in given)
    return isinstance(call.func, ast.Name) and not binary


def test_the_library_names_the_encoding_of_every_text():
    found = {}
    for path in Path(seqmatch_lib.__file__).parent.rglob("*.py"):
        calls = find_texts_without_encoding(path.read_text(encoding="utf-8"))
        calls = [call for call in calls if not call.startswith("write_text(")]  # ours, which names it
        found |= {path.name: calls} if calls else {}
    assert found == {}


@pytest.mark.parametrize(
    "source", ["open('x')", "open('x', mode='w')", "p.read_text()", "p.write_text('')", "subprocess.run(['x'], text=True)"]
)
def test_the_check_of_the_library_finds_what_it_looks_for(source):
    assert find_texts_without_encoding(source)


@pytest.mark.parametrize("source", ["open('x', 'rb')", "p.read_text(encoding='utf-8')", "subprocess.run(['x'])", "run(x)"])
def test_the_check_of_the_library_leaves_other_calls_alone(source):
    assert not find_texts_without_encoding(source)

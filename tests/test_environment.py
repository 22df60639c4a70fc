"""One dependency list: pyproject.toml says what is needed, requirements.lock pins it, environment.yml reads the lock."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK_LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
LOCK = {canonicalize_name(pin.name): pin for pin in map(Requirement, LOCK_LINES)}


def pinned(name: str) -> Version:
    return Version(str(LOCK[canonicalize_name(name)].specifier).removeprefix("=="))


def test_the_lock_is_sorted_and_pins_one_version_of_each():
    assert len(LOCK) == len(LOCK_LINES)
    assert all(re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)) for pin in LOCK.values())
    names = [re.split("[= ;]", line)[0].lower() for line in LOCK_LINES]
    assert names == sorted(names)


def test_the_lock_pins_every_dependency_within_its_range():
    extras = PROJECT["optional-dependencies"]
    wanted = [Requirement(text) for text in [*PROJECT["dependencies"], *extras["notebooks"], *extras["dev"], *extras["site"]]]
    for requirement in wanted:
        assert requirement.specifier.contains(pinned(requirement.name)), requirement


def test_the_library_imports_nothing_that_only_another_package_brings():
    """Imports inside functions count too. What draws in notebooks may use all that JupyterLab brings."""
    imported, library = set(), ROOT / "seqmatch_lib"
    for path in sorted({*library.rglob("*.py")} - {*(library / "report").glob("*.py"), library / "explore.py"}):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0] for name in names}
    providers = packages_distributions()
    needed = {name: providers[name] for name in imported - set(sys.stdlib_module_names) - {"seqmatch_lib"}}
    wanted = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["notebooks"]]]
    listed = {canonicalize_name(requirement.name) for requirement in wanted}
    assert {"babel", "pandas", "sklearn", "torch"} <= needed.keys()
    missing = {name: found for name, found in needed.items() if not listed & set(map(canonicalize_name, found))}
    assert not missing


def test_the_readme_names_the_torch_that_is_locked():
    torch = pinned("torch")
    assert f"torch {torch.major}.{torch.minor} on Linux" in (ROOT / "README.md").read_text()


def test_the_conda_environment_is_python_and_pip_and_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    python, pip, through_pip = environment["dependencies"]
    assert pip == "pip"
    assert through_pip == {"pip": ["-r requirements.lock", "-e ."]}
    name, versions = python.split(" ", 1)
    assert name == "python"
    assert SpecifierSet(versions).contains("3.11")
    for other in ("3.10", "3.14"):
        assert not SpecifierSet(versions).contains(other)
    assert PROJECT["requires-python"] == ">=3.11"


def test_this_environment_is_the_locked_one():
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("not running in the project's .venv")
    for name, pin in LOCK.items():
        if pin.marker is None or pin.marker.evaluate():
            assert Version(version(name)).public == str(pinned(name)), name


def test_continuous_integration_is_make_test():
    assert (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1] == "make test-all"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_large_things_are_ignored():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for entry in (".venv/", "build/", "/data/", "/paper_results/teachers/", "/paper_results/state/"):
        assert entry in ignored

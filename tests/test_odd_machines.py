"""Machines that are set up in another way: no compiler, tensors in another memory layout, other kernels, other repositories."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from fuzz_settings import write_notebook

from seqmatch_lib.engine.augment import apply_augmentation, draw_augmentation
from seqmatch_lib.engine.networks import NETWORKS, NORMS, NetworkConfig, check_networks, flatten_parameters, make_network
from seqmatch_lib.engine.step_functions import StepFunctions
from seqmatch_lib.errors import ConfigError
from seqmatch_lib.report.notebooks import run_notebook

pytestmark = pytest.mark.trust

ROOT = Path(__file__).parents[1]

# --- memory layouts

LAYOUTS = {
    "channels last": lambda images: images.contiguous(memory_format=torch.channels_last),
    "permuted": lambda images: images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "transposed": lambda images: images.transpose(2, 3).contiguous().transpose(2, 3),
    "every second": lambda images: images.repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", ["instance", "group", "layer", "none"])
def test_uncompiled_steps_do_not_depend_on_the_memory_layout(generator, float64, norm, channels, layout):
    network = make_network(NetworkConfig(width=4, depth=2, norm=norm), (channels, 8, 8), 3, generator)
    functions, parameters = StepFunctions(network, compiled=False), flatten_parameters(network)
    images, labels = torch.randn(4, channels, 8, 8, generator=generator), torch.tensor([0, 1, 2, 0])
    direction = torch.randn(len(parameters), generator=generator)
    odd = LAYOUTS[layout](images)
    assert torch.equal(odd, images)

    def compute(batch: torch.Tensor) -> list[torch.Tensor]:
        stacked = [torch.stack([one, one]) for one in (parameters, batch, labels)]
        adjoint = functions.adjoint(parameters, batch, labels, direction)
        alone = functions.image_adjoint(parameters, batch, labels, direction)
        return [*functions.gradient(parameters, batch, labels), *functions.gradient(*stacked), *adjoint, alone]

    for expected, found in zip(compute(images), compute(odd), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", ["crop", "flip", "scale", "cutout", "color", "rotate"])
def test_uncompiled_steps_take_what_augmentation_returns(generator, operation, channels):
    network = make_network(NetworkConfig(width=4, depth=1), (channels, 8, 8), 3, generator)
    functions, parameters = StepFunctions(network, compiled=False), flatten_parameters(network)
    images = torch.randn(4, channels, 8, 8, generator=generator)
    augmented = apply_augmentation(images, draw_augmentation(operation, 4, (8, 8), generator))
    functions.adjoint(parameters, augmented, torch.tensor([0, 1, 2, 0]), torch.ones_like(parameters))


# --- compilers that are turned off, or have no folder

COMPILE = """
import sys, warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from seqmatch_lib.engine.networks import NetworkConfig, flatten_parameters, make_network
    from seqmatch_lib.engine.step_functions import StepFunctions
    network = make_network(NetworkConfig(width=4, depth=1), (1, 4, 4), 2, torch.Generator())
    arguments = flatten_parameters(network), torch.ones(3, 1, 4, 4), torch.tensor([0, 1, 0])
    for precision in sys.argv[1:]:
        StepFunctions(network, precision).gradient(*arguments)
print("\\n".join(str(one.message) for one in caught if one.category is UserWarning))
"""


def compile_with(precision: str, **environment: str) -> tuple[str, str]:
    """Returns the warnings, and the last line of the errors, of a process with other environment variables."""
    command = [sys.executable, "-c", COMPILE, precision]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    return done.stdout, done.stderr.strip().splitlines()[-1] if done.returncode else ""


@pytest.mark.parametrize("name", ["TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"])
def test_a_compiler_that_is_turned_off_is_said(name):
    said, error = compile_with("float32", **{name: "1"})
    assert (said.count("running uncompiled"), error) == (1, "")
    assert f"turned off); unset {name}" in said or f"and {name}" in said
    _, error = compile_with("bfloat16", **{name: "1"})
    assert "precision 'bfloat16' needs compiled code, and compiling failed (torch.compile is turned off)" in error


def test_a_folder_for_compiled_code_that_cannot_be_made_is_said_and_replaced(tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    said, error = compile_with("float32", TORCHINDUCTOR_CACHE_DIR=str(folder), CXX="no-such-compiler", TMPDIR=str(tmp_path))
    assert error == ""
    assert f"Not a directory: '{folder}'); set TORCHINDUCTOR_CACHE_DIR to a folder that can be written to" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "the folder in its place is gone with the process"


# --- provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def describe_there(root: Path) -> tuple[str, bool]:
    """Returns what a copy of the package says of its code."""
    command = "import json; from seqmatch_lib.runs.records import describe_code; print(json.dumps(describe_code()))"
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, env=environment, check=True, cwd=root
    )
    return tuple(json.loads(done.stdout))


def test_provenance_names_the_packages_own_repository_alone(tmp_path):
    outer, root = tmp_path, tmp_path / "SeqMatch-main"
    shutil.copytree(ROOT / "seqmatch_lib", root / "seqmatch_lib", ignore=shutil.ignore_patterns("__pycache__"))
    git(outer, "init", "--quiet")
    (outer / "thesis.txt").touch()
    git(outer, "add", "thesis.txt")
    git(outer, "commit", "--quiet", "-m", "another project")
    assert describe_there(root) == ("unknown", False)
    git(root, "init", "--quiet")
    git(root, "add", "-A")
    git(root, "commit", "--quiet", "-m", "the package")
    own = git(root, "rev-parse", "HEAD")
    assert describe_there(root) == (own, False)
    (root / "notes.txt").touch()
    assert describe_there(root) == (own, False), "what no code reads does not count"
    new = root / "seqmatch_lib" / "methods" / "mine.py"
    new.touch()
    assert describe_there(root) == (own, True)
    new.unlink()
    with (root / "seqmatch_lib" / "errors.py").open("a") as file:
        file.write("# changed\n")
    assert describe_there(root) == (own, True)


# --- notebooks


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_a_notebook_runs_in_this_python_whatever_other_kernels_are_called(tmp_path, monkeypatch):
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    argv = ["/bin/false", "-f", "{connection_file}"]
    (foreign / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    write_notebook(tmp_path)
    notebook = nbformat.read(tmp_path / "one.ipynb", 4)
    notebook.cells.append(nbformat.v4.new_code_cell("import sys; print(sys.executable)"))
    nbformat.write(notebook, tmp_path / "one.ipynb")
    run_notebook(tmp_path / "one.ipynb", tmp_path / "out.ipynb", {})
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs[0].text.strip() == sys.executable


# --- images of any size


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (8, 8), (9, 9), (15, 17), (33, 32)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_any_norm_takes_images_of_a_size_or_names_what_it_needs(name, size, generator):
    images = torch.randn(2, 1, *size, generator=generator)
    for norm in NORMS:
        config = NetworkConfig(name, width=4, norm=norm)
        try:
            check_networks([config], (1, *size), 3)
        except ConfigError as error:
            assert "too small for the" in str(error) or "vit cuts images" in str(error)
            continue
        make_network(config, (1, *size), 3, generator).eval()(images)


@pytest.mark.parametrize("name", ["vgg11", "alexnet", "resnet18_ap", "convnet"])
def test_the_advice_for_images_that_are_too_small_works(name, generator):
    with pytest.raises(ConfigError, match=rf"poolings of '{name}', which needs (8x8|32x32) pixels; (.*), or larger") as caught:
        check_networks([NetworkConfig(name)], (1, 7, 7), 3)
    advised = NetworkConfig("resnet18") if "use 'resnet18'" in str(caught.value) else NetworkConfig(name, depth=2)
    check_networks([advised], (1, 7, 7), 3)
    side = int(caught.value.args[0].split("needs ")[1].split("x")[0])
    check_networks([NetworkConfig(name)], (1, side, side), 3)

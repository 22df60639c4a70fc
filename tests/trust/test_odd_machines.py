"""Odd machines: no compiler, tensors in another memory layout, other kernels, other repositories, images of odd sizes."""

import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import nbformat
import pytest
import torch
from helpers import write_notebook

from seqmatch_lib.engine import step_functions
from seqmatch_lib.engine.augment import apply_augmentation, draw_augmentation
from seqmatch_lib.engine.networks import NETWORKS, NORMS, NetworkConfig, check_networks, flatten_parameters, make_network
from seqmatch_lib.engine.step_functions import StepFunctions
from seqmatch_lib.errors import ConfigError
from seqmatch_lib.report.notebooks import run_notebook
from seqmatch_lib.runs import experiment, provenance
from seqmatch_lib.runs.experiment import choose_device

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


@pytest.mark.parametrize("disabled", [False, True], ids=["TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"])
def test_a_compiler_that_is_turned_off_is_said(disabled, generator, monkeypatch):
    monkeypatch.setattr(step_functions, "UNCOMPILED", set())
    if not disabled:
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    network = make_network(NetworkConfig(width=4, depth=1), (1, 4, 4), 2, generator)
    arguments = flatten_parameters(network), torch.ones(3, 1, 4, 4), torch.tensor([0, 1, 0])
    functions, bfloat16 = StepFunctions(network), StepFunctions(network, "bfloat16")
    with torch._dynamo.config.patch(disable=disabled):  # which the other variable sets when torch is imported
        with pytest.warns(UserWarning, match=r"running uncompiled.*turned off\); unset TORCHDYNAMO_DISABLE and TORCH_COMPILE"):
            functions.gradient(*arguments)
        functions.adjoint(*arguments, arguments[0])  # and is said once
        with pytest.raises(ConfigError, match=r"'bfloat16' needs compiled code, .* \(torch.compile is turned off\)"):
            bfloat16.gradient(*arguments)


def test_a_folder_for_compiled_code_that_cannot_be_made_is_said_and_replaced(tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    command = [sys.executable, "-c", "import seqmatch_lib.engine.step_functions; print('it goes on')"]
    changed = {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **changed}, check=False)
    assert done.stdout == "it goes on\n", done.stderr
    assert f"Not a directory: '{folder}'); set TORCHINDUCTOR_CACHE_DIR to a folder that can be written to" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "the folder in its place is gone with the process"


# --- provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_provenance_names_the_packages_own_repository_alone(tmp_path, monkeypatch):
    outer, root = tmp_path, tmp_path / "SeqMatch-main"
    package = root / "seqmatch_lib"
    (package / "runs").mkdir(parents=True)
    (package / "runs" / "records.py").touch()
    monkeypatch.setattr(provenance, "__file__", str(package / "runs" / "records.py"))
    assert provenance.describe_code() == ("unknown", False)
    git(outer, "init", "--quiet")
    (outer / "thesis.txt").touch()
    git(outer, "add", "thesis.txt")
    git(outer, "commit", "--quiet", "-m", "another project")
    assert provenance.describe_code() == ("unknown", False)
    git(root, "init", "--quiet")
    git(root, "add", "-A")
    git(root, "commit", "--quiet", "-m", "the package")
    own = git(root, "rev-parse", "HEAD")
    assert provenance.describe_code() == (own, False)
    (root / "notes.txt").touch()
    assert provenance.describe_code() == (own, False), "what is no module does not count"
    (package / "methods").mkdir()
    (package / "methods" / "mine.py").touch()
    assert provenance.describe_code() == (own, True)
    shutil.rmtree(package / "methods")
    (package / "runs" / "records.py").write_text("changed")
    assert provenance.describe_code() == (own, True)


# --- notebooks


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_a_notebook_runs_in_this_python_whatever_other_kernels_are_called(tmp_path, monkeypatch):
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    argv = ["/bin/false", "-f", "{connection_file}"]
    (foreign / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    write_notebook(tmp_path / "one.ipynb", "x = 1", "import sys; print(sys.executable)")
    run_notebook(tmp_path / "one.ipynb", tmp_path / "out.ipynb", {})
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs[0].text.strip() == sys.executable


# --- images of any size


def fits(config: NetworkConfig, size: tuple[int, int]) -> bool:
    try:
        check_networks([config], (1, *size), 3, of_pixels=config.name == "fcn")
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (8, 8), (9, 9), (15, 17), (33, 32)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_any_norm_takes_images_of_a_size_or_says_that_it_does_not(name, size, generator):
    images = torch.randn(2, 1, *size, generator=generator)
    configs = [NetworkConfig(name, width=4, norm=norm) for norm in NORMS]
    fitting = [config for config in configs if fits(config, size)]
    assert fitting in ([], configs), "norms do not decide"
    assert fitting or name not in ("resnet18", "fcn")
    for config in fitting:
        make_network(config, (1, *size), 3, generator).eval()(images)


@pytest.mark.parametrize("name", ["vgg11", "alexnet", "resnet18_ap", "convnet"])
def test_the_advice_for_images_that_are_too_small_works(name, generator):
    with pytest.raises(ConfigError, match=rf"poolings of '{name}', which needs (8x8|32x32) pixels; (.*), or larger") as caught:
        check_networks([NetworkConfig(name)], (1, 7, 7), 3)
    advised = NetworkConfig("resnet18") if "use 'resnet18'" in str(caught.value) else NetworkConfig(name, depth=2)
    check_networks([advised], (1, 7, 7), 3)
    side = int(caught.value.args[0].split("needs ")[1].split("x")[0])
    check_networks([NetworkConfig(name)], (1, side, side), 3)


# --- GPUs that torch cannot use: a driver older than its CUDA, or a torch for CPUs


@pytest.mark.parametrize("there", [True, False])
def test_a_gpu_that_torch_cannot_use_is_told_once_and_no_other(there, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(experiment, "NVIDIA_DRIVER", tmp_path if there else tmp_path / "absent")
    experiment._tell_of_unseen_gpu.cache_clear()
    assert choose_device("cpu").type == "cpu"  # as was asked for
    assert capsys.readouterr().err == ""
    assert [choose_device().type for _ in range(2)] == ["cpu", "cpu"]
    said = capsys.readouterr().err
    assert said.count(f"an NVIDIA GPU that torch {torch.__version__} cannot use, so the CPU computes; install") == there
    assert said.count("\n") == there
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device().type == "cuda"
    experiment._tell_of_unseen_gpu.cache_clear()


# --- processes that have chosen a precision of their own

OPERATIONS = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)


@pytest.fixture
def own_precisions():
    """Lets a test set those of the process, as older and newer code does."""
    before = [operation.fp32_precision for operation in OPERATIONS]
    yield
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):  # then both ways of setting it agree again
        backend.allow_tf32 = backend is torch.backends.cudnn  # as torch has it at first
    for operation, value in zip(OPERATIONS, before, strict=True):
        operation.fp32_precision = value


def steps_in_tf32(precision: str, generator: torch.Generator) -> set[bool]:
    """Computes a gradient and both of its adjoints; returns whether TF32 was allowed in each of them."""
    seen: list[bool] = []
    network = make_network(NetworkConfig(width=4, depth=1), (1, 4, 4), 2, generator)
    network[0].register_forward_hook(lambda *_: seen.extend(operation.fp32_precision == "tf32" for operation in OPERATIONS))
    functions = StepFunctions(network, precision, compiled=False)
    arguments = flatten_parameters(network), torch.ones(3, 1, 4, 4), torch.tensor([0, 1, 0])
    functions.gradient(*arguments)
    functions.adjoint(*arguments, arguments[0])
    functions.image_adjoint(*arguments, arguments[0])
    assert len(seen) == 3 * len(OPERATIONS)
    return set(seen)


@pytest.mark.parametrize("own", [*product(["tf32", "ieee", "none"], ["tf32", "ieee"])])
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_a_step_has_its_own_precision_and_gives_back_that_of_the_process(own, precision, own_precisions, generator):
    """Where torch's newer way of setting it was used, the older one, `allow_tf32`, raises an error even when it is read."""
    for operation, value in zip(OPERATIONS, own, strict=True):
        operation.fp32_precision = value
    assert steps_in_tf32(precision, generator) == {precision == "tf32"}
    assert [operation.fp32_precision for operation in OPERATIONS] == list(own)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_step_gives_back_what_was_set_in_torch_s_older_way(allowed, own_precisions, generator):
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    for backend in backends:
        backend.allow_tf32 = allowed
    assert steps_in_tf32("tf32", generator) == {True}
    assert steps_in_tf32("float32", generator) == {False}
    assert [backend.allow_tf32 for backend in backends] == [allowed, allowed]


@pytest.mark.parametrize("allowed", [True, False])
def test_meanwhile_the_older_setting_can_be_read_as_torch_s_compiler_does(allowed):
    """It raises an error where the newer one alone was set."""
    with step_functions._tf32(allowed):
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed

"""The unrolled gradient of both engines: finite differences, an independent unroll, each other, over drawn settings."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import SEED
from helpers import call_flat
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch.func import grad

from seqmatch_lib.engine import step_functions
from seqmatch_lib.engine.augment import DSA_STRATEGY, apply_augmentation, draw_augmentation
from seqmatch_lib.engine.inner_loop import UNROLL_ENGINES, InnerBatch, unroll
from seqmatch_lib.engine.networks import NetworkConfig, flatten_parameters, make_network
from seqmatch_lib.engine.step_functions import PRECISIONS, UNCOMPILED, StepFunctions, _Compiled
from seqmatch_lib.errors import ConfigError

SHAPE, CLASSES = (2, 8, 8), 3


class Problem:
    """A small float64 problem: network, start, unequal augmented batches, hard and soft labels, a step size, a target."""

    def __init__(self, generator, config=None, augment="none", sizes=(3, 4, 2, 4), count=7, shape=SHAPE):
        config = config or NetworkConfig(width=4, depth=1)
        self.network = make_network(config, shape, CLASSES, generator).double()
        self.start = flatten_parameters(self.network)
        self.images = torch.randn(count, *shape, generator=generator, dtype=torch.float64, requires_grad=True)
        soft = torch.rand(count, CLASSES, generator=generator, dtype=torch.float64)
        self.soft = soft.softmax(1).requires_grad_()
        self.hard = torch.randint(CLASSES, (count,), generator=generator)
        self.lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        self.batches = []
        for size in sizes:
            rows = torch.randperm(count, generator=generator)[:size]
            drawn = draw_augmentation(augment, size, shape[1:], generator)
            self.batches.append(InnerBatch(rows, drawn))
        self.target = torch.randn(self.start.shape, generator=generator, dtype=torch.float64)

    def loss(self, images, targets, lr, engine="higher"):
        reached = unroll(self.network, self.start, images, targets, self.batches, lr, engine)
        return (reached - self.target).square().sum()

    def gradients(self, kind, engine):
        targets = self.hard if kind == "hard" else self.soft
        leaves = [self.images, self.lr] + ([self.soft] if kind == "soft" else [])
        return torch.autograd.grad(self.loss(self.images, targets, self.lr, engine), leaves)


def assert_equal_gradients(ours, theirs, rtol=1e-9):
    """Relative to the largest entry: single entries near zero have no relative accuracy."""
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0
        assert (mine - other).abs().max() <= rtol * other.abs().max()


@pytest.mark.parametrize("engine", UNROLL_ENGINES)
def test_final_parameters_equal_plain_sgd(generator, engine, uncompiled):
    problem = Problem(generator)
    reached = unroll(
        problem.network, problem.start, problem.images, problem.hard, problem.batches, problem.lr, engine
    ).detach()
    plain = make_network(NetworkConfig(width=4, depth=1), SHAPE, CLASSES, torch.Generator()).double()
    torch.nn.utils.vector_to_parameters(problem.start.clone(), plain.parameters())
    optimizer = torch.optim.SGD(plain.parameters(), lr=problem.lr.item())
    for batch in problem.batches:
        optimizer.zero_grad()
        F.cross_entropy(plain(problem.images.detach()[batch.rows]), problem.hard[batch.rows]).backward()
        optimizer.step()
    torch.testing.assert_close(reached, flatten_parameters(plain), rtol=1e-12, atol=1e-12)
    assert not torch.equal(reached, problem.start)


@pytest.mark.parametrize("engine", UNROLL_ENGINES)
def test_gradients_equal_finite_differences(generator, engine, uncompiled):
    """Every entry of images, probabilities and step size, moved by 1e-6 to either side."""
    problem = Problem(generator, sizes=(3, 2, 3), count=4, shape=(2, 4, 4))
    leaves = [problem.images, problem.soft, problem.lr]
    gradients = torch.autograd.grad(problem.loss(*leaves, engine), leaves)
    for index, gradient in enumerate(gradients):
        numerical = torch.zeros_like(gradient)
        for entry in range(gradient.numel()):
            sides = []
            for shift in (1e-6, -1e-6):
                moved = [leaf.detach().clone() for leaf in leaves]
                moved[index].view(-1)[entry] += shift
                sides.append(problem.loss(*moved, engine).item())
            numerical.view(-1)[entry] = (sides[0] - sides[1]) / 2e-6
        assert_equal_gradients([gradient], [numerical], rtol=1e-5)


@pytest.mark.parametrize("engine", UNROLL_ENGINES)
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_gradients_equal_an_independent_unroll(generator, kind, engine, uncompiled):
    problem = Problem(generator, augment="color_scale", sizes=(3, 4, 2, 4))
    targets = problem.hard if kind == "hard" else problem.soft

    def step_loss(theta, x, y):
        return F.cross_entropy(call_flat(problem.network, theta, x), y)

    theta = problem.start
    for batch in problem.batches:
        x = apply_augmentation(problem.images[batch.rows], batch.augmentation)
        theta = theta - problem.lr * grad(step_loss)(theta, x, targets[batch.rows])
    leaves = [problem.images, problem.lr] + ([problem.soft] if kind == "soft" else [])
    theirs = torch.autograd.grad((theta - problem.target).square().sum(), leaves)
    assert_equal_gradients(problem.gradients(kind, engine), theirs)


ARCHITECTURES = {
    "convnet": NetworkConfig(width=8, depth=2),
    "convnet, layer norm, max pooling": NetworkConfig(width=4, depth=1, norm="layer", pooling="max"),
    "convnet, group norm": NetworkConfig(width=4, depth=2, norm="group"),
    "convnet, no norm": NetworkConfig(width=4, depth=1, norm="none", pooling="none"),
    "resnet18": NetworkConfig(name="resnet18"),
    "resnet18_ap": NetworkConfig(name="resnet18_ap"),
    "vit": NetworkConfig(name="vit"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_engines_agree_on_every_architecture(generator, name, uncompiled):
    shape = (2, 16, 16) if name.startswith("resnet") else SHAPE  # smaller ones shrink to a pixel, which the norm empties
    problem = Problem(generator, ARCHITECTURES[name], DSA_STRATEGY, sizes=(3, 2), count=4, shape=shape)
    for kind in ("hard", "soft"):
        assert_equal_gradients(problem.gradients(kind, "compiled"), problem.gradients(kind, "higher"))


@seed(SEED)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    draw=st.integers(0, 2**31),
    width=st.sampled_from([1, 4, 6]),
    depth=st.integers(1, 2),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    augment=st.sampled_from(["none", *DSA_STRATEGY.split("_"), DSA_STRATEGY]),
    kind=st.sampled_from(["hard", "soft"]),
)
def test_engines_agree_over_drawn_settings(uncompiled, draw, width, depth, sizes, augment, kind):
    problem = Problem(torch.Generator().manual_seed(draw), NetworkConfig(width=width, depth=depth), augment, sizes)
    assert_equal_gradients(problem.gradients(kind, "compiled"), problem.gradients(kind, "higher"))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_compiled_code_agrees(generator, kind):
    problem = Problem(generator, ARCHITECTURES["convnet"], augment=DSA_STRATEGY, sizes=(4, 4, 4))
    assert_equal_gradients(problem.gradients(kind, "compiled"), problem.gradients(kind, "higher"))
    assert not UNCOMPILED  # nothing was left uncompiled


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("vit", SHAPE), ("resnet18", (2, 16, 16))])
def test_compiled_code_agrees_on_larger_networks(generator, name, shape):
    problem = Problem(generator, ARCHITECTURES[name], DSA_STRATEGY, sizes=(4, 4, 4), shape=shape)
    assert_equal_gradients(problem.gradients("hard", "compiled"), problem.gradients("hard", "higher"))
    assert not UNCOMPILED  # nothing was left uncompiled


def test_stacked_networks_have_the_gradients_of_each(generator, uncompiled):
    network = make_network(ARCHITECTURES["convnet"], SHAPE, CLASSES, generator).double()
    functions = StepFunctions(network)
    parameters = torch.randn(3, len(flatten_parameters(network)), generator=generator, dtype=torch.float64)
    images = torch.randn(3, 5, *SHAPE, generator=generator, dtype=torch.float64)
    targets = torch.randint(CLASSES, (3, 5), generator=generator)
    together, losses = functions.gradient(parameters, images, targets)
    for index in range(3):
        alone, loss = functions.gradient(parameters[index], images[index], targets[index])
        torch.testing.assert_close(together[index], alone, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(losses[index], loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_adjoint_of_images_is_that_of_all_arguments(generator, name, uncompiled):
    shape = (2, 16, 16) if "resnet" in name else SHAPE
    network = make_network(ARCHITECTURES[name], shape, CLASSES, generator).double()
    parameters = flatten_parameters(network)
    images = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    targets = torch.randint(CLASSES, (3,), generator=generator)
    direction = torch.randn(parameters.shape, generator=generator, dtype=torch.float64)
    functions = StepFunctions(network)
    _, expected, _ = functions.adjoint(parameters, images, targets, direction)
    alone = functions.image_adjoint(parameters, images, targets, direction)
    assert_equal_gradients([alone], [expected])
    leaf = images.clone().requires_grad_()  # and twice through autograd
    theta = parameters.clone().requires_grad_()
    loss = F.cross_entropy(call_flat(network, theta, leaf), targets)
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    (twice,) = torch.autograd.grad(gradient @ direction, leaf)
    assert_equal_gradients([alone], [twice])


def test_bfloat16_is_near_and_tf32_is_float32_on_a_cpu(generator):
    problem = Problem(generator, NetworkConfig(width=16, depth=2), sizes=(20, 20), count=20)
    network, start = problem.network.float(), problem.start.float()
    data = (problem.images.float(), problem.hard, problem.batches, torch.tensor(0.01))
    gradients = {}
    for precision in PRECISIONS:
        reached = unroll(network, start, *data, engine="compiled", precision=precision)
        (gradients[precision],) = torch.autograd.grad(reached.square().sum(), problem.images)
    if not torch.cuda.is_available():
        assert torch.equal(gradients["float32"], gradients["tf32"])
    error = (gradients["bfloat16"] - gradients["float32"]).norm() / gradients["float32"].norm()
    assert 0 < error < 0.3
    assert not UNCOMPILED


def test_the_compiled_engine_keeps_one_vector_a_step(generator, uncompiled):
    problem = Problem(generator, sizes=(4,) * 6)
    reached = unroll(
        problem.network, problem.start, problem.images, problem.hard, problem.batches, problem.lr, engine="compiled"
    )
    kept = [*reached.grad_fn.trail, *reached.grad_fn.saved_tensors]
    assert [tuple(tensor.shape) for tensor in reached.grad_fn.trail] == [problem.start.shape] * 6
    assert sum(tensor.numel() for tensor in kept) == 6 * len(problem.start) + problem.images.numel() + 7 + 1


def test_a_batch_that_repeats_an_image_counts_it_twice(generator, uncompiled):
    problem = Problem(generator, sizes=())
    rows = torch.tensor([0, 0, 1])
    problem.batches = [InnerBatch(rows, draw_augmentation("none", 3, SHAPE[1:], generator))]
    gradients = {engine: problem.gradients("hard", engine)[0] for engine in UNROLL_ENGINES}
    assert_equal_gradients([gradients["compiled"]], [gradients["higher"]])
    assert gradients["higher"][:2].abs().sum() > 0
    assert gradients["higher"][2:].abs().sum() == 0


def test_what_cannot_be_unrolled_is_refused(generator):
    problem = Problem(generator)
    data = (problem.images, problem.hard, problem.batches, problem.lr)
    with pytest.raises(ConfigError, match="engine 'hihger' is unknown; use one of higher, compiled"):
        unroll(problem.network, problem.start, *data, engine="hihger")
    with pytest.raises(ConfigError, match="precision 'float16' is unknown; use one of float32, tf32, bfloat16"):
        unroll(problem.network, problem.start, *data, engine="compiled", precision="float16")
    with pytest.raises(ConfigError, match="engine 'higher' has no precision 'bfloat16'; use 'float32'"):
        unroll(problem.network, problem.start, *data, precision="bfloat16")
    with pytest.raises(ConfigError, match=f"this network has {len(problem.start)} parameters"):
        unroll(problem.network, problem.start[1:], *data)
    for norm in torch.nn.LayerNorm(SHAPE), torch.nn.InstanceNorm2d(SHAPE[0]):
        network = torch.nn.Sequential(norm, torch.nn.Flatten(), torch.nn.Linear(2 * 8 * 8, CLASSES)).double()
        functions, theta = StepFunctions(network, compiled=False), flatten_parameters(network)
        assert functions.gradient(theta, problem.images, problem.hard)[1].isfinite()
        for adjoint in functions.adjoint, functions.image_adjoint:
            with pytest.raises(ConfigError, match=rf"torch.nn.{type(norm).__name__} has wrong second .*engine.networks"):
                adjoint(theta, problem.images, problem.hard, theta)
    batch_norm = make_network(NetworkConfig(width=4, depth=1, norm="batch"), SHAPE, CLASSES, torch.Generator())
    with pytest.raises(ConfigError, match=r"running statistics.*instance"):
        unroll(batch_norm.double(), flatten_parameters(batch_norm).double(), *data)


def test_a_process_compiles_any_number_of_functions_that_share_their_code(monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode, **settings: compile_(function, backend="eager", **settings))

    def make(shift: int) -> _Compiled:
        return _Compiled(lambda x: x + shift)

    torch._dynamo.reset()
    with torch._dynamo.config.patch(accumulated_recompile_limit=16):  # torch's own is 256, which takes longer
        for shift in range(66):
            assert make(shift)(torch.zeros(1)).item() == shift
    torch._dynamo.reset()


NO_COMPILER = """
import torch, warnings
from seqmatch_lib.errors import ConfigError
from seqmatch_lib.engine.networks import NetworkConfig, flatten_parameters, make_network
from seqmatch_lib.engine.step_functions import StepFunctions
network = make_network(NetworkConfig(width=4, depth=1), (1, 4, 4), 2, torch.Generator())
functions = StepFunctions(network)
arguments = flatten_parameters(network), torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 0])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    functions.gradient(*arguments)
    functions.gradient(*arguments)
    functions.adjoint(*arguments, arguments[0])
try:
    StepFunctions(network, "bfloat16").gradient(*arguments)
except ConfigError as error:
    refused = str(error)
print([str(one.message) for one in caught if "running uncompiled" in str(one.message)] + [refused])
"""


def test_without_a_compiler_it_runs_and_says_so_once(tmp_path):
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", NO_COMPILER], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    *messages, refused = eval(done.stdout)  # a list of strings, printed by our own script
    assert "precision 'bfloat16' needs compiled code, and compiling failed (InvalidCxxCompiler" in refused
    assert len(messages) == 1, messages
    assert "running uncompiled" in messages[0]
    assert "InvalidCxxCompiler" in messages[0]


@pytest.mark.parametrize(("text", "told"), [("", "OSError: OSError"), ("\n full disk\nand more", "OSError: full disk")])
def test_a_compiler_that_fails_without_a_word_is_told_by_the_kind_of_its_error(generator, monkeypatch, text, told):
    network = make_network(ARCHITECTURES["convnet"], SHAPE, CLASSES, generator)
    functions = StepFunctions(network)

    def fail(*arguments):
        raise OSError(text)

    monkeypatch.setattr(functions._gradient, "_compiled", fail)
    monkeypatch.setattr(step_functions, "UNCOMPILED", set())
    arguments = flatten_parameters(network), torch.randn(3, *SHAPE, generator=generator), torch.tensor([0, 1, 0])
    with pytest.warns(UserWarning, match=rf"compiling failed \({told}\); set TORCHINDUCTOR_CACHE_DIR"):
        functions.gradient(*arguments)

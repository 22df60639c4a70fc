"""The unrolled gradient against finite differences and against an independent unroll with torch.func."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad

from seqmatch_lib.errors import ConfigError
from seqmatch_lib.inner_loop import unroll
from seqmatch_lib.networks import NetworkConfig, flatten_parameters, make_network

SHAPE, CLASSES = (2, 4, 4), 3


@pytest.fixture
def problem(generator, float64):
    """A small float64 problem: network, start, unequal batches with hard and soft labels, and a step size."""
    network = make_network(NetworkConfig(width=4, depth=1), SHAPE, CLASSES, generator).double()
    start = flatten_parameters(network)
    images = torch.randn(7, *SHAPE, generator=generator, requires_grad=True)
    soft = torch.rand(7, CLASSES, generator=generator).softmax(1).requires_grad_()
    hard = torch.randint(CLASSES, (7,), generator=generator)
    lr = torch.tensor(0.3, requires_grad=True)
    rows = [torch.randperm(7, generator=generator)[:size] for size in (3, 4, 2, 4)]
    target = torch.randn(start.shape, generator=generator)
    return network, start, images, soft, hard, lr, rows, target


def make_batches(images, targets, rows):
    return [(images[row], targets[row]) for row in rows]


def matching_loss(final, target):
    return (final - target).square().sum()


def test_final_parameters_equal_plain_sgd(problem):
    network, start, images, _, hard, lr, rows, _ = problem
    reached = unroll(network, start, make_batches(images, hard, rows), lr).detach()
    plain = make_network(NetworkConfig(width=4, depth=1), SHAPE, CLASSES, torch.Generator()).double()
    torch.nn.utils.vector_to_parameters(start.clone(), plain.parameters())
    optimizer = torch.optim.SGD(plain.parameters(), lr=lr.item())
    for row in rows:
        optimizer.zero_grad()
        F.cross_entropy(plain(images.detach()[row]), hard[row]).backward()
        optimizer.step()
    torch.testing.assert_close(reached, flatten_parameters(plain), rtol=1e-12, atol=1e-12)
    assert not torch.equal(reached, start)


def test_gradients_equal_finite_differences(problem):
    network, start, images, soft, _, lr, rows, target = problem

    def loss(images, soft, lr):
        return matching_loss(unroll(network, start, make_batches(images, soft, rows), lr), target)

    assert torch.autograd.gradcheck(loss, (images, soft, lr), eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_gradients_equal_an_independent_unroll(problem, kind):
    network, start, images, soft, hard, lr, rows, target = problem
    targets = hard if kind == "hard" else soft
    leaves = [images, lr] + ([soft] if kind == "soft" else [])
    ours = torch.autograd.grad(matching_loss(unroll(network, start, make_batches(images, targets, rows), lr), target), leaves)

    names = [name for name, _ in network.named_parameters()]
    shapes = [parameter.shape for parameter in network.parameters()]
    sizes = [shape.numel() for shape in shapes]

    def step_loss(theta, x, y):
        named = {name: part.view(shape) for name, part, shape in zip(names, theta.split(sizes), shapes, strict=True)}
        return F.cross_entropy(functional_call(network, named, (x,)), y)

    theta = start
    for row in rows:
        theta = theta - lr * grad(step_loss)(theta, images[row], targets[row])
    theirs = torch.autograd.grad(matching_loss(theta, target), leaves)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)
        assert mine.abs().sum() > 0


def test_a_batch_that_repeats_an_image_counts_it_twice(problem):
    network, start, images, _, hard, lr, _, target = problem
    row = torch.tensor([0, 0, 1])
    loss = matching_loss(unroll(network, start, [(images[row], hard[row])], lr), target)
    (gradient,) = torch.autograd.grad(loss, images)
    assert gradient[:2].abs().sum() > 0
    assert gradient[2:].abs().sum() == 0


def test_unknown_engine_wrong_size_and_batch_norm_are_refused(problem):
    network, start, images, _, hard, lr, rows, _ = problem
    batches = make_batches(images, hard, rows)
    with pytest.raises(ConfigError, match="engine 'hihger' is unknown; use one of higher"):
        unroll(network, start, batches, lr, engine="hihger")
    with pytest.raises(ConfigError, match=f"this network has {len(start)} parameters"):
        unroll(network, start[1:], batches, lr)
    batch_norm = make_network(NetworkConfig(width=4, depth=1, norm="batch"), SHAPE, CLASSES, torch.Generator())
    with pytest.raises(ConfigError, match="running statistics.*instance"):
        unroll(batch_norm.double(), flatten_parameters(batch_norm).double(), batches, lr)

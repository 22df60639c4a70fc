"""The differentiable inner loop: SGD steps on synthetic batches, through which gradients flow back to the data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import higher
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from seqmatch_lib.engine.augment import Augmentation, apply_augmentation
from seqmatch_lib.engine.networks import count_parameters, load_parameters
from seqmatch_lib.engine.step_functions import StepFunctions, check_precision, step_functions
from seqmatch_lib.errors import require

UNROLL_ENGINES = ("higher", "compiled")
TRAIL_BYTES = 2**30  # parameter vectors the compiled engine keeps of one unroll before it keeps fewer and repeats steps


@dataclass(frozen=True)
class InnerBatch:
    """What one inner step trains on.

    Args:
        rows: (B,) int64, which of the images.
        augmentation: drawn for these B images.
    """

    rows: torch.Tensor
    augmentation: Augmentation

    def take(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the augmented images (B, C, H, W) and their targets."""
        return apply_augmentation(images[self.rows], self.augmentation), targets[self.rows]


def unroll(
    network: nn.Module,
    start: torch.Tensor,
    images: torch.Tensor,
    targets: torch.Tensor,
    batches: Sequence[InnerBatch],
    lr: torch.Tensor,
    engine: str = "higher",
    precision: str = "float32",
) -> torch.Tensor:
    """Trains a network for one SGD step a batch and returns where it arrives, as a function of the data.

    theta_{s+1} = theta_s - lr * grad CE(network(augmented images of batch s), targets of batch s)

    Args:
        network: the architecture, without buffers; "higher" overwrites its parameters.
        start: (P,) parameters to begin from, in the order of `network.parameters()`.
        images: (N, C, H, W).
        targets: (N,) int64 classes or (N, classes) probabilities.
        batches: one a step; they may differ in size.
        lr: step size, a positive scalar tensor.
        engine: "higher", the reference: the graph of all steps is kept, so memory grows with their number; or
            "compiled": the same gradient with one (P,) vector a step kept, for higher speed and hardly growing memory;
            where all of them would take more than `TRAIL_BYTES`, every sqrt(steps)-th is kept and a quarter more computed.
        precision: of the compiled engine, see `StepFunctions`; "higher" knows "float32" alone.

    Returns:
        (P,) final parameters, differentiable with respect to images, probabilities and `lr` (not `start`).

    Raises:
        ConfigError: an unknown engine or precision, a `start` of another size, or a network with running statistics.

    Source: the inner loop of MTT (Cazenavette et al., 2022, Algorithm 1, lines 8-12): plain SGD, no momentum.
    """
    check_engine(engine, precision)
    size = count_parameters(network)
    require(start.shape == (size,), f"start has shape {tuple(start.shape)}, but this network has {size} parameters")
    require(
        next(network.buffers(), None) is None,
        "the network keeps running statistics, which an unrolled inner loop cannot follow; use norm 'instance'",
    )
    if engine == "compiled":
        return _CompiledUnroll.apply(step_functions(network, precision), batches, start, images, targets, lr)
    return _unroll_with_higher(network, start, images, targets, batches, lr)


def check_engine(engine: str, precision: str) -> None:
    """Raises ConfigError unless the engine exists and can work in that precision."""
    require(engine in UNROLL_ENGINES, f"engine {engine!r} is unknown; use one of {', '.join(UNROLL_ENGINES)}")
    check_precision(precision)
    require(engine == "compiled" or precision == "float32", f"engine {engine!r} has no precision {precision!r}; use 'float32'")


def _unroll_with_higher(
    network: nn.Module,
    start: torch.Tensor,
    images: torch.Tensor,
    targets: torch.Tensor,
    batches: Sequence[InnerBatch],
    lr: torch.Tensor,
) -> torch.Tensor:
    load_parameters(network, start)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)  # `override` puts the learned step size in its place
    with higher.innerloop_ctx(network, optimizer, override={"lr": [lr]}) as (functional, differentiable_sgd):
        for batch in batches:
            augmented, wanted = batch.take(images, targets)
            differentiable_sgd.step(F.cross_entropy(functional(augmented), wanted))
        return torch.cat([parameter.reshape(-1) for parameter in functional.parameters()])


class _CompiledUnroll(torch.autograd.Function):
    """The same steps, keeping only theta_s of each; the backward pass makes every step again, from the last to the first.

    With v the derivative of the result with respect to theta_{s+1}, g the gradient of step s and lr the step size,
    theta_{s+1} = theta_s - lr * g(theta_s, x_s) gives: v <- v - lr * d<g, v>/d theta; x_s takes -lr * d<g, v>/d x_s;
    lr takes -<g, v>.
    """

    @staticmethod
    def forward(
        context: Any,
        functions: StepFunctions,
        batches: Sequence[InnerBatch],
        start: torch.Tensor,
        images: torch.Tensor,
        targets: torch.Tensor,
        lr: torch.Tensor,
    ) -> torch.Tensor:
        every = _spacing(len(batches), start)
        trail = []
        for step, theta in enumerate(_walk(functions, batches, start, images, targets, lr)):
            if step % every == 0 and step < len(batches):
                trail.append(theta)
        context.functions, context.batches, context.every, context.trail = functions, batches, every, trail
        context.save_for_backward(images, targets, lr)
        return theta.clone()

    @staticmethod
    @once_differentiable
    def backward(context: Any, v: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        images, targets, lr = context.saved_tensors
        images_grad = torch.zeros_like(images)
        targets_grad = torch.zeros_like(targets) if targets.is_floating_point() else None
        lr_grad = torch.zeros_like(lr)
        for index in reversed(range(len(context.trail))):
            batches = context.batches[index * context.every : (index + 1) * context.every]
            thetas = list(_walk(context.functions, batches[:-1], context.trail[index], images, targets, lr))
            for theta, batch in zip(reversed(thetas), reversed(batches), strict=True):
                with torch.enable_grad():
                    chosen = images[batch.rows].requires_grad_()
                    augmented = apply_augmentation(chosen, batch.augmentation)
                wanted = targets[batch.rows]
                theta_part, x_part, *y_part, product = context.functions.adjoint(theta, augmented.detach(), wanted, v)
                (pixels,) = torch.autograd.grad(augmented, chosen, x_part)
                images_grad.index_add_(0, batch.rows, -lr * pixels)
                if targets_grad is not None:
                    targets_grad.index_add_(0, batch.rows, -lr * y_part[0])
                lr_grad -= product
                v = v - lr * theta_part
        return None, None, None, images_grad, targets_grad, lr_grad


def _walk(
    functions: StepFunctions,
    batches: Sequence[InnerBatch],
    theta: torch.Tensor,
    images: torch.Tensor,
    targets: torch.Tensor,
    lr: torch.Tensor,
) -> Iterator[torch.Tensor]:
    """Yields the parameters before the first step, and after each."""
    yield theta
    for batch in batches:
        gradient, _ = functions.gradient(theta, *batch.take(images, targets))
        theta = theta - lr * gradient
        yield theta


def _spacing(steps: int, theta: torch.Tensor) -> int:
    """Returns how many steps lie between two kept vectors: 1, or about sqrt(steps) where all would take too much memory."""
    return 1 if steps * theta.nbytes <= TRAIL_BYTES else ceil(sqrt(steps))

"""The differentiable inner loop: SGD steps on synthetic batches, through which gradients flow back to the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import higher
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from seqmatch_lib.engine.augment import Augmentation, apply_augmentation
from seqmatch_lib.engine.networks import count_parameters, load_parameters
from seqmatch_lib.engine.step_functions import StepFunctions, check_engine, step_functions
from seqmatch_lib.errors import require

UNROLL_ENGINES = ("higher", "compiled")


@dataclass(frozen=True)
class InnerBatch:
    """The batch of one inner step.

    Args:
        rows: (B,) int64 indices into the images.
        augmentation: drawn for these B images.
    """

    rows: torch.Tensor
    augmentation: Augmentation

    def take(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the augmented images, (B, C, H, W), and their targets."""
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
    """Makes one SGD step on each batch and returns the final parameters, differentiable in the data.

    theta_{s+1} = theta_s - lr * grad CE(network(augmented images of batch s), targets of batch s)

    Args:
        network: the architecture, without buffers; engine "higher" overwrites its parameters.
        start: (P,) initial parameters, in the order of `network.parameters()`.
        images: (N, C, H, W).
        targets: (N,) int64 classes or (N, classes) probabilities.
        batches: one for each step; their sizes may differ.
        lr: step size, a positive scalar tensor.
        engine: "higher", the reference, keeps the graph of all steps, so its memory grows with their number. "compiled" gives
            the same gradient faster, and keeps only one (P,) vector for each step.
        precision: of engine "compiled", see `StepFunctions`; engine "higher" has only "float32".

    Returns:
        (P,) final parameters, differentiable with respect to images, probabilities and `lr`, but not `start`.

    Raises:
        ConfigError: the engine or precision is unknown, `start` has another size, or the network has running statistics.

    Source: the inner loop of MTT (Cazenavette et al., 2022, Algorithm 1, lines 8-12): plain SGD, no momentum.
    """
    check_engine(engine, precision, UNROLL_ENGINES)
    size = count_parameters(network)
    require(start.shape == (size,), f"start has shape {tuple(start.shape)}, but this network has {size} parameters")
    message = "the network has running statistics, which an unrolled inner loop cannot update; use norm 'instance'"
    require(next(network.buffers(), None) is None, message)
    if engine == "compiled":
        return _CompiledUnroll.apply(step_functions(network, precision), batches, start, images, targets, lr)
    load_parameters(network, start)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)  # `override` replaces this by the learned step size
    with higher.innerloop_ctx(network, optimizer, override={"lr": [lr]}) as (functional, differentiable_sgd):
        for batch in batches:
            batch_images, batch_targets = batch.take(images, targets)
            differentiable_sgd.step(F.cross_entropy(functional(batch_images), batch_targets))
        return torch.cat([parameter.reshape(-1) for parameter in functional.parameters()])


class _CompiledUnroll(torch.autograd.Function):
    """The same steps, of which only the parameters are kept. The backward pass repeats each step, from the last to the first.

    Step s is theta_{s+1} = theta_s - lr * g(theta_s, x_s). Let v be the derivative of the result in theta_{s+1}. Then step s
    contributes -lr * d<g, v>/d x_s to the derivative in the images and -<g, v> to that in lr, and the derivative in theta_s,
    which is the v of the step before, is v - lr * d<g, v>/d theta_s.
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
        trail = [start]
        for batch in batches:
            gradient, _ = functions.gradient(trail[-1], *batch.take(images, targets))
            trail.append(trail[-1] - lr * gradient)
        context.functions, context.batches, context.trail = functions, batches, trail[:-1]
        context.save_for_backward(images, targets, lr)
        return trail[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(context: Any, v: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        images, targets, lr = context.saved_tensors
        images_grad = torch.zeros_like(images)
        targets_grad = torch.zeros_like(targets) if targets.is_floating_point() else None
        lr_grad = torch.zeros_like(lr)
        for theta, batch in zip(reversed(context.trail), reversed(context.batches), strict=True):
            with torch.enable_grad():
                batch_images = images[batch.rows].requires_grad_()
                augmented = apply_augmentation(batch_images, batch.augmentation)
            theta_grad, augmented_grad, *batch_targets_grad, product = context.functions.adjoint(
                theta, augmented.detach(), targets[batch.rows], v
            )
            (batch_images_grad,) = torch.autograd.grad(augmented, batch_images, augmented_grad)
            images_grad.index_add_(0, batch.rows, -lr * batch_images_grad)
            if targets_grad is not None:
                targets_grad.index_add_(0, batch.rows, -lr * batch_targets_grad[0])
            lr_grad -= product
            v = v - lr * theta_grad
        return None, None, None, images_grad, targets_grad, lr_grad

"""The differentiable inner loop: SGD steps on synthetic batches, through which gradients flow back to the data."""

from collections.abc import Sequence

import higher
import torch
import torch.nn.functional as F
from torch import nn

from seqmatch_lib.errors import require
from seqmatch_lib.networks import count_parameters, load_parameters

ENGINES = ("higher",)


def unroll(
    network: nn.Module,
    start: torch.Tensor,
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    lr: torch.Tensor,
    engine: str = "higher",
) -> torch.Tensor:
    """Trains a network for one SGD step a batch and returns where it arrives, as a function of the batches.

    theta_{s+1} = theta_s - lr * grad CE(network(theta_s, images_s), targets_s)

    Args:
        network: the architecture, without buffers; its own parameters are overwritten.
        start: (P,) parameters to begin from, in the order of `network.parameters()`.
        batches: one (images, targets) a step: images (B, C, H, W), already augmented; targets (B,) int64 classes or
            (B, classes) probabilities. Batches may differ in size.
        lr: step size, a positive scalar tensor.
        engine: "higher", the reference: the graph of all steps is kept, so memory grows with their number.

    Returns:
        (P,) final parameters, differentiable with respect to images, probabilities and `lr` (not `start`).

    Raises:
        ConfigError: an unknown engine, a `start` of another size, or a network with running statistics.

    Source: the inner loop of MTT (Cazenavette et al., 2022, Algorithm 1, lines 8-12): plain SGD, no momentum.
    """
    require(engine in ENGINES, f"engine {engine!r} is unknown; use one of {', '.join(ENGINES)}")
    size = count_parameters(network)
    require(start.shape == (size,), f"start has shape {tuple(start.shape)}, but this network has {size} parameters")
    require(
        next(network.buffers(), None) is None,
        "the network keeps running statistics, which an unrolled inner loop cannot follow; use norm 'instance'",
    )
    load_parameters(network, start)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)  # `override` puts the learned step size in its place
    with higher.innerloop_ctx(network, optimizer, override={"lr": [lr]}) as (functional, differentiable_sgd):
        for images, targets in batches:
            differentiable_sgd.step(F.cross_entropy(functional(images), targets))
        return torch.cat([parameter.reshape(-1) for parameter in functional.parameters()])

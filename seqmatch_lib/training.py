"""Ordinary training of a network by SGD: shared by teachers, by evaluation and by the stages before stage k."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from seqmatch_lib.augment import DSA_STRATEGY, apply_augmentation, check_strategy, draw_augmentation
from seqmatch_lib.errors import DivergenceError, require


@dataclass(frozen=True)
class TrainingRecipe:
    """How a network is trained on a synthetic set, one stage at a time; the defaults are the public protocol.

    Args:
        epochs: passes over the stage's images, at least 1.
        batch_size: images a step.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD, at least 0.
        augment: DSA strategy, or "none".

    Source: `evaluate_synset` of the public MTT code.
    """

    epochs: int = 1000
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = DSA_STRATEGY

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"training.epochs {self.epochs} must be at least 1")
        require(self.batch_size >= 1, f"training.batch_size {self.batch_size} must be at least 1")
        require(0 <= self.momentum < 1, f"training.momentum {self.momentum} must lie in [0, 1)")
        require(self.weight_decay >= 0, f"training.weight_decay {self.weight_decay} must not be negative")
        check_strategy(self.augment)


def sgd_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    targets: torch.Tensor,
    batch_size: int,
    augment: str,
    generator: torch.Generator,
) -> float:
    """Trains for one pass over the images in random order.

    Args:
        network: in training mode, on the device of the images; changed in place.
        optimizer: over the network's parameters.
        images: (N, C, H, W), normalised.
        targets: (N,) int64 classes, or (N, classes) probabilities.
        batch_size: images a step; the last step takes what is left.
        augment: DSA strategy, drawn anew for each batch.
        generator: a CPU generator for the order and the augmentation.

    Returns:
        The mean loss over the images.
    """
    order = torch.randperm(len(images), generator=generator).to(images.device)
    total = torch.zeros((), device=images.device)
    for chosen in order.split(batch_size):
        drawn = draw_augmentation(augment, len(chosen), images.shape[2:], generator, device=images.device)
        loss = F.cross_entropy(network(apply_augmentation(images[chosen], drawn)), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(chosen)
    return total.item() / len(images)


def train_stage(
    network: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    lr: float,
    recipe: TrainingRecipe,
    generator: torch.Generator,
) -> float:
    """Trains a network in place on the images of one stage, with the stage's step size `lr`.

    SGD is made anew at the start and when the step size falls to a tenth, after epoch `epochs // 2 + 1` (counted
    from 0), so momentum starts from zero at both. The public loop runs one epoch more than its `epochs`; ours does not.

    Returns:
        The mean loss of the last epoch.

    Raises:
        DivergenceError: the loss is not finite.
    """
    network.train()
    loss = float("nan")
    for epoch in range(recipe.epochs):
        if epoch in (0, recipe.epochs // 2 + 2):
            epoch_lr = lr if epoch == 0 else 0.1 * lr
            optimizer = torch.optim.SGD(
                network.parameters(), lr=epoch_lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
            )
        loss = sgd_epoch(network, optimizer, images, targets, recipe.batch_size, recipe.augment, generator)
        require(
            loss == loss and abs(loss) != float("inf"),
            f"training on {len(images)} images diverged in epoch {epoch} (loss {loss}) with step size {lr:.4g}; "
            "lower the step size (syn_lr, lr_lr) or training.momentum",
            DivergenceError,
        )
    return loss


@torch.no_grad()
def measure_accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int = 1000) -> float:
    """Returns the accuracy in per cent on (N, C, H, W) normalised images with (N,) int64 labels, without augmentation."""
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    for batch, expected in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        correct += (network(batch).argmax(1) == expected).sum()
    return 100.0 * correct.item() / len(images)

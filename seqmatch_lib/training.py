"""Ordinary training of networks by SGD: shared by teachers, by evaluation and by the stages before stage k."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from seqmatch_lib.augment import DSA_STRATEGY, apply_augmentation, check_strategy, draw_augmentation
from seqmatch_lib.errors import DivergenceError, require
from seqmatch_lib.networks import flatten_parameters, load_parameters
from seqmatch_lib.step_functions import check_precision, step_functions

ENGINES = ("eager", "compiled")
CHECK_EPOCHS = 25  # epochs between two looks at the losses: each look waits for the device


@dataclass(frozen=True)
class TrainingRecipe:
    """How a network is trained on a synthetic set, one stage at a time; the defaults are the public protocol.

    Args:
        epochs: passes over the stage's images, at least 1.
        batch_size: images a step.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD, at least 0.
        augment: DSA strategy, or "none".
        engine: and `precision`: of `make_trainer`.

    Source: `evaluate_synset` of the public MTT code.
    """

    epochs: int = 1000
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = DSA_STRATEGY
    engine: str = "eager"
    precision: str = "float32"

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"training.epochs {self.epochs} must be at least 1")
        require(self.batch_size >= 1, f"training.batch_size {self.batch_size} must be at least 1")
        require(0 <= self.momentum < 1, f"training.momentum {self.momentum} must lie in [0, 1)")
        require(self.weight_decay >= 0, f"training.weight_decay {self.weight_decay} must not be negative")
        check_strategy(self.augment)
        check_trainer(self.engine, self.precision)


class OneByOne:
    """Trains networks one after the other, as they are: the plain way, and the reference for `Together`.

    Args:
        networks: changed in place.
        lr: of SGD, as are `momentum` and `weight_decay`.
    """

    def __init__(self, networks: Sequence[nn.Module], lr: float, momentum: float, weight_decay: float) -> None:
        self._networks = networks
        self._optimizers = [
            torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay) for network in networks
        ]

    def epoch(
        self,
        images: torch.Tensor,
        targets: torch.Tensor,
        batch_size: int,
        augment: str,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """Trains each network for one pass over the images, in a random order of its own.

        Args:
            images: (N, C, H, W), normalised, on the device of the networks.
            targets: (N,) int64 classes, or (N, classes) probabilities.
            batch_size: images a step; the last step takes what is left.
            augment: DSA strategy, drawn anew for each batch.
            generators: CPU generators for order and augmentation, one a network.

        Returns:
            (networks,) mean losses over the images.
        """
        losses = torch.zeros(len(self._networks), device=images.device)
        for index, (network, optimizer, generator) in enumerate(
            zip(self._networks, self._optimizers, generators, strict=True)
        ):
            network.train()
            for rows in torch.randperm(len(images), generator=generator).to(images.device).split(batch_size):
                batch = draw_batch(images, rows, augment, generator)
                loss = F.cross_entropy(network(batch), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[index] += loss.detach() * len(rows)
        return losses / len(images)

    def parameters(self) -> torch.Tensor:
        """Returns a copy of all parameters, (networks, P)."""
        return torch.stack([flatten_parameters(network) for network in self._networks])

    def finish(self) -> None:
        """Does nothing: the networks are trained in place."""


class Together:
    """Trains networks of one architecture side by side on stacked parameters with compiled steps.

    Each network sees the batches and augmentations that `OneByOne` would show it, so the results are the same up to
    rounding. Arguments as there; `precision` as in `StepFunctions`. The networks change at `finish`.
    """

    def __init__(self, networks: Sequence[nn.Module], lr: float, momentum: float, weight_decay: float, precision: str) -> None:
        require(
            next(networks[0].buffers(), None) is None,
            "networks with running statistics cannot be trained by engine 'compiled'; use engine 'eager'",
        )
        self._networks = networks
        self._gradient = step_functions(networks[0], precision).gradient
        self._parameters = torch.stack([flatten_parameters(network) for network in networks])
        self._velocity = torch.zeros_like(self._parameters)
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay

    def epoch(
        self,
        images: torch.Tensor,
        targets: torch.Tensor,
        batch_size: int,
        augment: str,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """Trains all networks for one pass over the images; arguments and result as in `OneByOne.epoch`."""
        orders = [torch.randperm(len(images), generator=generator).to(images.device) for generator in generators]
        losses = torch.zeros(len(orders), device=images.device)
        for rows in zip(*(order.split(batch_size) for order in orders), strict=True):
            batches = [draw_batch(images, mine, augment, generator) for mine, generator in zip(rows, generators, strict=True)]
            losses += self._step(batches, [targets[mine] for mine in rows]) * len(rows[0])
        return losses / len(images)

    def _step(self, batches: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        """Makes one step of SGD with momentum and weight decay, as `torch.optim.SGD` does; returns the losses."""
        gradient, losses = self._gradients(batches, targets)
        if self._weight_decay:
            gradient = gradient + self._weight_decay * self._parameters
        self._velocity.mul_(self._momentum).add_(gradient)
        self._parameters.sub_(self._velocity, alpha=self._lr)
        return losses

    def _gradients(self, batches: list[torch.Tensor], targets: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (networks, P) gradients and (networks,) losses: in one call on a GPU, which small networks leave idle.

        On a CPU one network already keeps all cores busy, and convolutions of stacked networks are slower.
        """
        if self._parameters.is_cuda:
            return self._gradient(self._parameters, torch.stack(batches), torch.stack(targets))
        results = [self._gradient(*one) for one in zip(self._parameters, batches, targets, strict=True)]
        gradients, losses = zip(*results, strict=True)
        return torch.stack(gradients), torch.stack(losses)

    def parameters(self) -> torch.Tensor:
        """Returns a copy of all parameters, (networks, P)."""
        return self._parameters.clone()

    def finish(self) -> None:
        """Writes the parameters into the networks."""
        for network, parameters in zip(self._networks, self._parameters, strict=True):
            load_parameters(network, parameters)


def draw_batch(images: torch.Tensor, rows: torch.Tensor, augment: str, generator: torch.Generator) -> torch.Tensor:
    """Returns the chosen images under an augmentation drawn for them."""
    drawn = draw_augmentation(augment, len(rows), images.shape[2:], generator, device=images.device)
    return apply_augmentation(images[rows], drawn)


def check_trainer(engine: str, precision: str) -> None:
    """Raises ConfigError unless `make_trainer` knows the engine and it can work in that precision."""
    require(engine in ENGINES, f"engine {engine!r} is unknown; use one of {', '.join(ENGINES)}")
    check_precision(precision)
    require(engine == "compiled" or precision == "float32", f"engine {engine!r} has no precision {precision!r}; use 'float32'")


def make_trainer(
    networks: Sequence[nn.Module], lr: float, momentum: float, weight_decay: float, engine: str, precision: str
) -> OneByOne | Together:
    """Returns what trains these networks: "eager" one by one, or "compiled" together."""
    if engine == "eager":
        return OneByOne(networks, lr, momentum, weight_decay)
    return Together(networks, lr, momentum, weight_decay, precision)


def train_stage(
    networks: Sequence[nn.Module],
    images: torch.Tensor,
    targets: torch.Tensor,
    lr: float,
    recipe: TrainingRecipe,
    generators: Sequence[torch.Generator],
) -> None:
    """Trains networks in place on the images of one stage, with the stage's step size `lr`.

    SGD is made anew at the start and when the step size falls to a tenth, after epoch `epochs // 2 + 1` (counted
    from 0), so momentum starts from zero at both. The public loop runs one epoch more than its `epochs`; ours does not.

    Raises:
        DivergenceError: a loss is not finite.
    """
    first = min(recipe.epochs // 2 + 2, recipe.epochs)
    for phase_lr, epochs in ((lr, range(first)), (0.1 * lr, range(first, recipe.epochs))):
        trainer = make_trainer(networks, phase_lr, recipe.momentum, recipe.weight_decay, recipe.engine, recipe.precision)
        for epoch in epochs:
            losses = trainer.epoch(images, targets, recipe.batch_size, recipe.augment, generators)
            if epoch % CHECK_EPOCHS == 0 or epoch == recipe.epochs - 1:
                _check_losses(losses, f"{len(images)} images", epoch, lr)
        trainer.finish()


def _check_losses(losses: torch.Tensor, data: str, epoch: int, lr: float) -> None:
    require(
        bool(losses.isfinite().all()),
        f"training on {data} had diverged by epoch {epoch} (losses {losses.tolist()}) with step size {lr:.4g}; "
        "lower the step size (syn_lr, lr_lr) or training.momentum",
        DivergenceError,
    )


@torch.no_grad()
def measure_accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int = 1000) -> float:
    """Returns the accuracy in per cent on (N, C, H, W) normalised images with (N,) int64 labels, without augmentation."""
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    for batch, expected in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        correct += (network(batch).argmax(1) == expected).sum()
    return 100.0 * correct.item() / len(images)

"""Ordinary (not differentiable) training of networks, for teachers, evaluation, earlier stages and methods."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import cos, pi, sqrt
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from seqmatch_lib.data.datasets import Split
from seqmatch_lib.data.labels import count_right
from seqmatch_lib.engine.augment import DSA_STRATEGY, apply_augmentation, check_strategy, draw_augmentation
from seqmatch_lib.engine.networks import flatten_parameters, load_parameters
from seqmatch_lib.engine.step_functions import batch_loss, check_engine, check_loss, step_functions
from seqmatch_lib.errors import DivergenceError, require
from seqmatch_lib.store.files import tensors_under
from seqmatch_lib.store.settings import omit_default

if TYPE_CHECKING:  # `training_checkpoint` imports this module
    from seqmatch_lib.engine.training_checkpoint import TrainingCheckpoint

TRAINING_ENGINES = ("eager", "compiled")
OPTIMIZERS = ("sgd", "adam")
CHECK_EPOCHS = 25  # the losses are checked in every 25th epoch, because a check waits for the device
WARMUP_EPOCHS = 500  # of schedule "cosine", but at most a quarter of all epochs


def _half(epochs: int) -> list[float]:
    """Factor 0.1 after epoch `epochs // 2 + 1`, counted from 0."""
    first = min(epochs // 2 + 2, epochs)
    return [1.0] * first + [0.1] * (epochs - first)


def _steps(epochs: int) -> list[float]:
    """Factor 0.2 after two thirds of the epochs, and again after five sixths."""
    return [0.2 ** ((epoch >= 2 * epochs // 3) + (epoch >= 5 * epochs // 6)) for epoch in range(epochs)]


def _cosine(epochs: int) -> list[float]:
    """Linear warm-up, then half a cosine down to 0.01."""
    warmup = min(WARMUP_EPOCHS, epochs // 4)
    falling = max(epochs - warmup, 1)
    rise = [(epoch + 1) / (warmup + 1) for epoch in range(warmup)]
    return rise + [0.01 + 0.99 * (1 + cos(pi * epoch / falling)) / 2 for epoch in range(epochs - warmup)]


# Number of epochs -> the factor on the step size in each epoch.
SCHEDULES: dict[str, Callable[[int], list[float]]] = {"half": _half, "steps": _steps, "cosine": _cosine}


@dataclass(frozen=True)
class TrainingRecipe:
    """How a network is trained in one stage on a synthetic set; the defaults are the protocol of the public MTT code.

    Args:
        epochs: passes over the stage's images, at least 1.
        batch_size: images in each step.
        momentum: of SGD, in [0, 1).
        weight_decay: at least 0.
        augment: DSA strategy, or "none".
        engine: "eager" or "compiled", see `make_trainer`.
        precision: of engine "compiled", see `StepFunctions`.
        optimizer: "sgd" or "adam".
        loss: "cross_entropy" or "mse", see `batch_loss`.
        schedule: of the step size. "half" is that of the MTT, DSA and DM codes, which also reset the momentum when the step
            size falls; "steps" is that of IDC, "cosine" that of FRePo.
        cutmix: probability of CutMix for each batch.

    Source: `evaluate_synset` of the public MTT code; `train.py` of IDC; `script/eval.py` of FRePo.
    """

    epochs: int = 1000
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = DSA_STRATEGY
    engine: str = "eager"
    precision: str = "float32"
    optimizer: str = omit_default("sgd")
    loss: str = omit_default("cross_entropy")
    schedule: str = omit_default("half")
    cutmix: float = omit_default(0.0)

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"training.epochs {self.epochs} must be at least 1")
        require(self.batch_size >= 1, f"training.batch_size {self.batch_size} must be at least 1")
        require(0 <= self.momentum < 1, f"training.momentum {self.momentum} must lie in [0, 1)")
        require(self.weight_decay >= 0, f"training.weight_decay {self.weight_decay} must not be negative")
        require(0 <= self.cutmix <= 1, f"training.cutmix {self.cutmix} must lie in [0, 1]")
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", tuple(SCHEDULES))):
            value = getattr(self, name)
            require(value in known, f"training.{name} {value!r} is unknown; use one of {', '.join(known)}")
        check_loss(self.loss)
        check_strategy(self.augment)
        check_engine(self.engine, self.precision, TRAINING_ENGINES)


@dataclass(frozen=True)
class OptimizerConfig:
    """Loss and optimiser of a trainer, named as in `TrainingRecipe`; `lr` is the step size."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    optimizer: str = "sgd"
    loss: str = "cross_entropy"

    def make_optimizer(self, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
        """Returns a fresh optimiser of these parameters."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class BatchConfig:
    """Batches of a trainer, named as in `TrainingRecipe`; CutMix needs targets that are probabilities."""

    batch_size: int
    augment: str = "none"
    cutmix: float = 0.0

    def draw(
        self, images: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the images of these rows, augmented and perhaps mixed, and their targets."""
        augmentation = draw_augmentation(self.augment, len(rows), images.shape[2:], generator, device=images.device)
        images, targets = apply_augmentation(images[rows], augmentation), targets[rows]
        return mix_patches(images, targets, self.cutmix, generator) if self.cutmix else (images, targets)


def mix_patches(
    images: torch.Tensor, targets: torch.Tensor, probability: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """CutMix, with this probability: pastes one rectangle of the shuffled batch into the batch, and mixes targets by area.

    Images are (B, C, H, W), targets (B, classes) probabilities.

    Source: Yun et al., ICCV 2019, with Beta(1, 1) and one rectangle for the batch, as in the public IDC code (`train_epoch`,
    `rand_bbox`).
    """
    height, width = images.shape[2:]
    chance, share, row, column = torch.rand(4, generator=generator).tolist()
    order = torch.randperm(len(images), generator=generator).to(images.device)
    if chance >= probability:
        return images, targets
    half_height, half_width = int(height * sqrt(1 - share)) // 2, int(width * sqrt(1 - share)) // 2
    row, column = int(row * height), int(column * width)
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[order, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, kept * targets + (1 - kept) * targets[order]


class LoopTrainer:
    """Trains networks in place, one after the other; the reference for `StackedTrainer`."""

    def __init__(self, networks: Sequence[nn.Module], config: OptimizerConfig) -> None:
        self._networks = networks
        self._config = config
        self._optimizers = [config.make_optimizer(network.parameters()) for network in networks]

    def epoch(
        self, images: torch.Tensor, targets: torch.Tensor, batch_config: BatchConfig, generators: Sequence[torch.Generator]
    ) -> torch.Tensor:
        """Trains each network for one pass over the images, each in its own random order.

        Args:
            images: (N, C, H, W), normalised, on the device of the networks.
            targets: (N,) int64 classes, or (N, classes); see `batch_loss`.
            batch_config: batches and their augmentation; the last batch may be smaller.
            generators: CPU generators for order and augmentation, one for each network.

        Returns:
            (networks,) mean losses over the images.
        """
        losses = torch.zeros(len(self._networks), device=images.device)
        for index, (network, optimizer, generator) in enumerate(
            zip(self._networks, self._optimizers, generators, strict=True)
        ):
            network.train()
            for rows in torch.randperm(len(images), generator=generator).to(images.device).split(batch_config.batch_size):
                batch_images, batch_targets = batch_config.draw(images, targets, rows, generator)
                loss = batch_loss(self._config.loss, network(batch_images), batch_targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[index] += loss.detach() * len(rows)
        return losses / len(images)

    def change_lr(self, lr: float, forget: bool) -> None:
        """Sets the step size; `forget` replaces the optimisers by fresh ones, which resets their momentum."""
        if forget:
            self._optimizers = [self._config.make_optimizer(network.parameters()) for network in self._networks]
        for optimizer in self._optimizers:
            optimizer.param_groups[0]["lr"] = lr

    def parameters(self) -> torch.Tensor:
        """Returns a copy of all parameters, (networks, P)."""
        return torch.stack([flatten_parameters(network) for network in self._networks])

    def state(self) -> dict[str, torch.Tensor]:
        """Returns parameters, running statistics and optimiser states."""
        tensors = {}
        for index, (network, optimizer) in enumerate(zip(self._networks, self._optimizers, strict=True)):
            tensors |= {f"{index}.network.{name}": value for name, value in network.state_dict().items()}
            for name, parameter in network.named_parameters():
                optimizer_state = optimizer.state[parameter].items()
                tensors |= {f"{index}.optimizer.{name}.{key}": value for key, value in optimizer_state}
        return tensors

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restores what `state` returned; training then resumes with bit-identical results."""
        for index, (network, optimizer) in enumerate(zip(self._networks, self._optimizers, strict=True)):
            network.load_state_dict(tensors_under(state, f"{index}.network."))
            for name, parameter in network.named_parameters():
                optimizer.state[parameter] = _restore_optimizer_state(tensors_under(state, f"{index}.optimizer.{name}."))

    def finish(self) -> None:
        """Does nothing: the networks are trained in place."""


class StackedTrainer:
    """Trains networks of one architecture together, on stacked parameters; only `finish` changes the networks.

    Each network gets the same batches and augmentations as with `LoopTrainer`, so the results are the same up to rounding.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        config: OptimizerConfig,
        precision: str = "float32",
        compiled: bool = True,
    ) -> None:
        require(
            next(networks[0].buffers(), None) is None,
            "networks with running statistics cannot be trained by engine 'compiled'; use engine 'eager'",
        )
        self._networks = networks
        self._config = config
        self._gradient = step_functions(networks[0], precision, config.loss, compiled).gradient
        self._parameters = torch.stack([flatten_parameters(network) for network in networks])
        self._optimizer = config.make_optimizer([self._parameters])

    def epoch(
        self, images: torch.Tensor, targets: torch.Tensor, batch_config: BatchConfig, generators: Sequence[torch.Generator]
    ) -> torch.Tensor:
        """Trains all networks for one pass over the images; arguments and result as in `LoopTrainer.epoch`."""
        orders = [torch.randperm(len(images), generator=generator).to(images.device) for generator in generators]
        losses = torch.zeros(len(orders), device=images.device)
        for rows_of_networks in zip(*(order.split(batch_config.batch_size) for order in orders), strict=True):
            batches = [
                batch_config.draw(images, targets, rows, generator)
                for rows, generator in zip(rows_of_networks, generators, strict=True)
            ]
            self._parameters.grad, batch_losses = self._gradients(*zip(*batches, strict=True))
            self._optimizer.step()
            losses += batch_losses * len(rows_of_networks[0])
        return losses / len(images)

    def _gradients(
        self, images: tuple[torch.Tensor, ...], targets: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (networks, P) gradients and (networks,) losses.

        On a GPU one call computes all of them, because a single small network does not keep it busy. On a CPU one network
        keeps all cores busy, and convolutions of stacked networks are slower.
        """
        if self._parameters.is_cuda:
            return self._gradient(self._parameters, torch.stack(images), torch.stack(targets))
        results = [self._gradient(*arguments) for arguments in zip(self._parameters, images, targets, strict=True)]
        gradients, losses = zip(*results, strict=True)
        return torch.stack(gradients), torch.stack(losses)

    def change_lr(self, lr: float, forget: bool) -> None:
        """Sets the step size, as `LoopTrainer.change_lr` does."""
        if forget:
            self._optimizer = self._config.make_optimizer([self._parameters])
        self._optimizer.param_groups[0]["lr"] = lr

    def parameters(self) -> torch.Tensor:
        """Returns a copy of all parameters, (networks, P)."""
        return self._parameters.clone()

    def state(self) -> dict[str, torch.Tensor]:
        """Returns parameters and the optimiser's state."""
        return {"parameters": self._parameters, **self._optimizer.state[self._parameters]}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restores what `state` returned; training then resumes with bit-identical results."""
        self._parameters.copy_(state["parameters"])
        optimizer_state = {name: value for name, value in state.items() if name != "parameters"}
        self._optimizer.state[self._parameters] = _restore_optimizer_state(optimizer_state)

    def finish(self) -> None:
        """Writes the parameters into the networks."""
        for network, parameters in zip(self._networks, self._parameters, strict=True):
            load_parameters(network, parameters)


def _restore_optimizer_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies an optimiser's state of one parameter; step counters stay on the CPU, as in torch's optimisers."""
    return {name: value.clone() if value.dim() else value.cpu() for name, value in state.items()}


Trainer = LoopTrainer | StackedTrainer


def make_trainer(networks: Sequence[nn.Module], config: OptimizerConfig, engine: str, precision: str) -> Trainer:
    """Returns the trainer of an engine: "eager" trains networks one by one, "compiled" all together."""
    return LoopTrainer(networks, config) if engine == "eager" else StackedTrainer(networks, config, precision)


def train_stage(
    networks: Sequence[nn.Module],
    images: torch.Tensor,
    targets: torch.Tensor,
    lr: float,
    recipe: TrainingRecipe,
    generators: Sequence[torch.Generator],
    stage: int = 1,
    checkpoint: "TrainingCheckpoint | None" = None,
) -> None:
    """Trains networks in place on the images of one stage.

    The public MTT code trains for one epoch more than its `epochs`; this function does not.

    Args:
        networks: of one architecture; fresh in stage 1, later as the previous stage left them.
        images: (N, C, H, W).
        targets: (N,) int64 classes, or (N, classes).
        lr: initial step size.
        recipe: all other settings.
        generators: CPU generators for batch order and augmentation, one for each network.
        stage: counted from 1, for the checkpoint.
        checkpoint: to resume from and to save to, if given.

    Raises:
        DivergenceError: a loss is not finite.
        OutOfTime: the checkpoint's budget is spent, and the state is saved.
    """
    if recipe.cutmix and not targets.is_floating_point():
        targets = F.one_hot(targets, networks[0][-1].out_features).to(images.dtype)
    optimizer_config = OptimizerConfig(lr, recipe.momentum, recipe.weight_decay, recipe.optimizer, recipe.loss)
    trainer = make_trainer(networks, optimizer_config, recipe.engine, recipe.precision)
    batch_config = BatchConfig(recipe.batch_size, recipe.augment, recipe.cutmix)
    factors = SCHEDULES[recipe.schedule](recipe.epochs)
    finished = 0 if checkpoint is None else checkpoint.resume(stage, recipe.epochs, trainer, generators, images.device)[0]
    last_factor = 1.0
    if finished:
        last_factor = factors[finished - 1]
        trainer.change_lr(last_factor * lr, forget=False)
    for epoch, factor in enumerate(factors[finished:], start=finished):
        if factor != last_factor:
            trainer.change_lr(factor * lr, forget=recipe.schedule == "half")
            last_factor = factor
        losses = trainer.epoch(images, targets, batch_config, generators)
        if epoch % CHECK_EPOCHS == 0 or epoch == recipe.epochs - 1:
            require(
                bool(losses.isfinite().all()),
                f"training on {len(images)} images had diverged by epoch {epoch} (losses {losses.tolist()}) with step size "
                f"{lr:.4g}; lower the step size (syn_lr, lr_lr, or --lr of an imported set) or training.momentum",
                DivergenceError,
            )
        if checkpoint is not None:
            checkpoint.offer(stage, epoch + 1, trainer, generators)
    trainer.finish()


@torch.no_grad()
def measure_accuracy(network: nn.Module, split: Split, batch_size: int = 1000) -> float:
    """Returns the share of images, or of labelled pixels, that a network classifies correctly, in per cent."""
    network.eval()
    batches = zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
    counts = [
        torch.stack(count_right(network(batch_images).argmax(1), batch_labels)) for batch_images, batch_labels in batches
    ]
    correct, total = torch.stack(counts).sum(0).tolist()
    return 100.0 * correct / total

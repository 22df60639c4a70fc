"""Ordinary training of networks: shared by teachers, by evaluation, by the stages before stage k and by methods."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import cos, pi, sqrt

import torch
import torch.nn.functional as F
from torch import nn

from seqmatch_lib.data.datasets import Split
from seqmatch_lib.data.labels import count_right
from seqmatch_lib.engine.augment import DSA_STRATEGY, apply_augmentation, check_strategy, draw_augmentation
from seqmatch_lib.engine.networks import flatten_parameters, load_parameters
from seqmatch_lib.engine.step_functions import batch_loss, check_loss, check_precision, step_functions
from seqmatch_lib.engine.training_checkpoint import TrainingCheckpoint
from seqmatch_lib.errors import DivergenceError, require
from seqmatch_lib.store.files import tensors_under
from seqmatch_lib.store.settings import omit_default

TRAINING_ENGINES = ("eager", "compiled")
OPTIMIZERS = ("sgd", "adam")
CHECK_EPOCHS = 25  # epochs between two looks at the losses: each look waits for the device
WARMUP_EPOCHS = 500  # of schedule "cosine", but no more than a quarter of all


def _half(epochs: int) -> list[float]:
    """A tenth after epoch `epochs // 2 + 1`, counted from 0."""
    first = min(epochs // 2 + 2, epochs)
    return [1.0] * first + [0.1] * (epochs - first)


def _steps(epochs: int) -> list[float]:
    """A fifth at two thirds, and again at five sixths."""
    return [0.2 ** ((epoch >= 2 * epochs // 3) + (epoch >= 5 * epochs // 6)) for epoch in range(epochs)]


def _cosine(epochs: int) -> list[float]:
    """A linear rise, then half a cosine down to a hundredth."""
    warmup = min(WARMUP_EPOCHS, epochs // 4)
    falling = max(epochs - warmup, 1)
    rise = [(epoch + 1) / (warmup + 1) for epoch in range(warmup)]
    return rise + [0.01 + 0.99 * (1 + cos(pi * epoch / falling)) / 2 for epoch in range(epochs - warmup)]


# Factors on the step size, one an epoch.
SCHEDULES: dict[str, Callable[[int], list[float]]] = {"half": _half, "steps": _steps, "cosine": _cosine}


@dataclass(frozen=True)
class TrainingRecipe:
    """How a network is trained on a synthetic set, one stage at a time; the defaults are the public protocol.

    Args:
        epochs: passes over the stage's images, at least 1.
        batch_size: images a step.
        momentum: of SGD, in [0, 1).
        weight_decay: at least 0.
        augment: DSA strategy, or "none".
        engine: and `precision`: of `make_trainer`.
        optimizer: "sgd" or "adam".
        loss: "cross_entropy" or "mse", see `batch_loss`.
        schedule: of the step size: "half" is that of the MTT, DSA and DM codes, which also make SGD anew when the step
            size falls, so that momentum starts from zero; "steps" that of IDC; "cosine" that of FRePo.
        cutmix: probability, a batch, of CutMix.

    Source: `evaluate_synset` of the public MTT code; for the other values `train.py` of IDC and `script/eval.py` of FRePo.
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
        check_trainer(self.engine, self.precision)


@dataclass(frozen=True)
class OptimizerConfig:
    """How a trainer changes parameters.

    Args:
        lr: step size; `momentum`, `weight_decay`, `optimizer` and `loss`: as in `TrainingRecipe`.
    """

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
    """What a trainer is fed with.

    Args:
        batch_size: images a step.
        augment: DSA strategy, drawn anew for each batch.
        cutmix: probability, a batch, of CutMix; the targets must then be probabilities.
    """

    batch_size: int
    augment: str = "none"
    cutmix: float = 0.0

    def draw(
        self, images: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the chosen images, augmented and perhaps mixed, and their targets."""
        drawn = draw_augmentation(self.augment, len(rows), images.shape[2:], generator, device=images.device)
        batch, wanted = apply_augmentation(images[rows], drawn), targets[rows]
        return mix_patches(batch, wanted, self.cutmix, generator) if self.cutmix else (batch, wanted)


def mix_patches(
    images: torch.Tensor, targets: torch.Tensor, probability: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts one rectangle of a shuffled batch into the batch (CutMix), targets by the share of the area.

    Args:
        images: (B, C, H, W).
        targets: (B, classes) probabilities.
        probability: that it is done at all.
        generator: a CPU generator.

    Source: Yun et al., ICCV 2019, with Beta(1, 1), one rectangle a batch, in the form of the public IDC code
    (`train_epoch`, `rand_bbox`).
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
    """Trains networks one after the other, as they are: the plain way, and the reference for `StackedTrainer`.

    Args:
        networks: changed in place.
        config: how.
    """

    def __init__(self, networks: Sequence[nn.Module], config: OptimizerConfig) -> None:
        self._networks = networks
        self._config = config
        self._optimizers = [config.make_optimizer(network.parameters()) for network in networks]

    def epoch(
        self, images: torch.Tensor, targets: torch.Tensor, batch_config: BatchConfig, generators: Sequence[torch.Generator]
    ) -> torch.Tensor:
        """Trains each network for one pass over the images, in a random order of its own.

        Args:
            images: (N, C, H, W), normalised, on the device of the networks.
            targets: (N,) int64 classes, or (N, classes); see `batch_loss`.
            batch_config: batches and their augmentation; the last step takes what is left.
            generators: CPU generators for order and augmentation, one a network.

        Returns:
            (networks,) mean losses over the images.
        """
        losses = torch.zeros(len(self._networks), device=images.device)
        for index, (network, optimizer, generator) in enumerate(
            zip(self._networks, self._optimizers, generators, strict=True)
        ):
            network.train()
            for rows in torch.randperm(len(images), generator=generator).to(images.device).split(batch_config.batch_size):
                batch, wanted = batch_config.draw(images, targets, rows, generator)
                loss = batch_loss(self._config.loss, network(batch), wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[index] += loss.detach() * len(rows)
        return losses / len(images)

    def change_lr(self, lr: float, forget: bool) -> None:
        """Sets the step size; `forget` makes the optimisers anew, so that momentum starts from zero."""
        if forget:
            self._optimizers = [self._config.make_optimizer(network.parameters()) for network in self._networks]
        for optimizer in self._optimizers:
            optimizer.param_groups[0]["lr"] = lr

    def parameters(self) -> torch.Tensor:
        """Returns a copy of all parameters, (networks, P)."""
        return torch.stack([flatten_parameters(network) for network in self._networks])

    def state(self) -> dict[str, torch.Tensor]:
        """Returns parameters, running statistics and optimiser states, from which `load_state` goes on bit for bit."""
        tensors = {}
        for index, (network, optimizer) in enumerate(zip(self._networks, self._optimizers, strict=True)):
            tensors |= {f"{index}.network.{name}": value for name, value in network.state_dict().items()}
            for name, parameter in network.named_parameters():
                saved = optimizer.state[parameter].items()
                tensors |= {f"{index}.optimizer.{name}.{key}": value for key, value in saved}
        return tensors

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes over what `state` returned."""
        for index, (network, optimizer) in enumerate(zip(self._networks, self._optimizers, strict=True)):
            network.load_state_dict(tensors_under(state, f"{index}.network."))
            for name, parameter in network.named_parameters():
                optimizer.state[parameter] = _restore_optimizer_state(tensors_under(state, f"{index}.optimizer.{name}."))

    def finish(self) -> None:
        """Does nothing: the networks are trained in place."""


class StackedTrainer:
    """Trains networks of one architecture side by side on stacked parameters.

    Each network sees the batches and augmentations that `LoopTrainer` would show it, so the results are the same up to
    rounding. The networks change at `finish`.

    Args:
        networks: and `config`: as in `LoopTrainer`.
        precision: as in `StepFunctions`.
        compiled: whether steps are compiled.
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
        for rows in zip(*(order.split(batch_config.batch_size) for order in orders), strict=True):
            drawn = [
                batch_config.draw(images, targets, mine, generator) for mine, generator in zip(rows, generators, strict=True)
            ]
            batches, wanted = zip(*drawn, strict=True)
            self._parameters.grad, batch_losses = self._gradients(batches, wanted)
            self._optimizer.step()
            losses += batch_losses * len(rows[0])
        return losses / len(images)

    def _gradients(
        self, batches: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (networks, P) gradients and (networks,) losses: in one call on a GPU, which small networks leave idle.

        On a CPU one network already keeps all cores busy, and convolutions of stacked networks are slower.
        """
        if self._parameters.is_cuda:
            return self._gradient(self._parameters, torch.stack(tuple(batches)), torch.stack(tuple(targets)))
        results = [self._gradient(*one) for one in zip(self._parameters, batches, targets, strict=True)]
        gradients, losses = zip(*results, strict=True)
        return torch.stack(gradients), torch.stack(losses)

    def change_lr(self, lr: float, forget: bool) -> None:
        """Sets the step size; as in `LoopTrainer.change_lr`."""
        if forget:
            self._optimizer = self._config.make_optimizer([self._parameters])
        self._optimizer.param_groups[0]["lr"] = lr

    def parameters(self) -> torch.Tensor:
        """Returns a copy of all parameters, (networks, P)."""
        return self._parameters.clone()

    def state(self) -> dict[str, torch.Tensor]:
        """Returns parameters and the optimiser's state, from which `load_state` goes on bit for bit."""
        return {"parameters": self._parameters, **self._optimizer.state[self._parameters]}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes over what `state` returned."""
        self._parameters.copy_(state["parameters"])
        self._optimizer.state[self._parameters] = _restore_optimizer_state(
            {k: v for k, v in state.items() if k != "parameters"}
        )

    def finish(self) -> None:
        """Writes the parameters into the networks."""
        for network, parameters in zip(self._networks, self._parameters, strict=True):
            load_parameters(network, parameters)


def _restore_optimizer_state(saved: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns an optimiser's state of one parameter: copies; counters of steps stay on the CPU, as in torch's optimisers."""
    return {name: value.clone() if value.dim() else value.cpu() for name, value in saved.items()}


def one_hot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Returns (N, classes) float32 probabilities: what CutMix mixes."""
    return F.one_hot(labels, num_classes).float()


def check_trainer(engine: str, precision: str) -> None:
    """Raises ConfigError unless `make_trainer` knows the engine and it can work in that precision."""
    require(engine in TRAINING_ENGINES, f"engine {engine!r} is unknown; use one of {', '.join(TRAINING_ENGINES)}")
    check_precision(precision)
    require(engine == "compiled" or precision == "float32", f"engine {engine!r} has no precision {precision!r}; use 'float32'")


def make_trainer(
    networks: Sequence[nn.Module], config: OptimizerConfig, engine: str, precision: str
) -> LoopTrainer | StackedTrainer:
    """Returns what trains these networks: "eager" one by one, or "compiled" together."""
    return LoopTrainer(networks, config) if engine == "eager" else StackedTrainer(networks, config, precision)


def train_stage(
    networks: Sequence[nn.Module],
    images: torch.Tensor,
    targets: torch.Tensor,
    lr: float,
    recipe: TrainingRecipe,
    generators: Sequence[torch.Generator],
    stage: int = 1,
    checkpoint: TrainingCheckpoint | None = None,
) -> None:
    """Trains networks in place on the images of one stage, with the stage's step size `lr`.

    The public MTT loop runs one epoch more than its `epochs`; ours does not.

    Args:
        networks: of one architecture, as the stage before left them.
        images: (N, C, H, W).
        targets: (N,) int64 classes, or (N, classes).
        lr: step size to begin with.
        recipe: all else.
        generators: CPU generators for batch order and augmentation, one a network.
        stage: counted from 1, for the checkpoint.
        checkpoint: from which training goes on, and into which it saves itself; None for neither.

    Raises:
        DivergenceError: a loss is not finite.
        OutOfTime: the checkpoint's budget is spent, and the state is saved.
    """
    if recipe.cutmix and not targets.is_floating_point():
        targets = one_hot(targets, networks[0][-1].out_features).to(images.dtype)
    optimizer_config = OptimizerConfig(lr, recipe.momentum, recipe.weight_decay, recipe.optimizer, recipe.loss)
    trainer = make_trainer(networks, optimizer_config, recipe.engine, recipe.precision)
    batch_config = BatchConfig(recipe.batch_size, recipe.augment, recipe.cutmix)
    factors = SCHEDULES[recipe.schedule](recipe.epochs)
    done = 0 if checkpoint is None else checkpoint.resume(stage, recipe.epochs, trainer, generators, images.device)[0]
    before = 1.0
    if done:
        before = factors[done - 1]
        trainer.change_lr(before * lr, forget=False)
    for epoch, factor in enumerate(factors[done:], start=done):
        if factor != before:
            trainer.change_lr(factor * lr, forget=recipe.schedule == "half")
            before = factor
        losses = trainer.epoch(images, targets, batch_config, generators)
        if epoch % CHECK_EPOCHS == 0 or epoch == recipe.epochs - 1:
            _check_losses(losses, f"{len(images)} images", epoch, lr)
        if checkpoint is not None:
            checkpoint.offer(stage, epoch + 1, trainer, generators)
    trainer.finish()


def _check_losses(losses: torch.Tensor, data: str, epoch: int, lr: float) -> None:
    require(
        bool(losses.isfinite().all()),
        f"training on {data} had diverged by epoch {epoch} (losses {losses.tolist()}) with step size {lr:.4g}; "
        "lower the step size (syn_lr, lr_lr, or --lr of an imported set) or training.momentum",
        DivergenceError,
    )


@torch.no_grad()
def measure_accuracy(network: nn.Module, split: Split, batch_size: int = 1000) -> float:
    """Returns the share of images, or of labelled pixels, that a network classifies rightly, in per cent.

    Args:
        network: trained.
        split: normalised images, and their labels.
        batch_size: images at a time.
    """
    network.eval()
    parts = zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
    counts = [torch.stack(count_right(network(batch).argmax(1), expected)) for batch, expected in parts]
    right, asked = torch.stack(counts).sum(0).tolist()
    return 100.0 * right / asked

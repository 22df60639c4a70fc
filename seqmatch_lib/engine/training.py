"""Ordinary (not differentiable) training of networks, for teachers, evaluation, earlier stages and methods."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, inf, pi, sqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from seqmatch_lib.data.datasets import Split
from seqmatch_lib.data.labels import IGNORED
from seqmatch_lib.engine.augment import DSA_STRATEGY, apply_augmentation, check_strategy, draw_augmentation
from seqmatch_lib.engine.networks import flatten_parameters, load_parameters
from seqmatch_lib.engine.step_functions import LOSSES, batch_loss, centred_one_hot, check_engine, step_functions
from seqmatch_lib.errors import DivergenceError, require
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.checkpoint import Checkpoint
from seqmatch_lib.store.files import tensors_under
from seqmatch_lib.store.settings import omit_default

TRAINING_ENGINES = ("eager", "compiled")
OPTIMIZERS = ("sgd", "adam")
CHECK_EPOCHS = 25  # the losses are checked in every 25th epoch, because a check waits for the device
WARMUP_EPOCHS = 500  # of schedule "cosine", but at most a quarter of all epochs


def _half(epochs: int) -> list[float]:
    """Factor 0.1 after epoch `epochs // 2 + 1`, counted from 0."""
    return [1.0 if epoch <= epochs // 2 + 1 else 0.1 for epoch in range(epochs)]


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


def check_trainer(section: str, config: Any) -> None:
    """Raises ConfigError, which names the section, unless the settings that recipes and teachers share are valid."""
    require(config.batch_size >= 1, f"{section}.batch_size {config.batch_size} must be at least 1")
    require(0 <= config.momentum < 1, f"{section}.momentum {config.momentum} must lie in [0, 1)")
    require(config.weight_decay >= 0, f"{section}.weight_decay {config.weight_decay} must not be negative")
    check_strategy(config.augment)
    check_engine(config.engine, config.precision, TRAINING_ENGINES)


@dataclass(frozen=True)
class TrainingRecipe:
    """How networks are trained, in one stage on a synthetic set; the defaults are the protocol of the public MTT code.

    Trainers, which make single epochs, take it too; they do not read `epochs`, `schedule` and `lr`.

    Args:
        epochs: passes over the stage's images, at least 1.
        batch_size: images in each step.
        momentum: of SGD, in [0, 1).
        weight_decay: at least 0.
        augment: DSA strategy, or "none".
        engine: "eager" or "compiled", see `make_trainer`.
        precision: of engine "compiled", see `StepFunctions`; engine "eager" has only "float32". "tf32" is what the public code
            gets from a GPU without asking.
        optimizer: "sgd" or "adam".
        loss: "cross_entropy" or "mse", see `batch_loss`.
        schedule: of the step size. "half" is that of the code of MTT, DSA and DM, which also resets the momentum when the step
            size falls; "steps" is that of IDC, "cosine" that of FRePo.
        cutmix: probability of CutMix for each batch; a trainer's targets must then be (N, classes).
        lr: step size of every stage; 0 stands for the one that each subset has, which is learned or, of real images,
            `evaluation.real_lr`.

    Source: `evaluate_synset` of the public MTT code; `train.py` of IDC; `script/eval.py` of FRePo.
    """

    epochs: int = 1000
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = DSA_STRATEGY
    engine: str = "compiled"
    precision: str = "tf32"
    optimizer: str = omit_default("sgd")
    loss: str = omit_default("cross_entropy")
    schedule: str = omit_default("half")
    cutmix: float = omit_default(0.0)
    lr: float = omit_default(0.0)

    def __post_init__(self) -> None:
        check_trainer("training", self)
        require(self.epochs >= 1, f"training.epochs {self.epochs} must be at least 1")
        require(0 <= self.cutmix <= 1, f"training.cutmix {self.cutmix} must lie in [0, 1]")
        require(0 <= self.lr < inf, f"training.lr {self.lr} must be positive, or 0 for the step sizes of the subsets")
        for name, known in (("optimizer", OPTIMIZERS), ("loss", LOSSES), ("schedule", SCHEDULES)):
            value = getattr(self, name)
            require(value in known, f"training.{name} {value!r} is unknown; use one of {', '.join(known)}")

    def make_optimizer(self, parameters: Iterable[torch.Tensor], lr: float) -> torch.optim.Optimizer:
        """Returns a fresh optimiser of these parameters with this step size."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def draw_batch(
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

    Images are (B, C, H, W), targets (B, classes).

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

    def __init__(self, networks: Sequence[nn.Module], recipe: TrainingRecipe, lr: float) -> None:
        self._networks = networks
        self._recipe = recipe
        self._optimizers = [recipe.make_optimizer(network.parameters(), lr) for network in networks]

    def epoch(self, images: torch.Tensor, targets: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Trains each network for one pass over the images, each in its own random order; the last batch may be smaller.

        Args:
            images: (N, C, H, W), normalised, on the device of the networks.
            targets: (N,) int64 classes, or (N, classes); see `batch_loss`.
            generators: CPU generators for order and augmentation, one for each network.

        Returns:
            (networks,) mean losses over the images.
        """
        losses = torch.zeros(len(self._networks), device=images.device)
        parts = zip(self._networks, self._optimizers, generators, strict=True)
        for index, (network, optimizer, generator) in enumerate(parts):
            network.train()
            for rows in torch.randperm(len(images), generator=generator).to(images.device).split(self._recipe.batch_size):
                batch_images, batch_targets = self._recipe.draw_batch(images, targets, rows, generator)
                loss = batch_loss(self._recipe.loss, network(batch_images), batch_targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[index] += loss.detach() * len(rows)
        return losses / len(images)

    def change_lr(self, lr: float, forget: bool) -> None:
        """Sets the step size; `forget` replaces the optimisers by fresh ones, which resets their momentum."""
        if forget:
            self._optimizers = [self._recipe.make_optimizer(network.parameters(), lr) for network in self._networks]
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


class StackedTrainer:
    """Trains networks of one architecture together, on stacked parameters; the networks themselves stay as they are.

    Each network gets the same batches and augmentations as with `LoopTrainer`, so the results are the same up to rounding.
    With engine "eager" nothing is compiled.
    """

    def __init__(self, networks: Sequence[nn.Module], recipe: TrainingRecipe, lr: float) -> None:
        message = "networks with running statistics cannot be trained by engine 'compiled'; use 'eager' in 'float32'"
        require(next(networks[0].buffers(), None) is None, message)
        self._recipe = recipe
        self.functions = step_functions(networks[0], recipe.precision, recipe.loss, recipe.engine == "compiled")
        self._parameters = torch.stack([flatten_parameters(network) for network in networks])
        self._optimizer = recipe.make_optimizer([self._parameters], lr)

    def epoch(self, images: torch.Tensor, targets: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Trains all networks for one pass over the images; arguments and result as in `LoopTrainer.epoch`."""
        orders = [torch.randperm(len(images), generator=generator).to(images.device) for generator in generators]
        losses = torch.zeros(len(orders), device=images.device)
        for rows_of_networks in zip(*(order.split(self._recipe.batch_size) for order in orders), strict=True):
            batches = [
                self._recipe.draw_batch(images, targets, rows, generator)
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
            return self.functions.gradient(self._parameters, torch.stack(images), torch.stack(targets))
        results = [self.functions.gradient(*arguments) for arguments in zip(self._parameters, images, targets, strict=True)]
        gradients, losses = zip(*results, strict=True)
        return torch.stack(gradients), torch.stack(losses)

    def change_lr(self, lr: float, forget: bool) -> None:
        """Sets the step size, as `LoopTrainer.change_lr` does."""
        if forget:
            self._optimizer = self._recipe.make_optimizer([self._parameters], lr)
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


def _restore_optimizer_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies an optimiser's state of one parameter; step counters stay on the CPU, as in torch's optimisers."""
    return {name: value.clone() if value.dim() else value.cpu() for name, value in state.items()}


Trainer = LoopTrainer | StackedTrainer


def make_trainer(networks: Sequence[nn.Module], recipe: TrainingRecipe, lr: float) -> Trainer:
    """Returns the trainer of the recipe's engine: "eager" trains networks one by one, "compiled" all together."""
    return LoopTrainer(networks, recipe, lr) if recipe.engine == "eager" else StackedTrainer(networks, recipe, lr)


class TrainingCheckpoint(Checkpoint):
    """The checkpoint of one group of networks while they are trained.

    Args:
        path: of the safetensors file; the caller holds a lock under which no other process writes it.
        owner: JSON values that identify the networks and their training data. A file of another owner, left behind by a killed
            process, is ignored.
        budget: determines when to save and when to stop.

    Raises:
        StorageError: the file is damaged.
    """

    def __init__(self, path: Path, owner: dict[str, Any], budget: Budget) -> None:
        super().__init__(path, owner)
        self._budget = budget
        self._tensors, self._notes, is_own = self.read() or ({}, {}, False)
        if not is_own:
            self._tensors, self._notes = {}, {"stage": 0, "epoch": 0, "seconds": 0.0}
        self._began = time.perf_counter() - self._notes["seconds"]

    @property
    def seconds(self) -> float:
        """Seconds of training so far, including those of stopped processes up to their last checkpoint."""
        return time.perf_counter() - self._began

    @property
    def has_begun(self) -> bool:
        """Whether a state of these networks was saved, which `resume` puts in the place of their own."""
        return self._notes["epoch"] > 0

    def resume(
        self, stage: int, epochs: int, trainer: Trainer, generators: Sequence[torch.Generator], device: torch.device
    ) -> tuple[int, dict[str, torch.Tensor]]:
        """Restores a trainer of fresh networks and the generators of its batches, if they were saved during this stage.

        Stages are counted from 1, and `epochs` is the number of epochs of this one.

        Returns:
            The number of finished epochs of the stage, and the tensors saved as `more`.

        Raises:
            StorageError: the file does not fit these networks.
        """
        if stage != self._notes["stage"]:
            return (epochs if stage < self._notes["stage"] else 0), {}
        with self.restoring("these networks"):
            state = tensors_under(self._tensors, "trainer.")
            trainer.load_state({name: value.to(device) for name, value in state.items()})
            for index, generator in enumerate(generators):
                generator.set_state(self._tensors[f"generator.{index}"])
        more, self._tensors = tensors_under(self._tensors, "more."), {}
        return self._notes["epoch"], more

    def offer(
        self, stage: int, epoch: int, trainer: Trainer, generators: Sequence[torch.Generator], more: dict[str, torch.Tensor]
    ) -> None:
        """Saves the state after `epoch` epochs of a stage, and `more`, if the last save is old enough or the time is spent.

        Raises:
            OutOfTime: the time is spent, and the state is saved.
        """
        if not self._budget.wants_save():
            return
        tensors = {f"trainer.{name}": value for name, value in trainer.state().items()}
        tensors |= {f"generator.{index}": generator.get_state() for index, generator in enumerate(generators)}
        tensors |= {f"more.{name}": value for name, value in more.items()}
        self.write(tensors, {"stage": stage, "epoch": epoch, "seconds": round(self.seconds, 3)})
        self._budget.saved()


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
        num_classes = compute_logits(networks[0], images[:1]).shape[1]
        if recipe.loss == "mse":  # what `batch_loss` makes of classes
            targets = centred_one_hot(targets, num_classes, images.dtype)
        else:
            targets = F.one_hot(targets, num_classes).to(images.dtype)
    trainer = make_trainer(networks, recipe, lr)
    finished = 0 if checkpoint is None else checkpoint.resume(stage, recipe.epochs, trainer, generators, images.device)[0]
    factors = [1.0, *SCHEDULES[recipe.schedule](recipe.epochs)]  # the first one is that of a new trainer
    if finished:
        trainer.change_lr(factors[finished] * lr, forget=False)
    for epoch, (last_factor, factor) in enumerate(pairwise(factors[finished:]), start=finished):
        if factor != last_factor:
            trainer.change_lr(factor * lr, forget=recipe.schedule == "half")
        losses = trainer.epoch(images, targets, generators)
        if epoch % CHECK_EPOCHS == 0 or epoch == recipe.epochs - 1:
            found = f"had diverged by epoch {epoch} (losses {losses.tolist()}) with step size {lr:.4g}"
            finite = bool(losses.isfinite().all())
            require(finite, f"training on {len(images)} images {found}; {_name_remedy(recipe)}", DivergenceError)
        if checkpoint is not None:
            checkpoint.offer(stage, epoch + 1, trainer, generators, {})
    for network, parameters in zip(networks, trainer.parameters(), strict=True):
        load_parameters(network, parameters)


def _name_remedy(recipe: TrainingRecipe) -> str:
    """Returns which settings to lower where training diverged: those in force alone."""
    names = ["momentum"] if recipe.optimizer == "sgd" else []
    others = [f"training.{name}" for name in (*names, "weight_decay") if getattr(recipe, name) > 0]
    own = "that of the set (evaluation.real_lr of real images; else syn_lr, lr_lr or, imported, --lr), or set training.lr"
    which = "which is training.lr" if recipe.lr else own
    return f"lower the step size, {which}" + "".join(f", or lower {name}" for name in others)


@torch.no_grad()
def compute_logits(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Returns the logits of all images, without augmentation and without gradients."""
    network.eval()
    return torch.cat([network(part) for part in images.split(1000)])


def measure_accuracy(network: nn.Module, split: Split) -> float:
    """Returns the share of images, or of labelled pixels, that a network classifies correctly, in per cent."""
    right = compute_logits(network, split.images).argmax(1) == split.labels  # never where a label is IGNORED: it is negative
    return 100.0 * right.sum().item() / (split.labels != IGNORED).sum().item()

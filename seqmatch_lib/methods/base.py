"""The interface of a base method A, as Algorithm 1 of SeqMatch uses it, and the registry of methods.

A base method optimises the images of one stage. It knows nothing of the sequence except what `Stage` tells it: the
frozen earlier subsets, and the interval of teacher epochs it is to match. To add one, subclass `BaseMethod`, give it a
frozen dataclass as `config_class`, write `prepare` and `step`, and register it under its name.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from seqmatch_lib.budget import Budget
from seqmatch_lib.errors import require
from seqmatch_lib.networks import NetworkConfig, make_network
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.synthetic import SubsetSequence, SyntheticSubset, sample_real_subset
from seqmatch_lib.training import TrainingRecipe
from seqmatch_lib.trajectories import TeacherConfig


@dataclass(frozen=True)
class Stage:
    """Everything a base method may know while it distils S_k.

    Args:
        index: k = 1, 2, …
        ipc: images per class of S_k.
        interval: (first, end): teacher epochs [first, end] that S_k is matched with.
        frozen: S_1 … S_{k-1}, on the device.
        images: (N, C, H, W) float32 normalised real training images, on the device.
        labels: (N,) int64.
        num_classes: number of classes.
        data_identity: JSON values that name data set, split and preprocessing, for files made from them.
        network: architecture that is trained on the subset.
        teachers: how teachers are trained, for methods that use them.
        recipe: how a network is trained on the frozen subsets.
        seed: of the run.
        folder: where teachers are kept.
        budget: to be asked in long loops whether the time is up.
    """

    index: int
    ipc: int
    interval: tuple[int, int]
    frozen: SubsetSequence
    images: torch.Tensor
    labels: torch.Tensor
    num_classes: int
    data_identity: dict[str, Any]
    network: NetworkConfig
    teachers: TeacherConfig
    recipe: TrainingRecipe
    seed: int
    folder: Path
    budget: Budget

    def make_network(self, seed: int, *purpose: str | int) -> nn.Module:
        """Returns a fresh network for this data, on the device."""
        generator = make_generator(seed, *purpose)
        return make_network(self.network, tuple(self.images.shape[1:]), self.num_classes, generator).to(self.images.device)


@dataclass
class Trainable:
    """The subset while it is optimised, with its optimisers; the one object of a stage that changes in place.

    Args:
        images: (classes * ipc, C, H, W) leaf that requires a gradient.
        labels: (classes * ipc,) int64 classes, fixed.
        lr: scalar leaf, the step size, that requires a gradient.
        optimizers: of the images and of the step size, in this order.
        iteration: finished iterations.
        losses: one a finished iteration.
    """

    images: torch.Tensor
    labels: torch.Tensor
    lr: torch.Tensor
    optimizers: tuple[torch.optim.SGD, torch.optim.SGD]
    iteration: int = 0
    losses: list[float] = field(default_factory=list)

    def freeze(self) -> SyntheticSubset:
        """Returns a copy of the present state as a subset that no later step can change."""
        return SyntheticSubset(self.images.detach().clone(), self.labels.clone(), self.lr.item())


@dataclass(frozen=True)
class Prepared:
    """What `prepare` returns: a method subclasses it with whatever its steps need.

    Args:
        seconds: spent on making it, in this run or in the one that left it on disk.
    """

    seconds: float


class BaseMethod(ABC):
    """A distillation method for one subset.

    Args:
        config: an instance of `config_class`, which has at least `iterations`, `lr_img`, `lr_lr`, `syn_lr`,
            `momentum_img` and `momentum_lr`.
    """

    config_class: ClassVar[type]

    def __init__(self, config: Any) -> None:
        self.config = config

    def initial_lr(self, index: int) -> float:
        """Returns the step size that stage k = `index` begins with."""
        return self.config.syn_lr

    def initialise(self, stage: Stage) -> Trainable:
        """Returns the subset before its first iteration: random real images, as the public codes start."""
        lr = self.initial_lr(stage.index)
        purpose = ("stage", stage.index, "initial images")
        start = sample_real_subset(stage.images, stage.labels, stage.num_classes, stage.ipc, lr, stage.seed, *purpose)
        images = start.images.requires_grad_()
        lr_leaf = torch.tensor(lr, device=images.device, requires_grad=True)
        optimizers = (
            torch.optim.SGD([images], lr=self.config.lr_img, momentum=self.config.momentum_img),
            torch.optim.SGD([lr_leaf], lr=self.config.lr_lr, momentum=self.config.momentum_lr),
        )
        return Trainable(images, start.labels, lr_leaf, optimizers)

    @abstractmethod
    def prepare(self, stage: Stage) -> Prepared:
        """Makes or loads what the steps need from the real data and the frozen subsets; called once a stage."""

    @abstractmethod
    def step(self, prepared: Any, trainable: Trainable, frozen: SubsetSequence, generator: torch.Generator) -> torch.Tensor:
        """Computes one iteration's loss and adds its gradients to `trainable.images` and `trainable.lr`.

        Args:
            prepared: what `prepare` returned.
            trainable: S_k; only gradients are written.
            frozen: S_1 … S_{k-1}, constant.
            generator: the iteration's own CPU generator, the only source of randomness.

        Returns:
            The detached scalar loss.
        """

    def training_recipe(self, recipe: TrainingRecipe) -> TrainingRecipe:
        """Returns how networks are trained on the result; a method with a protocol of its own changes the recipe."""
        return recipe


_METHODS: dict[str, type[BaseMethod]] = {}


def register_method(name: str) -> Any:
    """Class decorator that makes a base method available under a name, alone and as `seqmatch_<name>`."""

    def register(method: type[BaseMethod]) -> type[BaseMethod]:
        require(name not in _METHODS, f"a method {name!r} is registered already; choose another name")
        _METHODS[name] = method
        return method

    return register


def method_names() -> tuple[str, ...]:
    """Returns the names of all registered base methods."""
    return tuple(sorted(_METHODS))


def get_method(name: str) -> type[BaseMethod]:
    """Returns a registered base method.

    Raises:
        ConfigError: no method has that name.
    """
    require(name in _METHODS, f"method {name!r} is unknown; use one of {', '.join(method_names())}")
    return _METHODS[name]

"""The interface of a base method A, as Algorithm 1 of SeqMatch uses it, and the registry of methods.

A base method optimises the images of one stage. It knows nothing of the sequence except what `Stage` tells it, so a method
that works alone works under SeqMatch. The guide to a method of your own, with a complete example, is `docs/own_method.md`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from seqmatch_lib.data.labels import image_classes
from seqmatch_lib.data.multi_formation import AS_STORED, Formation
from seqmatch_lib.data.preprocessing import Preprocessing
from seqmatch_lib.engine.evaluation import train_staged
from seqmatch_lib.engine.networks import NetworkConfig, make_network
from seqmatch_lib.engine.training import TrainingRecipe
from seqmatch_lib.errors import ConfigError, require
from seqmatch_lib.methods.teachers import TeacherConfig
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.files import tensors_under
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset, sample_real_subset

ENTRY_POINTS = "seqmatch_lib.methods"


@dataclass(frozen=True)
class Stage:
    """Everything a base method may know while it distils S_k.

    Args:
        index: k = 1, 2, …
        ipc: images per class of S_k.
        interval: (first, end): teacher epochs [first, end] that S_k is matched with; None for methods without teachers.
        frozen: S_1 … S_{k-1}, on the device.
        images: (N, C, H, W) float32 normalised real training images, on the device.
        labels: (N,) int64.
        num_classes: number of classes.
        preprocessing: what made `images` from pixels.
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
    interval: tuple[int, int] | None
    frozen: SubsetSequence
    images: torch.Tensor
    labels: torch.Tensor
    num_classes: int
    preprocessing: Preprocessing
    data_identity: dict[str, Any]
    network: NetworkConfig
    teachers: TeacherConfig
    recipe: TrainingRecipe
    seed: int
    folder: Path
    budget: Budget

    def make_network(self, seed: int, *purpose: str | int) -> nn.Sequential:
        """Returns a fresh network for this data, on the device."""
        generator = make_generator(seed, *purpose)
        return make_network(self.network, tuple(self.images.shape[1:]), self.num_classes, generator).to(self.images.device)

    def start_networks(self, seed: int, *purposes: tuple[str | int, ...]) -> list[nn.Sequential]:
        """Returns networks as stage k meets them: fresh ones, trained on S_1, then on S_1 ∪ S_2, …, S_1 ∪ … ∪ S_{k-1}.

        Args:
            seed: of starts and training.
            *purposes: one a network; they name its random numbers.

        Source: Algorithm 1 of SeqMatch, the line that carries the network from subset to subset.
        """
        networks = [self.make_network(seed, *purpose, "start") for purpose in purposes]
        generators = [make_generator(seed, *purpose, "earlier stages") for purpose in purposes]
        train_staged(networks, self.frozen, self.recipe, generators)
        return networks

    def rows_by_class(self) -> list[torch.Tensor]:
        """Returns, for each class, the rows of its real images."""
        classes = image_classes(self.labels)
        return [(classes == label).nonzero().flatten() for label in range(self.num_classes)]


@dataclass
class Trainable:
    """The subset while it is optimised, with its optimisers; the one object of a stage that changes in place.

    Args:
        images: (classes * ipc, C, H, W) leaf that requires a gradient.
        labels: (classes * ipc,) int64 classes, or a (classes * ipc, classes) leaf that requires a gradient.
        lr: scalar leaf, the step size; it requires a gradient where it is learned.
        optimizers: by the name of the leaf that they change: "images", and "labels" and "lr" where those are learned.
        logits: whether learned labels are logits, of which networks are shown the probabilities.
        formation: how the stored images become training images.
        iteration: finished iterations.
        losses: one a finished iteration.
    """

    images: torch.Tensor
    labels: torch.Tensor
    lr: torch.Tensor
    optimizers: dict[str, torch.optim.Optimizer]
    logits: bool = False
    formation: Formation = AS_STORED
    iteration: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def leaves(self) -> dict[str, torch.Tensor]:
        """Images, labels and step size, by the names that optimisers have."""
        return {"images": self.images, "labels": self.labels, "lr": self.lr}

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the leaves and the optimisers' states, from which `load_state` goes on bit for bit."""
        tensors = self.leaves
        for name, optimizer in self.optimizers.items():
            found = optimizer.state[self.leaves[name]].items()
            tensors |= {f"optimizer.{name}.{key}": value for key, value in found}
        return tensors

    def load_state(self, state: dict[str, torch.Tensor], losses: list[float]) -> None:
        """Takes over what `state` returned, and the losses of the finished iterations.

        Raises:
            KeyError: a leaf is missing; ValueError: a tensor has another shape or dtype.
        """
        leaves = self.leaves
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(saved_like(state[name], leaf))
        for name, optimizer in self.optimizers.items():
            # counters of steps stay on the CPU, as the optimisers of torch keep them
            optimizer.state[leaves[name]] = {
                key: saved_like(value, leaves[name]).to(leaves[name].device) if value.dim() or name == "lr" else value
                for key, value in tensors_under(state, f"optimizer.{name}.").items()
            }
        self.losses = losses
        self.iteration = len(losses)

    def targets(self) -> torch.Tensor:
        """Returns what networks are trained on: the labels, or the probabilities of logits; differentiable."""
        return self.labels.softmax(1) if self.logits else self.labels

    def freeze_view(self) -> SyntheticSubset:
        """Returns the present state as a subset through which gradients flow back; it changes with the next step.

        Its step size is left at 0: reading it would wait for the device, and losses take it from `lr`.
        """
        return SyntheticSubset(self.images, self.targets(), 0.0, self.formation)

    def freeze(self) -> SyntheticSubset:
        """Returns a copy of the present state as a subset that no later step can change."""
        labels = self.targets().detach().clone()
        return SyntheticSubset(self.images.detach().clone(), labels, self.lr.item(), self.formation)


def saved_like(saved: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """Returns a saved tensor after making sure that it has the shape and dtype of what it is to become, else ValueError."""
    if saved.shape != leaf.shape or saved.dtype != leaf.dtype:
        raise ValueError(f"{saved.dtype} of shape {tuple(saved.shape)} instead of {leaf.dtype} of {tuple(leaf.shape)}")
    return saved


@dataclass
class MethodState:
    """What `prepare` returns: a method subclasses it with whatever its steps need.

    Args:
        seconds: spent on teachers, in this run or in the one that left them on disk; 0 without teachers.
    """

    seconds: float

    def state(self) -> dict[str, torch.Tensor]:
        """Returns what beside the subset changes from step to step, to be saved with it."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes over what `state` returned in the process that was stopped."""


@dataclass(frozen=True)
class BaseConfig:
    """Settings that every method has.

    Args:
        iterations: steps of a stage.
        lr_img: learning rate of the images.
        momentum_img: of the image optimiser (SGD).
        syn_lr: step size that networks are trained with on the result, or that its learning begins with.
    """

    iterations: int = 1000
    lr_img: float = 1.0
    momentum_img: float = 0.5
    syn_lr: float = 0.01


@dataclass(frozen=True)
class Effort:
    """What a method computes and holds.

    Args:
        passes: forward passes of one image, over all stages.
        images: whose activations it holds at a time.
        vectors: of parameters that it holds.
        variant: engine and precision, as the benchmark names them.
        rate: what the benchmark measures that is like it: "inner_steps" or "training".
        starts: networks, one number a stage, that are trained through the stages before.
    """

    passes: float
    images: float
    vectors: float
    variant: str
    rate: str = "training"
    starts: tuple[float, ...] = ()


class BaseMethod(ABC):
    """A distillation method for one subset.

    Args:
        config: an instance of `config_class`.
    """

    config_class: ClassVar[type]
    uses_teachers: ClassVar[bool] = False  # whether stages have an interval of teacher epochs

    def __init__(self, config: Any) -> None:
        self.config = config

    def check(self, intervals: Sequence[tuple[int, int]], teachers: TeacherConfig, training: TrainingRecipe) -> None:
        """Raises ConfigError unless the method's settings fit those of its run; by default any do.

        Args:
            intervals: teacher epochs of each subset; none for methods without teachers.
            teachers: how teachers are trained.
            training: how networks are trained on the result.
        """

    def num_iterations(self, index: int) -> int:
        """Returns the iterations of stage k = `index`."""
        return self.config.iterations

    def initial_lr(self, index: int) -> float:
        """Returns the step size that stage k = `index` begins with."""
        return self.config.syn_lr

    def initialise(self, stage: Stage) -> Trainable:
        """Returns the subset before its first iteration: random real images, as the public codes start."""
        lr = self.initial_lr(stage.index)
        purpose = ("stage", stage.index, "initial images")
        start = sample_real_subset(stage.images, stage.labels, stage.num_classes, stage.ipc, lr, stage.seed, *purpose)
        images = start.images.requires_grad_()
        optimizers = {"images": self.image_optimizer(images)}
        return Trainable(images, start.labels, torch.tensor(lr, device=images.device), optimizers)

    def image_optimizer(self, images: torch.Tensor) -> torch.optim.Optimizer:
        """Returns what changes the images: SGD with momentum."""
        return torch.optim.SGD([images], lr=self.config.lr_img, momentum=self.config.momentum_img)

    @abstractmethod
    def prepare(self, stage: Stage) -> MethodState:
        """Makes or loads what the steps need from the real data and the frozen subsets; called once a stage."""

    @abstractmethod
    def step(self, prepared: Any, trainable: Trainable, frozen: SubsetSequence, generator: torch.Generator) -> torch.Tensor:
        """Computes one iteration's loss and adds its gradients to the leaves of `trainable`.

        Args:
            prepared: what `prepare` returned.
            trainable: S_k; only gradients are written.
            frozen: S_1 … S_{k-1}, constant.
            generator: the iteration's own CPU generator, the only source of randomness.

        Returns:
            The detached scalar loss.
        """

    def effort(self, sizes: list[int], num_classes: int) -> Effort:
        """Returns what distilling all stages costs, for `python -m seqmatch_lib cost`.

        Args:
            sizes: stored images of each stage.
            num_classes: of the data.

        Raises:
            ConfigError: the method does not say.
        """
        raise ConfigError(f"{type(self).__name__} does not say what its steps cost; give it a method `effort`")


_METHODS: dict[str, type[BaseMethod]] = {}


def register_method(name: str) -> Callable[[type[BaseMethod]], type[BaseMethod]]:
    """Class decorator that makes a base method available under a name, alone and as `seqmatch_<name>`."""

    def register(method: type[BaseMethod]) -> type[BaseMethod]:
        require(name not in _METHODS, f"a method {name!r} is registered already; choose another name")
        _METHODS[name] = method
        return method

    return register


@cache
def _entry_points() -> dict[str, EntryPoint]:
    """The methods that installed packages name; looked up once, as that reads the metadata of every package."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def method_names() -> tuple[str, ...]:
    """Returns the names of all base methods: those of this library, and those that other packages name."""
    return tuple(sorted({*_METHODS, *_entry_points()}))


def get_method(name: str) -> type[BaseMethod]:
    """Returns a base method by its name.

    Raises:
        ConfigError: no method has that name, or the package that names one does not give a method.
    """
    if name not in _METHODS and name in _entry_points():
        entry = _entry_points()[name]
        method = entry.load()
        require(
            isinstance(method, type) and issubclass(method, BaseMethod),
            f"entry point {name!r} ({entry.value}) is no BaseMethod; name a subclass of seqmatch_lib.methods.BaseMethod",
        )
        _METHODS.setdefault(name, method)
    require(name in _METHODS, f"method {name!r} is unknown; use one of {', '.join(method_names())}")
    return _METHODS[name]

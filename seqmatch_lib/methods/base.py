"""The interface of a base method A, as Algorithm 1 of SeqMatch uses it, and the registry of methods.

A base method optimises one subset. It learns about the earlier subsets only from `Stage`, so a method that works for K = 1
also works under SeqMatch. The guide to a method of your own, with a complete example, is `docs/own_method.md`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from seqmatch_lib.data.labels import rows_by_class
from seqmatch_lib.data.multi_formation import AS_STORED, Formation
from seqmatch_lib.data.preprocessing import Preprocessing
from seqmatch_lib.engine.evaluation import train_staged
from seqmatch_lib.engine.networks import NetworkConfig, has_running_statistics, make_network
from seqmatch_lib.engine.step_functions import adjoint_error
from seqmatch_lib.engine.training import TrainingCheckpoint, TrainingRecipe
from seqmatch_lib.errors import ConfigError, DivergenceError, NotRegisteredError, first_line, require
from seqmatch_lib.methods.teachers import TeacherConfig
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.files import acquire_lock, digest_json, remove_file, remove_leftovers, tensors_under
from seqmatch_lib.store.settings import as_settings
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset, sample_real_subset

Intervals = Sequence[tuple[int, int] | None]  # teacher epochs of each subset; None where the method has no teachers
ENTRY_POINTS = "seqmatch_lib.methods"
READ = {  # functions of BaseMethod -> the settings that they read
    "num_iterations": ("iterations",), "initial_lr": ("syn_lr",), "image_optimizer": ("lr_img", "momentum_img"),
}  # fmt: skip
TRIED = 4  # images
LARGEST_ERROR = 1e-4  # right derivatives are below 1e-12, wrong ones were above 1e-3
RESERVED = (  # names that mean something else in the settings of a run
    "random", "whole", "preset", "scale", "seed", "dataset", "ipc", "method", "subset_ipcs", "intervals", "zca", "select_on",
    "network", "teachers", "training", "evaluation", "options",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """Input of a base method for one stage, the distillation of S_k.

    Args:
        index: k = 1, 2, …
        ipc: images per class of S_k.
        interval: (first, end): teacher epochs that S_k is matched with; None for methods without teachers. MTT draws start
            epochs e with first <= e < end - M, as the public code does, so that its last target is epoch end - 1.
        frozen: S_1 … S_{k-1}, on the device.
        images: (N, C, H, W) float32 normalised real training images, on the device.
        labels: (N,) int64.
        num_classes: number of classes.
        preprocessing: how `images` were made from pixels.
        data_identity: JSON values that identify data set, split and preprocessing, for files made from them.
        network: architecture that is trained on the subset.
        teachers: how teachers are trained, for methods that use them.
        recipe: how a network is trained on the frozen subsets.
        seed: of the run.
        folder: of the teachers' files, and of the state of `start_networks`.
        budget: time budget, for long loops to check.
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
        """Returns a fresh network for the real data, on the device; seed and purpose determine its parameters."""
        generator = make_generator(seed, *purpose)
        return make_network(self.network, tuple(self.images.shape[1:]), self.num_classes, generator).to(self.images.device)

    def check_statistics(self, obstacle: str, remedy: str = "") -> None:
        """Raises ConfigError if the networks have running statistics; `obstacle` says what cannot train or hold them."""
        problem = f"network {self.network.name!r} with norm {self.network.norm!r} has running statistics, which {obstacle}"
        found = has_running_statistics(self.network, tuple(self.images.shape[1:]), self.num_classes)
        require(not found, f"{problem}; {remedy}take one without, as with network.norm=instance")

    def check_second_derivatives(self, method: str, forward_mode: bool) -> None:
        """Raises ConfigError unless PyTorch has the second derivatives of the networks, and right ones, as `method` needs.

        Some operations have none. Others, such as most norms of torch.nn, have wrong ones in forward mode, on which
        `StepFunctions.adjoint` rests. This is tried with a few images.
        """
        shape, generator = tuple(self.images.shape[1:]), make_generator(self.seed, "tried network")
        network = make_network(self.network, shape, self.num_classes, generator)  # on the CPU, whatever the device
        subject = f"{method} differentiates network {self.network.name!r} twice"
        remedy = "write that operation out, as docs/own_method.md does with attention, or take method dm or krr"
        try:
            error = adjoint_error(network, self.images[:TRIED].cpu(), self.labels[:TRIED].cpu(), forward_mode)
        except RuntimeError as missing:
            raise ConfigError(f"{subject}, which PyTorch cannot ({first_line(missing)}); {remedy}") from missing
        problem = f"{subject}, and PyTorch's forward mode does that wrong (relative error {error:.2g})"
        remedy = "use norms of seqmatch_lib.engine.networks or torch.nn.GroupNorm, or take method dm or krr"
        require(error < LARGEST_ERROR, f"{problem}; {remedy}")

    def start_networks(self, seed: int, *purposes: tuple[str | int, ...]) -> list[nn.Sequential]:
        """Returns networks from which stage k starts: trained on S_1, then on S_1 ∪ S_2, …, then on S_1 ∪ … ∪ S_{k-1}.

        Each network has its own purpose, which seeds its initial parameters and its training; see `make_generator`. A process
        that is stopped in the middle goes on where it was: the state lies below `folder` until the networks are trained.

        Source: Algorithm 1 of SeqMatch, the line that saves the network for the next subset.

        Raises:
            OutOfTime: the budget is spent, and the state is saved.
        """
        networks = [self.make_network(seed, *purpose, "start") for purpose in purposes]
        generators = [make_generator(seed, *purpose, "earlier stages") for purpose in purposes]
        if not self.frozen.subsets:
            return networks
        owner = {"frozen": self.frozen.sha256(), "network": as_settings(self.network), "recipe": as_settings(self.recipe)}
        owner |= {"seed": seed, "purposes": [list(purpose) for purpose in purposes]}
        path = self.folder / "starts" / f"{digest_json(owner)[:16]}.safetensors"
        lock = path.with_suffix(".lock")
        with acquire_lock(lock):  # another run may have the same earlier subsets
            remove_leftovers(path.parent, path.name)
            # apart: these saves hold none of the iterations so far, so they must not count as saves of the run
            checkpoint = TrainingCheckpoint(path, owner, self.budget.apart())
            train_staged(networks, self.frozen, self.recipe, generators, checkpoint=checkpoint)
            for finished in (path, lock):  # a method may start thousands of times
                remove_file(finished)
        return networks

    def rows_by_class(self) -> list[torch.Tensor]:
        """Returns, for each class, the indices of its real images."""
        return rows_by_class(self.labels, self.num_classes)


@dataclass
class Trainable:
    """S_k and its optimisers during the optimisation, which changes them in place.

    Args:
        images: (classes * ipc, C, H, W) leaf that requires a gradient.
        labels: (classes * ipc,) int64 classes, or a (classes * ipc, classes) leaf that requires a gradient.
        lr: scalar leaf, the step size; it requires a gradient if it is learned.
        optimizers: "images", and "labels" and "lr" if these are learned; each changes the leaf of its name.
        logits: whether learned labels are logits; networks are then trained on their softmax.
        formation: how the stored images become training images.
        iteration: number of finished iterations.
        losses: of the finished iterations.
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
        """Images, labels and step size, by the names of their optimisers."""
        return {"images": self.images, "labels": self.labels, "lr": self.lr}

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the leaves, and the optimisers' states and learning rates."""
        tensors = self.leaves
        for name, optimizer in self.optimizers.items():
            optimizer_state = optimizer.state[self.leaves[name]].items()
            tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer_state}
            tensors[f"learning_rate.{name}"] = torch.tensor(float(optimizer.param_groups[0]["lr"]), dtype=torch.float64)
        return tensors

    def load_state(self, state: dict[str, torch.Tensor], losses: list[float]) -> None:
        """Restores what `state` returned, and the losses of the finished iterations; the results stay bit-identical.

        Raises:
            KeyError: a leaf is missing.
            ValueError: a tensor has another shape or dtype.
        """
        leaves = self.leaves
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(saved_like(state[name], leaf))
        for name, optimizer in self.optimizers.items():
            # step counters stay on the CPU, as in torch's optimisers
            optimizer.state[leaves[name]] = {
                key: saved_like(value, leaves[name]).to(leaves[name].device) if value.dim() or name == "lr" else value
                for key, value in tensors_under(state, f"optimizer.{name}.").items()
            }
            if f"learning_rate.{name}" in state:  # not in files of older versions; a schedule of one's own changes it
                optimizer.param_groups[0]["lr"] = state[f"learning_rate.{name}"].item()
        self.losses = losses
        self.iteration = len(losses)

    def targets(self) -> torch.Tensor:
        """Returns the targets of training, differentiable: the labels, or the softmax of logits."""
        return self.labels.softmax(1) if self.logits else self.labels

    def freeze_view(self) -> SyntheticSubset:
        """Returns the leaves as a subset, without a copy: gradients flow back to them.

        The step size of this subset is 0, because reading it would wait for the device; losses use `lr`.
        """
        return SyntheticSubset(self.images, self.targets(), 0.0, self.formation)

    def freeze(self) -> SyntheticSubset:
        """Returns a copy as a subset, which later steps do not change.

        Raises:
            DivergenceError: the step size is not positive, so that no network can be trained on the subset.
        """
        lr = self.lr.item()
        problem = f"the learned step size after {self.iteration} iterations is {lr:.4g}, with which no network can be trained"
        require(lr > 0, f"{problem}; lower lr_lr, or start with a larger syn_lr", DivergenceError)
        return SyntheticSubset(self.images.detach().clone(), self.targets().detach().clone(), lr, self.formation)


def saved_like(saved: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """Returns the saved tensor; raises ValueError unless it has the shape and dtype of the leaf."""
    if saved.shape != leaf.shape or saved.dtype != leaf.dtype:
        raise ValueError(f"{saved.dtype} of shape {tuple(saved.shape)} instead of {leaf.dtype} of {tuple(leaf.shape)}")
    return saved


@dataclass
class MethodState:
    """Result of `prepare` and input of each `step`; a method adds its own attributes in a subclass.

    Args:
        seconds: of training the teachers, by this run or an earlier one; 0 without teachers.
    """

    seconds: float

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the tensors that steps change, other than the subset; they are saved with it."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restores what `state` returned in an earlier process."""


@dataclass(frozen=True)
class BaseConfig:
    """Settings that `BaseMethod` reads; a method without some of them has its own function in place of the one that does.

    Args:
        iterations: of each stage, at least 1.
        lr_img: learning rate of the images, positive.
        momentum_img: of the image optimiser (SGD), in [0, 1).
        syn_lr: step size of training on the set, positive; the initial one, if the method learns it.
    """

    prefix: ClassVar[str] = ""  # of settings in messages, such as "mtt."

    iterations: int = 1000
    lr_img: float = 1.0
    momentum_img: float = 0.5
    syn_lr: float = 0.01

    def __post_init__(self) -> None:
        require(self.iterations >= 1, f"{self.prefix}iterations {self.iterations} must be at least 1")
        require(self.lr_img > 0, f"{self.prefix}lr_img {self.lr_img} must be positive")
        require(self.syn_lr > 0, f"{self.prefix}syn_lr {self.syn_lr} must be positive")
        require(0 <= self.momentum_img < 1, f"{self.prefix}momentum_img {self.momentum_img} must lie in [0, 1)")


@dataclass(frozen=True)
class Effort:
    """Computation and memory that distillation by a method takes.

    Args:
        passes: forward passes of single images, over all stages.
        images: number whose activations are held at a time.
        vectors: number of parameter vectors held.
        variant: engine and precision, as the benchmark names them.
        rate: the benchmark's most similar measurement: "inner_steps" or "training".
        starts: for each stage, the number of networks that are trained through the earlier stages.
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
    uses_teachers: ClassVar[bool] = False
    takes_pixel_labels: ClassVar[bool] = False  # whether `labels` may be (N, H, W)

    def __init__(self, config: Any) -> None:
        self.config = config

    def check(self, sizes: Sequence[int], intervals: Intervals, teachers: TeacherConfig, training: TrainingRecipe) -> None:
        """Raises ConfigError unless the method's settings fit the other settings of its run; by default all fit.

        Args:
            sizes: images per class of each subset.
            intervals: teacher epochs of each subset; None for each where the method has no teachers.
            teachers: how teachers are trained.
            training: how networks are trained on the distilled set.
        """

    def num_iterations(self, index: int) -> int:
        """Returns the iterations of stage k = `index`."""
        return self.config.iterations

    def initial_lr(self, index: int) -> float:
        """Returns the initial step size of stage k = `index`."""
        return self.config.syn_lr

    def initialise(self, stage: Stage) -> Trainable:
        """Returns the subset before its first iteration: random real images, as in the public code."""
        lr = self.initial_lr(stage.index)
        purpose = ("stage", stage.index, "initial images")
        subset = sample_real_subset(stage.images, stage.labels, stage.num_classes, stage.ipc, lr, stage.seed, *purpose)
        images = subset.images.requires_grad_()
        optimizers = {"images": self.image_optimizer(images)}
        return Trainable(images, subset.labels, torch.tensor(lr, device=images.device), optimizers)

    def image_optimizer(self, images: torch.Tensor) -> torch.optim.Optimizer:
        """Returns the optimiser of the images: SGD with momentum."""
        return torch.optim.SGD([images], lr=self.config.lr_img, momentum=self.config.momentum_img)

    @abstractmethod
    def prepare(self, stage: Stage) -> MethodState:
        """Computes or loads whatever all steps of the stage share, such as teachers."""

    def resume(self, stage: Stage, state: dict[str, torch.Tensor]) -> MethodState:
        """Returns what `prepare` returned in an earlier process, with the changes of later steps, from its saved `state`."""
        prepared = self.prepare(stage)
        prepared.load_state(state)
        return prepared

    @abstractmethod
    def step(self, prepared: Any, trainable: Trainable, frozen: SubsetSequence, generator: torch.Generator) -> torch.Tensor:
        """Computes one iteration's loss and adds its gradients to the leaves of `trainable`.

        Args:
            prepared: result of `prepare`.
            trainable: S_k; only the gradients are changed.
            frozen: S_1 … S_{k-1}, constant.
            generator: CPU generator of this iteration, the only source of randomness.

        Returns:
            The detached scalar loss.
        """

    def effort(self, sizes: list[int], num_classes: int) -> Effort:
        """Returns the cost of distilling all stages, for `python -m seqmatch_lib cost`.

        Args:
            sizes: number of stored images of each stage.
            num_classes: of the data.

        Raises:
            ConfigError: the method does not define it.
        """
        raise ConfigError(f"{type(self).__name__} does not define the cost of its steps; define its method `effort`")


_METHODS: dict[str, type[BaseMethod]] = {}


def register_method(name: str) -> Callable[[type[BaseMethod]], type[BaseMethod]]:
    """Class decorator that makes a base method available under a name, alone and as `seqmatch_<name>`.

    A class of the same module and name takes the place of the one before, so that a cell of a notebook can be run again.

    Raises:
        ConfigError: the name is not valid or is taken, or the class lacks a function or a setting.
    """

    def register(method: type[BaseMethod]) -> type[BaseMethod]:
        _check_name(name)
        _check_method(f"method {name!r} ({method!r:.120})", method)
        known = _METHODS.get(name, method)
        is_same = (known.__module__, known.__qualname__) == (method.__module__, method.__qualname__)
        require(is_same, f"a method {name!r} is registered already; choose another name")
        _METHODS[name] = method
        return method

    return register


def _check_name(name: Any, origin: str = "") -> None:
    """Raises ConfigError unless a name serves in the names of files, as a key of settings and after `seqmatch_`."""
    fits = isinstance(name, str) and re.fullmatch(r"(?!seqmatch_)[a-zA-Z]\w{,59}", name, re.ASCII) and name not in RESERVED
    rule = "must consist of letters, digits and '_', of 60 at most, begin with a letter, not with 'seqmatch_'"
    problem = f"method name {name!r:.120}{origin} {rule}, and be none of {', '.join(RESERVED)}"
    require(bool(fits), f"{problem}; choose another name")


def _check_method(origin: str, method: Any) -> None:
    is_method = isinstance(method, type) and issubclass(method, BaseMethod)
    require(is_method, f"{origin} is not a BaseMethod; name a subclass of seqmatch_lib.methods.BaseMethod")
    lacks = sorted(method.__abstractmethods__)
    config_class = getattr(method, "config_class", None)
    if not is_dataclass(config_class):
        lacks.append("config_class")
    require(not lacks, f"{origin} lacks {', '.join(lacks)}; define it, config_class as a dataclass such as BaseConfig")
    known = {one.name for one in fields(config_class)}
    read = [name for reader, names in READ.items() if getattr(method, reader) is getattr(BaseMethod, reader) for name in names]
    missing = [name for name in read if name not in known]
    problem = f"{origin} has a config_class without {', '.join(missing)}, which BaseMethod reads"
    require(not missing, f"{problem}; make it a subclass of BaseConfig")


@cache
def _entry_points() -> dict[str, EntryPoint]:
    """Methods that installed packages register; cached, because the look-up reads the metadata of every package."""
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    for name, entry in found.items():
        _check_name(name, f" (entry point {entry.value})")
    return found


def method_names() -> tuple[str, ...]:
    """Returns the names of all base methods, of this library and of other packages."""
    return tuple(sorted({*_METHODS, *_entry_points()}))


def get_method(name: str) -> type[BaseMethod]:
    """Returns a base method by its name.

    Raises:
        ConfigError: no method has that name, or an entry point of that name cannot be loaded or is not a method.
    """
    if name not in _METHODS and name in _entry_points():
        entry = _entry_points()[name]
        try:
            method = entry.load()
        except Exception as error:  # whatever a module of another package does when it is imported
            problem = f"method {name!r}: its entry point {entry.value} cannot be loaded ({first_line(error)})"
            remedy = "repair or reinstall the package, or uninstall it"
            raise NotRegisteredError(f"{problem}; {remedy} (pip uninstall {entry.dist.name})") from error
        _check_method(f"entry point {name!r} ({entry.value})", method)
        _METHODS.setdefault(name, method)
    require(name in _METHODS, f"method {name!r} is unknown; use one of {', '.join(method_names())}")
    return _METHODS[name]

"""KRR: predict the labels of real images by kernel ridge regression, on features of networks that are trained on the set.

The method is FRePo (Zhou, Nezhadarya and Ba, "Dataset Distillation using Neural Feature Regression", NeurIPS 2022), but with
the networks of this project instead of FRePo's wider ones with batch norm.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import cos, pi, sqrt

import torch
from torch import nn

from seqmatch_lib.engine.networks import load_parameters
from seqmatch_lib.engine.step_functions import GRADIENT_PASSES, batch_loss, centred_one_hot, check_engine
from seqmatch_lib.engine.training import TRAINING_ENGINES, StackedTrainer, TrainingRecipe
from seqmatch_lib.errors import require
from seqmatch_lib.methods.base import BaseMethod, Effort, Intervals, MethodState, Stage, Trainable, register_method
from seqmatch_lib.methods.lamb import Lamb
from seqmatch_lib.methods.teachers import TeacherConfig
from seqmatch_lib.store.files import tensors_under
from seqmatch_lib.subsets import SubsetSequence

FINAL_LR = 0.1  # factor on the learning rate at the end of the cosine schedule


@dataclass(frozen=True)
class KRRConfig:
    """Hyperparameters of FRePo, named as in its public code where it has a name.

    Args:
        iterations: of each stage (`num_train_steps`).
        lr_img: learning rate of images and labels, relative to their norms; it falls to a tenth by half a cosine.
        learn_labels: whether labels are learned with the images.
        batch_real: real images in each iteration, whose labels are predicted.
        ridge: regularisation, relative to the mean of the kernel's diagonal.
        flip: whether the regression also uses mirrored synthetic images.
        num_networks: size of the pool of networks (`num_nn_state`).
        max_online_updates: a network is replaced by a fresh one when it has made more training steps than these.
        batch_syn: the largest number of synthetic images in a training step of a network.
        net_lr: step size of Adam, which trains the networks.
        syn_lr: step size of Adam for training on the set, not learned.
        engine: "eager" or "compiled", for the networks' training.
        precision: of engine "compiled", see `StepFunctions`; engine "eager" has only "float32".

    Source: `script/distill.py` and `lib/datadistillation/frepo.py` of the public code.
    """

    iterations: int = 500_000
    lr_img: float = 3e-4
    learn_labels: bool = True
    batch_real: int = 1024
    ridge: float = 1e-6
    flip: bool = True
    num_networks: int = 10
    max_online_updates: int = 100
    batch_syn: int = 1000
    net_lr: float = 3e-4
    syn_lr: float = 3e-4
    engine: str = "compiled"
    precision: str = "tf32"

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_real", "num_networks", "max_online_updates", "batch_syn"):
            require(getattr(self, name) >= 1, f"krr.{name} {getattr(self, name)} must be at least 1")
        for name in ("lr_img", "ridge", "net_lr", "syn_lr"):
            require(getattr(self, name) > 0, f"krr.{name} {getattr(self, name)} must be positive")
        check_engine(self.engine, self.precision, TRAINING_ENGINES)


class KRRPrepared(MethodState):
    """The pool of networks, each with its trainer; it is empty until it is filled, or loaded from a state."""

    def __init__(self, stage: Stage, config: KRRConfig) -> None:
        super().__init__(seconds=0.0)
        stage.check_statistics("krr does not train")
        self.stage = stage
        self.targets = centred_one_hot(stage.labels, stage.num_classes, stage.images.dtype)
        self.network = stage.make_network(stage.seed, "pool network")  # `features` loads parameters from the pool into it
        engine = {"engine": config.engine, "precision": config.precision}
        self._recipe = TrainingRecipe(
            batch_size=config.batch_syn, weight_decay=0.0, augment="none", optimizer="adam", loss="mse", **engine
        )
        self._config = config
        size = config.num_networks
        # staggered, as in the public code, so that the networks are not all replaced at once
        self.updates = torch.tensor([config.max_online_updates // size * index for index in range(size)])
        self.starts = torch.zeros(size, dtype=torch.long)
        self.trainers: list[StackedTrainer] = []

    def fill(self) -> None:
        """Fills the pool with fresh networks, each trained on S_1 … S_{k-1}."""
        self.trainers = self._make_trainers(range(self._config.num_networks))

    def _make_trainers(self, indices: Iterable[int]) -> list[StackedTrainer]:
        """Returns trainers of fresh networks for these indices of the pool."""
        purposes = [("stage", self.stage.index, "pool", index, int(self.starts[index])) for index in indices]
        networks = self.stage.start_networks(self.stage.seed, *purposes)
        return [self._make_trainer(network) for network in networks]

    def _make_trainer(self, network: nn.Module) -> StackedTrainer:
        return StackedTrainer([network], self._recipe, self._config.net_lr)

    def train(self, index: int, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> None:
        """Trains a network for one step on the synthetic set, or replaces it after `max_online_updates` + 1, as published."""
        if self.updates[index] > self._config.max_online_updates:
            self.starts[index] += 1
            self.updates[index] = 0
            (self.trainers[index],) = self._make_trainers([index])
        else:
            rows = torch.randperm(len(images), generator=generator)[: self._config.batch_syn].to(images.device)
            self.trainers[index].epoch(images[rows], labels[rows], [generator])
            self.updates[index] += 1

    def features(self, index: int) -> nn.Module:
        """Returns the current features of a network of the pool."""
        load_parameters(self.network, self.trainers[index].parameters()[0])
        return self.network[:-1].requires_grad_(False)

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the training states of all networks."""
        tensors = {"updates": self.updates, "starts": self.starts}
        for index, trainer in enumerate(self.trainers):
            tensors |= {f"{index}.{name}": value for name, value in trainer.state().items()}
        return tensors

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restores what `state` returned."""
        self.updates, self.starts = state["updates"].cpu(), state["starts"].cpu()
        # any network does here: the state takes its place
        self.trainers = [self._make_trainer(self.network) for _ in range(self._config.num_networks)]
        for index, trainer in enumerate(self.trainers):
            trainer.load_state(tensors_under(state, f"{index}."))


@register_method("krr")
class KRR(BaseMethod):
    """Kernel ridge regression on learned features, with learned labels."""

    config_class = KRRConfig

    def initialise(self, stage: Stage) -> Trainable:
        """Returns random real images and their centred one-hot labels, both learned by LAMB."""
        trainable = super().initialise(stage)
        scale = sqrt(10 / stage.num_classes)  # `scale_y` of the public code
        trainable.labels = scale * centred_one_hot(trainable.labels, stage.num_classes, stage.images.dtype)
        if self.config.learn_labels:
            trainable.labels.requires_grad_()
            trainable.optimizers["labels"] = self.image_optimizer(trainable.labels)
        return trainable

    def image_optimizer(self, images: torch.Tensor) -> torch.optim.Optimizer:
        """Returns LAMB, for images and for labels."""
        return Lamb([images], self.config.lr_img)

    def check(self, sizes: Sequence[int], intervals: Intervals, teachers: TeacherConfig, training: TrainingRecipe) -> None:
        """Raises ConfigError unless networks are trained with "mse": the learned labels are not probabilities."""
        loss = training.loss
        require(loss == "mse", f"training.loss {loss!r} does not fit the labels of krr; set training.loss=mse")

    def prepare(self, stage: Stage) -> KRRPrepared:
        """Makes the pool of networks, each first trained on S_1 … S_{k-1}; raises ConfigError for norm "batch"."""
        prepared = KRRPrepared(stage, self.config)
        prepared.fill()
        return prepared

    def resume(self, stage: Stage, state: dict[str, torch.Tensor]) -> KRRPrepared:
        """Returns the saved pool; does not train the first pool again."""
        prepared = KRRPrepared(stage, self.config)
        prepared.load_state(state)
        return prepared

    def step(
        self, prepared: KRRPrepared, trainable: Trainable, frozen: SubsetSequence, generator: torch.Generator
    ) -> torch.Tensor:
        """Predicts the labels of a real batch from S_1 ∪ … ∪ S_k on one network's features, then trains that network.

        The loss is half the squared error of the prediction plus `margin_loss`.
        """
        config, stage = self.config, prepared.stage
        factor = FINAL_LR + (1 - FINAL_LR) * (1 + cos(pi * (trainable.iteration / config.iterations))) / 2
        for optimizer in trainable.optimizers.values():
            optimizer.param_groups[0]["lr"] = config.lr_img * factor
        index = int(torch.randint(config.num_networks, (), generator=generator))
        rows = torch.randperm(len(stage.images), generator=generator)[: config.batch_real].to(stage.images.device)
        features = prepared.features(index)
        images, labels = frozen.then(trainable.freeze_view()).union()
        with torch.no_grad():
            real_features = features(stage.images[rows])
        support = torch.cat([images, images.flip(3)]) if config.flip else images
        targets = torch.cat([labels, labels]) if config.flip else labels
        prediction = regress(real_features, features(support), targets, config.ridge)
        loss = batch_loss("mse", prediction, prepared.targets[rows]) + margin_loss(trainable.labels)
        loss.backward()
        prepared.train(index, images.detach(), labels.detach(), generator)
        return loss.detach()

    def effort(self, sizes: list[int], num_classes: int) -> Effort:
        """Returns the cost of regressions and of the networks' training."""
        config, passes = self.config, 0.0
        for union in accumulate(sizes):
            regression = config.batch_real + GRADIENT_PASSES * union * (1 + config.flip)
            passes += config.iterations * (regression + GRADIENT_PASSES * min(union, config.batch_syn))
        starts = (config.num_networks + config.iterations / config.max_online_updates,) * len(sizes)
        variant = f"{config.engine} {config.precision}"
        return Effort(
            passes, config.batch_real + (1 + config.flip) * sum(sizes), 4 * config.num_networks, variant, starts=starts
        )


def regress(queries: torch.Tensor, support: torch.Tensor, targets: torch.Tensor, ridge: float) -> torch.Tensor:
    """Returns the predictions K_qs (K_ss + ridge tr(K_ss) / n I)^-1 Y of kernel ridge regression, differentiable.

    All is computed in float64. The kernel of more images than features is singular without the ridge, which is so small that
    the rounding of a kernel in float32 is larger.

    Args:
        queries: (Q, features).
        support: (n, features).
        targets: (n, classes) of the support.
        ridge: relative to the mean of the kernel's diagonal.

    Source: `nfr` of the public FRePo code; equation 3 of the paper.
    """
    dtype, queries, support = queries.dtype, queries.double(), support.double()
    kernel = support @ support.T
    kernel = kernel + ridge * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    # if all features are zero, the system has no solution: NaN leads to a DivergenceError, not to an error of the solver
    weights, failed = torch.linalg.solve_ex(kernel, targets.double())
    weights = torch.where(failed == 0, weights, torch.nan)
    return ((queries @ support.T) @ weights).to(dtype)


def margin_loss(labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean of -min(largest - second largest, 1 / classes) over (n, classes) labels.

    Source: `lb_margin_th` of the public FRePo code.
    """
    largest, second = labels.topk(2, dim=1).values.unbind(1)
    return -(largest - second).clamp(max=1 / labels.shape[1]).mean()

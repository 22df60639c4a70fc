"""IDC: match gradients class by class along the training of a network on real data (Kim et al., ICML 2022).

Departures from the public code: the images of all classes take one step together, after all classes have been matched (a
match involves one class, so this changes only when momentum acts). Images are stored normalised, and their gradients are
scaled so that `lr_img` applies to pixels in [0, 1], as published. Real images are drawn anew in each iteration.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F

from seqmatch_lib.data.multi_formation import Formation, store_tiles
from seqmatch_lib.data.preprocessing import Normalisation
from seqmatch_lib.engine.augment import augment_alike, check_strategy
from seqmatch_lib.engine.networks import flatten_parameters, load_parameters
from seqmatch_lib.engine.step_functions import GRADIENT_PASSES, IMAGE_ADJOINT_PASSES, check_engine
from seqmatch_lib.engine.training import TRAINING_ENGINES, StackedTrainer, TrainingRecipe
from seqmatch_lib.errors import require
from seqmatch_lib.methods.base import BaseMethod, Effort, Intervals, MethodState, Stage, Trainable, register_method
from seqmatch_lib.methods.teachers import TeacherConfig
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.store.files import tensors_under
from seqmatch_lib.subsets import SubsetSequence

STARTS = ("mix", "random")


def _cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """One minus the cosine of the gradients of each filter, summed over filters."""
    x, y = x.flatten(1), y.flatten(1)
    return (1 - (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-6)).sum()


# Distances between two gradients of one weight tensor (`dist` in the public code).
METRICS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mse": lambda x, y: (x - y).square().sum(),
    "l1": lambda x, y: (x - y).abs().sum(),
    "cosine": _cosine,
}


@dataclass(frozen=True)
class IDCConfig:
    """Hyperparameters of IDC, named as in the public code where it has a name.

    An iteration matches every class once, then trains the network on real images.

    Args:
        iterations: of stage 1, 2, …; the last entry is for all later stages, too; 100 times the `niter` of the public code.
        inner_loop: iterations before the network returns to its start; entries as for `iterations`.
        fix_iter: how many times the same start is used before a new one is drawn.
        factor: of multi-formation; 1 is IDC-I.
        decode: of multi-formation.
        start: initial images: "mix", tiles of different real images, or "random", whole real images.
        metric: distance of gradients: "mse", "l1" or "cosine".
        lr_img: learning rate for pixels in [0, 1] at 10 images per class; it is scaled by ipc / 10.
        momentum_img: of the image optimiser.
        batch_real: real images of each class in a match.
        batch_syn_max: the largest number of training images of each class and subset in a match.
        n_data: real images that the network is trained on in each iteration; 0 for no training.
        net_epoch: passes over these images.
        net_lr: of the network's training, as are `net_momentum`, `net_weight_decay` and `net_batch_size`.
        match_augment: DSA strategy of the match, with one draw for the real and synthetic images of a class.
        net_augment: DSA strategy of the network's training.
        cutmix: probability of CutMix in the network's training.
        syn_lr: step size for training on the set, not learned.
        engine: "eager" or "compiled", for matches and the network's training.
        precision: of engine "compiled", see `StepFunctions`; engine "eager" has only "float32".

    Source: `argument.py`, `misc/reproduce.py` and `condense.py` of the public code; `inner_loops`, `niters` and `fix_iter` in
    `condense_new.py` of SeqMatch-IDC.
    """

    iterations: tuple[int, ...] = (200_000,)
    inner_loop: tuple[int, ...] = (100,)
    fix_iter: int = 1
    factor: int = 2
    decode: str = "single"
    start: str = "mix"
    metric: str = "mse"
    lr_img: float = 5e-3
    momentum_img: float = 0.5
    batch_real: int = 64
    batch_syn_max: int = 128
    n_data: int = 2000
    net_epoch: int = 1
    net_lr: float = 0.01
    net_momentum: float = 0.9
    net_weight_decay: float = 5e-4
    net_batch_size: int = 64
    match_augment: str = "color+crop+cutout"
    net_augment: str = "color+crop"
    cutmix: float = 0.5
    syn_lr: float = 0.01
    engine: str = "compiled"
    precision: str = "tf32"

    def __post_init__(self) -> None:
        for name in ("iterations", "inner_loop"):
            values = getattr(self, name)
            require(bool(values) and min(values) >= 1, f"idc.{name} {list(values)} must hold numbers of at least 1")
        for name in ("fix_iter", "batch_real", "batch_syn_max", "net_epoch", "net_batch_size"):
            require(getattr(self, name) >= 1, f"idc.{name} {getattr(self, name)} must be at least 1")
        for name in ("lr_img", "net_lr", "syn_lr"):
            require(getattr(self, name) > 0, f"idc.{name} {getattr(self, name)} must be positive")
        for name in ("n_data", "net_weight_decay"):
            require(getattr(self, name) >= 0, f"idc.{name} {getattr(self, name)} must not be negative")
        for name in ("momentum_img", "net_momentum"):
            require(0 <= getattr(self, name) < 1, f"idc.{name} {getattr(self, name)} must lie in [0, 1)")
        require(0 <= self.cutmix <= 1, f"idc.cutmix {self.cutmix} must lie in [0, 1]")
        require(self.start in STARTS, f"idc.start {self.start!r} is unknown; use one of {', '.join(STARTS)}")
        require(self.metric in METRICS, f"idc.metric {self.metric!r} is unknown; use one of {', '.join(METRICS)}")
        _ = self.formation  # checks factor and decode
        check_strategy(self.match_augment)
        check_strategy(self.net_augment)
        check_engine(self.engine, self.precision, TRAINING_ENGINES)

    @property
    def formation(self) -> Formation:
        """How stored images become training images."""
        return Formation(self.factor, self.decode)


class IDCPrepared(MethodState):
    """The indices of the real images of each class, and the network whose gradients are matched, with its trainer."""

    def __init__(self, stage: Stage, config: IDCConfig) -> None:
        super().__init__(seconds=0.0)
        message = "idc keeps pixels within [0, 1], but ZCA whitened images have no such bounds; set zca=false"
        require(isinstance(stage.preprocessing, Normalisation), message)
        stage.check_statistics("idc does not train")
        stage.check_second_derivatives("idc", forward_mode=True)
        low, high = stage.preprocessing.range()
        self.stage = stage
        self.low, self.high = low.to(stage.images.device), high.to(stage.images.device)
        self.rows = stage.rows_by_class()
        self.targets = stage.labels
        if config.cutmix:
            self.targets = F.one_hot(stage.labels, stage.num_classes).to(stage.images.dtype)
        self._network = stage.make_network(stage.seed, "matching network")  # the start of the training
        self.shapes = [parameter.shape for parameter in self._network.parameters()]
        problem = f"network {stage.network.name!r} has no convolutions, whose gradients idc matches"
        require(any(len(shape) > 2 for shape in self.shapes), f"{problem}; take one that has some, such as convnet")
        self._net_lr = config.net_lr
        own = {name: getattr(config, f"net_{name}") for name in ("batch_size", "momentum", "weight_decay", "augment")}
        self._recipe = TrainingRecipe(cutmix=config.cutmix, engine=config.engine, precision=config.precision, **own)
        self._make_trainer()

    def begin_again(self, block: int, renew: bool) -> None:
        """Resets the network to its start; with `renew`, first draws the start of that block of iterations."""
        if renew:
            (self._network,) = self.stage.start_networks(self.stage.seed, ("stage", self.stage.index, "matching", block))
        self._make_trainer()

    def _make_trainer(self) -> None:
        self.trainer = StackedTrainer([self._network], self._recipe, self._net_lr)

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the network's start, and the state of its training."""
        training = {f"trainer.{name}": value for name, value in self.trainer.state().items()}
        return {"start": flatten_parameters(self._network), **training}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restores what `state` returned."""
        load_parameters(self._network, state["start"])
        self._make_trainer()
        self.trainer.load_state(tensors_under(state, "trainer."))


@register_method("idc")
class IDC(BaseMethod):
    """Gradient matching with multi-formation, in alternation with training on real data."""

    config_class = IDCConfig

    def check(self, sizes: Sequence[int], intervals: Intervals, teachers: TeacherConfig, training: TrainingRecipe) -> None:
        """Raises ConfigError if a setting has more entries than the run has stages."""
        for name in ("iterations", "inner_loop"):
            values, stages = getattr(self.config, name), len(intervals)
            message = f"idc.{name} {list(values)} has {len(values)} entries, one a stage, for {stages} stages; leave some out"
            require(len(values) <= stages, message)

    def num_iterations(self, index: int) -> int:
        """Returns the iterations of stage k = `index`."""
        return _entry(self.config.iterations, index)

    def initialise(self, stage: Stage) -> Trainable:
        """Returns real images; if `start` is "mix", each stored image consists of factor² of them.

        Raises:
            ConfigError: `factor` exceeds the side of the images in pixels.
        """
        config = self.config
        side = min(stage.images.shape[2:])
        require(config.factor <= side, f"idc.factor {config.factor} exceeds the {side} pixels of an image's side; lower it")
        trainable = super().initialise(stage)
        if config.start == "mix" and config.factor > 1:
            with torch.no_grad():
                trainable.images.copy_(self._tiled_start(stage))
        trainable.optimizers["images"].param_groups[0]["lr"] = config.lr_img * stage.ipc / 10
        trainable.formation = config.formation
        return trainable

    def _tiled_start(self, stage: Stage) -> torch.Tensor:
        """Returns stored images of factor² real ones each; a class with too few real images repeats some of them."""
        tiles = self.config.factor**2
        generator = make_generator(stage.seed, "stage", stage.index, "initial tiles")
        rows = []
        for members in stage.rows_by_class():
            repetitions = ceil(stage.ipc * tiles / len(members))
            order = torch.cat([torch.randperm(len(members), generator=generator) for _ in range(repetitions)])
            rows.append(members[order[: stage.ipc * tiles].to(members.device)])
        real = stage.images[torch.cat(rows)]
        return store_tiles(real.unflatten(0, (-1, tiles)), self.config.factor)

    def prepare(self, stage: Stage) -> IDCPrepared:
        """Makes the network, groups the real images by class; raises ConfigError for ZCA whitened images and norm "batch"."""
        return IDCPrepared(stage, self.config)

    def step(
        self, prepared: IDCPrepared, trainable: Trainable, frozen: SubsetSequence, generator: torch.Generator
    ) -> torch.Tensor:
        """Matches every class once, then trains the network on real images; pixels are clipped when the network is reset.

        The loss is the distance of real and synthetic gradients, summed over classes and weight tensors.
        """
        config, stage = self.config, prepared.stage
        block, inner_iteration = divmod(trainable.iteration, _entry(config.inner_loop, stage.index))
        if inner_iteration == 0:
            prepared.begin_again(block // config.fix_iter, renew=block % config.fix_iter == 0)
            with torch.no_grad():
                trainable.images.clamp_(prepared.low, prepared.high)
        sequence = frozen.then(trainable.freeze_view())
        parameters = prepared.trainer.parameters()[0]
        losses = [self._match(prepared, parameters, label, sequence, generator) for label in range(stage.num_classes)]
        # pixel = std * stored value + mean, with std = 1 / (high - low): a step of lr in pixels is lr / std² in stored values
        trainable.images.grad.mul_((prepared.high - prepared.low).square())
        if config.n_data:
            for _ in range(config.net_epoch):
                rows = torch.randperm(len(stage.images), generator=generator)[: config.n_data].to(stage.images.device)
                prepared.trainer.epoch(stage.images[rows], prepared.targets[rows], [generator])
        return torch.stack(losses).sum()

    def _training_images(
        self, sequence: SubsetSequence, label: int, stage: Stage, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the training images of a class and their labels, at most `batch_syn_max` of each subset."""
        images, labels = [], []
        bound = self.config.batch_syn_max
        for subset in sequence.subsets:
            subset_images, subset_labels = self.config.formation(*subset.of_class(label, stage.num_classes))
            if len(subset_images) > bound:
                rows = torch.randperm(len(subset_images), generator=generator)[:bound].to(subset_images.device)
                subset_images, subset_labels = subset_images[rows], subset_labels[rows]
            images.append(subset_images)
            labels.append(subset_labels)
        return torch.cat(images), torch.cat(labels)

    def _match(
        self, prepared: IDCPrepared, parameters: torch.Tensor, label: int, sequence: SubsetSequence, generator: torch.Generator
    ) -> torch.Tensor:
        """Returns the distance of one class's real and synthetic gradients, and adds its gradient to the synthetic images."""
        stage, config, functions = prepared.stage, self.config, prepared.trainer.functions
        images, labels = self._training_images(sequence, label, stage, generator)
        members = prepared.rows[label]
        rows = members[torch.randperm(len(members), generator=generator)[: config.batch_real].to(members.device)]
        real, synthetic = augment_alike([stage.images[rows], images], config.match_augment, generator)
        real_gradient = functions.gradient(parameters, real, stage.labels[rows])[0].clone()
        gradient = functions.gradient(parameters, synthetic.detach(), labels)[0].clone().requires_grad_()
        sizes = [shape.numel() for shape in prepared.shapes]
        loss = sum(
            METRICS[config.metric](part.view(shape), real_part.view(shape))
            for part, real_part, shape in zip(gradient.split(sizes), real_gradient.split(sizes), prepared.shapes, strict=True)
            if len(shape) > 2  # only weights of convolutions
        )
        (direction,) = torch.autograd.grad(loss, gradient)
        # the loss depends on the images x only through the gradient: d loss / d x = d <gradient, direction> / d x
        synthetic.backward(functions.image_adjoint(parameters, synthetic.detach(), labels, direction))
        return loss.detach()

    def effort(self, sizes: list[int], num_classes: int) -> Effort:
        """Returns the cost of matches and of training on real images."""
        config, tiles = self.config, self.config.formation.tiles
        passes, starts = 0.0, []
        for index in range(1, len(sizes) + 1):
            synthetic = sum(min(size // num_classes * tiles, config.batch_syn_max) for size in sizes[:index])
            match = GRADIENT_PASSES * config.batch_real + (GRADIENT_PASSES + IMAGE_ADJOINT_PASSES) * synthetic
            training = GRADIENT_PASSES * config.n_data * config.net_epoch
            iterations = self.num_iterations(index)
            passes += iterations * (num_classes * match + training)
            starts.append(iterations / _entry(config.inner_loop, index) / config.fix_iter)
        variant = f"{config.engine} {config.precision}"
        return Effort(passes, config.batch_real + config.batch_syn_max, 8, variant, starts=tuple(starts))


def _entry(values: tuple[int, ...], index: int) -> int:
    """Returns the entry of stage k = `index`: the last one where there are more stages than entries."""
    return values[min(index, len(values)) - 1]

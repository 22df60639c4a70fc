"""MTT: match the parameters that teachers reach on real data (Cazenavette et al., CVPR 2022, Algorithm 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from seqmatch_lib.engine.augment import DSA_STRATEGY, check_strategy, draw_augmentation
from seqmatch_lib.engine.inner_loop import UNROLL_ENGINES, InnerBatch, unroll
from seqmatch_lib.engine.networks import load_parameters
from seqmatch_lib.engine.step_functions import ADJOINT_PASSES, GRADIENT_PASSES, check_engine
from seqmatch_lib.engine.training import TrainingRecipe
from seqmatch_lib.errors import require
from seqmatch_lib.methods.base import BaseConfig, BaseMethod, Effort, Intervals, MethodState, Stage, Trainable, register_method
from seqmatch_lib.methods.teachers import TeacherConfig, TrajectorySet, record_stage_teachers
from seqmatch_lib.store.settings import omit_default
from seqmatch_lib.subsets import SubsetSequence


@dataclass(frozen=True)
class MTTConfig(BaseConfig):
    """Hyperparameters of MTT, beside those of `BaseConfig`; named as in the public code, where `syn_lr` is `lr_teacher`.

    Args:
        iterations: outer steps of each stage, each with one teacher segment.
        syn_steps: inner steps on the synthetic images (N in the paper).
        expert_epochs: epochs of a teacher segment (M); the papers call teachers experts.
        batch_syn: synthetic images in each inner step; 0 for the size of the stage's subset, the public default.
        lr_lr: learning rate of the step size.
        later_syn_lr: initial step size in stages k >= 2; `syn_lr` is that of stage 1.
        momentum_lr: of the step-size optimiser.
        augment: DSA strategy in the inner loop, or "none".
        engine: of `unroll`.
        precision: of `unroll`.
        lr_label: learning rate of soft labels, learned as logits (`lr_y` in the public DATM code); 0 keeps the classes.
        momentum_label: of the label optimiser (SGD).
        label_epoch: the initial soft labels are a teacher's logits on the initial images after this many epochs; -1 for the
            last recorded epoch (`Label_Model_Timestamp` in the public DATM code).
        max_grad_norm: upper bound on the norm of the images' gradient; where it is exceeded, all gradients of the iteration
            are scaled by one factor. 0 for no bound, as in the public code, where one iteration with a gradient many times
            as long as the others can undo a hundred iterations.

    Source: the public MTT code; for soft labels Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned
    Trajectory Matching" (DATM), ICLR 2024.
    """

    prefix = "mtt."

    iterations: int = 5000
    lr_img: float = 100.0
    syn_steps: int = 30
    expert_epochs: int = 2
    batch_syn: int = 0
    lr_lr: float = 1e-5
    later_syn_lr: float = 0.01
    momentum_lr: float = 0.5
    augment: str = DSA_STRATEGY
    engine: str = "compiled"
    precision: str = "tf32"
    lr_label: float = omit_default(0.0)
    momentum_label: float = omit_default(0.9)
    label_epoch: int = omit_default(-1)
    max_grad_norm: float = omit_default(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("syn_steps", "expert_epochs"):
            require(getattr(self, name) >= 1, f"mtt.{name} {getattr(self, name)} must be at least 1")
        require(self.batch_syn >= 0, f"mtt.batch_syn {self.batch_syn} must not be negative; 0 is the size of the subset")
        require(self.later_syn_lr > 0, f"mtt.later_syn_lr {self.later_syn_lr} must be positive")
        require(self.lr_lr >= 0, f"mtt.lr_lr {self.lr_lr} must not be negative; 0 keeps the step size fixed")
        require(self.lr_label >= 0, f"mtt.lr_label {self.lr_label} must not be negative; 0 keeps the classes as labels")
        require(self.max_grad_norm >= 0, f"mtt.max_grad_norm {self.max_grad_norm} must not be negative; 0 is no bound")
        require(self.label_epoch >= -1, f"mtt.label_epoch {self.label_epoch} must be at least 0, or -1 for the last epoch")
        for name in ("momentum_lr", "momentum_label"):
            require(0 <= getattr(self, name) < 1, f"mtt.{name} {getattr(self, name)} must lie in [0, 1)")
        check_strategy(self.augment)
        check_engine(self.engine, self.precision, UNROLL_ENGINES)


@dataclass
class MTTPrepared(MethodState):
    """The teachers of the stage, their interval, and the network to unroll."""

    teachers: TrajectorySet
    interval: tuple[int, int]
    network: nn.Module


@register_method("mtt")
class MTT(BaseMethod):
    """Matching training trajectories."""

    config_class = MTTConfig
    uses_teachers = True
    takes_pixel_labels = True

    def check(self, sizes: Sequence[int], intervals: Intervals, teachers: TeacherConfig, training: TrainingRecipe) -> None:
        """Raises ConfigError unless the interval, and the epoch of soft labels, of every stage is within those recorded."""
        for index, interval in enumerate(intervals, start=1):
            check_interval(interval, index, self.config.expert_epochs, teachers)
            if self.config.lr_label:
                self._label_epoch(index, teachers)

    def initial_lr(self, index: int) -> float:
        """Returns the initial step size of stage k = `index`."""
        return self.config.syn_lr if index == 1 else self.config.later_syn_lr

    def initialise(self, stage: Stage) -> Trainable:
        """Returns random real images and a learned step size; with `lr_label`, the labels are learned too.

        Raises:
            ConfigError: `lr_label` is set, but the labels are of pixels; or PyTorch cannot differentiate the network twice.
        """
        config = self.config
        stage.check_second_derivatives("mtt", config.engine == "compiled")  # before the hours that teachers take
        problem = f"mtt.lr_label {config.lr_label} learns one soft label an image, which does not fit labels of pixels"
        require(not config.lr_label or stage.labels.dim() == 1, f"{problem}; set mtt.lr_label=0")
        trainable = super().initialise(stage)
        trainable.lr.requires_grad_()
        trainable.optimizers["lr"] = torch.optim.SGD([trainable.lr], lr=config.lr_lr, momentum=config.momentum_lr)
        if config.lr_label:
            trainable.labels = self._teacher_logits(stage, trainable.images).requires_grad_()
            trainable.logits = True
            optimizer = torch.optim.SGD([trainable.labels], lr=config.lr_label, momentum=config.momentum_label)
            trainable.optimizers["labels"] = optimizer
        return trainable

    def _teacher_logits(self, stage: Stage, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits of the first teacher after `label_epoch` epochs."""
        epoch = self._label_epoch(stage.index, stage.teachers)
        network = stage.make_network(stage.seed, "labelling network")
        load_parameters(network, record_stage_teachers(stage).segment(0, 0, epoch)[1])
        return network.eval()(images).detach()

    def _label_epoch(self, index: int, teachers: TeacherConfig) -> int:
        """Returns `label_epoch` of stage k = `index`; raises ConfigError if that epoch is not recorded."""
        epoch, last = self.config.label_epoch, teachers.recorded_epochs(index)
        require(epoch <= last, f"mtt.label_epoch {epoch} exceeds the {last} epochs recorded in stage {index}; lower it")
        return last if epoch == -1 else epoch

    def prepare(self, stage: Stage) -> MTTPrepared:
        """Records the teachers of the stage, or opens them if another run has recorded them."""
        check_interval(stage.interval, stage.index, self.config.expert_epochs, stage.teachers)
        teachers = record_stage_teachers(stage)
        network = stage.make_network(stage.seed, "unrolled network")  # `unroll` does not use its parameters
        return MTTPrepared(teachers.seconds, teachers, stage.interval, network)

    def step(
        self, prepared: MTTPrepared, trainable: Trainable, frozen: SubsetSequence, generator: torch.Generator
    ) -> torch.Tensor:
        """Trains on S_1 ∪ … ∪ S_k from a teacher's parameters at epoch e, and matches its parameters at epoch e + M."""
        config = self.config
        first, end = prepared.interval
        teacher = int(torch.randint(len(prepared.teachers), (), generator=generator))
        epoch = int(torch.randint(first, end - config.expert_epochs, (), generator=generator))
        segment = prepared.teachers.segment(teacher, epoch, epoch + config.expert_epochs)
        start, target = (parameters.to(trainable.images) for parameters in segment)
        images, labels = frozen.then(trainable.freeze_view()).union()
        batch_size = config.batch_syn or len(trainable.images)
        batches = draw_batches(images, batch_size, config.syn_steps, config.augment, generator)
        reached = unroll(prepared.network, start, images, labels, batches, trainable.lr, config.engine, config.precision)
        loss = matching_loss(reached, start, target)
        loss.backward()
        if config.max_grad_norm:
            clip_gradients(trainable, config.max_grad_norm)
        return loss.detach()

    def effort(self, sizes: list[int], num_classes: int) -> Effort:
        """Returns the cost of the inner loops; "higher" keeps the graph of all steps, about 4 times their activations."""
        config = self.config
        batches = [min(config.batch_syn or size, union) for size, union in zip(sizes, accumulate(sizes), strict=True)]
        passes = config.iterations * config.syn_steps * sum(batches) * (GRADIENT_PASSES + ADJOINT_PASSES)
        higher = config.engine == "higher"
        images = max(batches) * (4 * config.syn_steps if higher else 1)
        variant = "higher" if higher else f"compiled {config.precision}"
        return Effort(passes, images, config.syn_steps + 4, variant, "inner_steps")


def matching_loss(reached: torch.Tensor, start: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns ‖θ̂_N − θ*_{e+M}‖² / ‖θ*_e − θ*_{e+M}‖² of (P,) parameters: reached, at the start, and aimed at."""
    return (reached - target).square().sum() / (start - target).square().sum()


def clip_gradients(trainable: Trainable, max_grad_norm: float) -> None:
    """Scales all gradients in place by one factor, so that the norm of the images' gradient is at most `max_grad_norm`."""
    factor = (max_grad_norm / trainable.images.grad.norm()).clamp(max=1)
    for leaf in trainable.leaves.values():
        if leaf.grad is not None:
            leaf.grad.mul_(factor)


def check_interval(interval: tuple[int, int], index: int, expert_epochs: int, teachers: TeacherConfig) -> None:
    """Raises ConfigError unless the interval of stage `index` is longer than a segment and within the recorded epochs."""
    first, end = interval
    recorded = teachers.recorded_epochs(index)
    field = "teachers.epochs" if index == 1 else "teachers.later_epochs"
    name = f"interval {first}-{end} of stage {index}"
    rule = f"must start at 0 or later and be longer than mtt.expert_epochs ({expert_epochs})"
    fits = first >= 0 and first + expert_epochs < end
    require(fits, f"{name} {rule}; change the interval or lower mtt.expert_epochs")
    require(end <= recorded, f"{name} exceeds the {recorded} epochs recorded; raise {field} or lower intervals")


def draw_batches(
    images: torch.Tensor, batch_size: int, steps: int, augment: str, generator: torch.Generator
) -> list[InnerBatch]:
    """Draws the batches of an inner loop: a random order is cut into batches, and then a new order is drawn.

    Args:
        images: (N, C, H, W).
        batch_size: images in each batch, at most N; the smaller last batch of an order comes first, as in the public code.
        steps: number of batches.
        augment: DSA strategy, drawn anew for each batch.
        generator: a CPU generator.
    """
    batches, chunks = [], []
    for _ in range(steps):
        if not chunks:
            order = torch.randperm(len(images), generator=generator).to(images.device, non_blocking=True)
            chunks = list(order.split(batch_size))
        rows = chunks.pop()
        augmentation = draw_augmentation(augment, len(rows), images.shape[2:], generator, device=images.device)
        batches.append(InnerBatch(rows, augmentation))
    return batches

"""MTT: match the parameters that real training reaches (Cazenavette et al., CVPR 2022, Algorithm 1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from seqmatch_lib.engine.augment import DSA_STRATEGY, check_strategy, draw_augmentation
from seqmatch_lib.engine.inner_loop import InnerBatch, check_engine, unroll
from seqmatch_lib.engine.networks import load_parameters
from seqmatch_lib.engine.step_functions import ADJOINT_PASSES, GRADIENT_PASSES
from seqmatch_lib.engine.training import TrainingRecipe
from seqmatch_lib.errors import require
from seqmatch_lib.methods.base import BaseMethod, Effort, MethodState, Stage, Trainable, register_method
from seqmatch_lib.methods.teachers import TeacherConfig, TrajectorySet, record_stage_teachers
from seqmatch_lib.store.settings import omit_default
from seqmatch_lib.subsets import SubsetSequence


@dataclass(frozen=True)
class MTTConfig:
    """Hyperparameters of MTT, named as in the public code.

    Args:
        iterations: outer steps, each on one teacher segment.
        syn_steps: inner steps on the synthetic images (N in the paper).
        expert_epochs: epochs between the teacher's start and its target (M).
        batch_syn: synthetic images an inner step; 0 takes as many as the stage's subset holds, the public default.
        lr_img: learning rate of the images.
        lr_lr: learning rate of the step size.
        syn_lr: step size to begin with in stage 1 (`lr_teacher` in the public code).
        later_syn_lr: the same for stages k >= 2.
        momentum_img: of the image optimiser.
        momentum_lr: of the step-size optimiser.
        augment: DSA strategy in the inner loop, or "none".
        engine: and `precision`: of `unroll`.
        lr_label: learning rate of soft labels, learned with the images as logits (`lr_y` in the public DATM code); 0 keeps
            the classes.
        momentum_label: of their optimiser (SGD).
        label_epoch: epochs of the teacher whose logits on the initial images the labels begin with; at most the recorded
            ones (`Label_Model_Timestamp`; -1 there and here for the last one).
        max_grad_norm: all gradients of an iteration are scaled by one factor so that that of the images is at most this
            long; 0 leaves them as they are, as the public codes do. Single iterations can have gradients many times as long
            as the others, and one of them can undo a hundred iterations.

    Source: the public MTT code; for soft labels Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned
    Trajectory Matching" (DATM), ICLR 2024.
    """

    iterations: int = 5000
    syn_steps: int = 30
    expert_epochs: int = 2
    batch_syn: int = 0
    lr_img: float = 100.0
    lr_lr: float = 1e-5
    syn_lr: float = 0.01
    later_syn_lr: float = 0.01
    momentum_img: float = 0.5
    momentum_lr: float = 0.5
    augment: str = DSA_STRATEGY
    engine: str = "higher"
    precision: str = "float32"
    lr_label: float = omit_default(0.0)
    momentum_label: float = omit_default(0.9)
    label_epoch: int = omit_default(-1)
    max_grad_norm: float = omit_default(0.0)

    def __post_init__(self) -> None:
        for name in ("iterations", "syn_steps", "expert_epochs"):
            require(getattr(self, name) >= 1, f"mtt.{name} {getattr(self, name)} must be at least 1")
        require(self.batch_syn >= 0, f"mtt.batch_syn {self.batch_syn} must not be negative; 0 takes a whole subset")
        for name in ("lr_img", "syn_lr", "later_syn_lr"):
            require(getattr(self, name) > 0, f"mtt.{name} {getattr(self, name)} must be positive")
        require(self.lr_lr >= 0, f"mtt.lr_lr {self.lr_lr} must not be negative; 0 keeps the step size fixed")
        require(self.lr_label >= 0, f"mtt.lr_label {self.lr_label} must not be negative; 0 keeps the classes as labels")
        require(self.max_grad_norm >= 0, f"mtt.max_grad_norm {self.max_grad_norm} must not be negative; 0 limits nothing")
        require(self.label_epoch >= -1, f"mtt.label_epoch {self.label_epoch} must be an epoch, or -1 for the last one")
        for name in ("momentum_img", "momentum_lr", "momentum_label"):
            require(0 <= getattr(self, name) < 1, f"mtt.{name} {getattr(self, name)} must lie in [0, 1)")
        check_strategy(self.augment)
        check_engine(self.engine, self.precision)


@dataclass
class MTTPrepared(MethodState):
    """What MTT needs in a stage: the teachers, their interval, and a network to unroll."""

    teachers: TrajectorySet
    interval: tuple[int, int]
    network: nn.Module


@register_method("mtt")
class MTT(BaseMethod):
    """Matching training trajectories."""

    config_class = MTTConfig
    uses_teachers = True

    def check(self, intervals: Sequence[tuple[int, int]], teachers: TeacherConfig, training: TrainingRecipe) -> None:
        """Raises ConfigError unless a segment fits each interval, and each interval the recorded epochs of its stage."""
        for index, interval in enumerate(intervals, start=1):
            check_interval(interval, index, self.config.expert_epochs, teachers)

    def initial_lr(self, index: int) -> float:
        """Returns the step size that stage k = `index` begins with."""
        return self.config.syn_lr if index == 1 else self.config.later_syn_lr

    def initialise(self, stage: Stage) -> Trainable:
        """Returns random real images, their classes or a teacher's logits on them (learned), and a step size (learned)."""
        config = self.config
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
        """Returns the first teacher's logits after `label_epoch` epochs."""
        recorded = stage.teachers.recorded_epochs(stage.index)
        epoch = recorded if self.config.label_epoch == -1 else self.config.label_epoch
        require(
            epoch <= recorded,
            f"mtt.label_epoch {epoch} exceeds the {recorded} epochs recorded in stage {stage.index}; lower it",
        )
        network = stage.make_network(stage.seed, "labelling network")
        load_parameters(network, record_stage_teachers(stage).segment(0, 0, epoch)[1])
        return network.eval()(images).detach()

    def prepare(self, stage: Stage) -> MTTPrepared:
        """Records the teachers of the stage, or opens them if another run with the same settings made them.

        Raises:
            ConfigError: the stage's interval is shorter than a segment, or reaches beyond the recorded epochs.
        """
        check_interval(stage.interval, stage.index, self.config.expert_epochs, stage.teachers)
        teachers = record_stage_teachers(stage)
        network = stage.make_network(stage.seed, "unrolled network")  # every start overwrites its parameters
        return MTTPrepared(teachers.seconds, teachers, stage.interval, network)

    def step(
        self, prepared: MTTPrepared, trainable: Trainable, frozen: SubsetSequence, generator: torch.Generator
    ) -> torch.Tensor:
        """Trains on S_1 ∪ … ∪ S_k from a teacher's epoch e and matches the teacher's epoch e + M.

        Returns:
            ‖θ̂_N − θ*_{e+M}‖² / ‖θ*_e − θ*_{e+M}‖², detached.
        """
        config = self.config
        start, target = self._draw_segment(prepared, generator)
        start, target = start.to(trainable.images), target.to(trainable.images)
        images, labels = frozen.then(trainable.freeze_view()).union()
        batch_size = config.batch_syn or len(trainable.images)
        batches = draw_batches(images, batch_size, config.syn_steps, config.augment, generator)
        reached = unroll(prepared.network, start, images, labels, batches, trainable.lr, config.engine, config.precision)
        loss = (reached - target).square().sum() / (start - target).square().sum()
        loss.backward()
        if config.max_grad_norm:
            clip_gradients(trainable, config.max_grad_norm)
        return loss.detach()

    def effort(self, sizes: list[int], num_classes: int) -> Effort:
        """Returns what the inner loops cost; `higher` keeps the graph of all steps, about four times the activations."""
        config = self.config
        unions = [sum(sizes[: k + 1]) for k in range(len(sizes))]
        batches = [min(config.batch_syn or size, union) for size, union in zip(sizes, unions, strict=True)]
        passes = config.iterations * config.syn_steps * sum(batches) * (GRADIENT_PASSES + ADJOINT_PASSES)
        higher = config.engine == "higher"
        kept = 4 * config.syn_steps if higher else 1
        variant = "higher" if higher else f"compiled {config.precision}"
        return Effort(passes, kept * max(batches), config.syn_steps + 4, variant, "inner_steps")

    def _draw_segment(self, prepared: MTTPrepared, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws a teacher, and a start epoch uniformly from [first, end - M)."""
        first, end = prepared.interval
        length = self.config.expert_epochs
        teacher = int(torch.randint(len(prepared.teachers), (), generator=generator))
        epoch = int(torch.randint(first, end - length, (), generator=generator))
        return prepared.teachers.segment(teacher, epoch, epoch + length)


def clip_gradients(trainable: Trainable, max_grad_norm: float) -> None:
    """Scales the gradients of an iteration by one factor, in place, so that the images' norm is at most `max_grad_norm`."""
    factor = (max_grad_norm / trainable.images.grad.norm()).clamp(max=1)
    for leaf in (trainable.images, trainable.labels, trainable.lr):
        if leaf.grad is not None:
            leaf.grad.mul_(factor)


def check_interval(interval: tuple[int, int], index: int, expert_epochs: int, teachers: TeacherConfig) -> None:
    """Raises ConfigError unless a segment of `expert_epochs` fits the interval and the recorded epochs of stage `index`."""
    first, end = interval
    recorded = teachers.recorded_epochs(index)
    field = "teachers.epochs" if index == 1 else "teachers.later_epochs"
    require(
        first >= 0 and first + expert_epochs < end,
        f"interval {first}-{end} of stage {index} holds no start epoch below end - mtt.expert_epochs ({expert_epochs}); "
        "lengthen the interval or lower mtt.expert_epochs",
    )
    require(
        end <= recorded,
        f"interval {first}-{end} of stage {index} exceeds the {recorded} epochs recorded; raise {field} or lower intervals",
    )


def draw_batches(
    images: torch.Tensor, batch_size: int, steps: int, augment: str, generator: torch.Generator
) -> list[InnerBatch]:
    """Draws the batches of an inner loop: random order, cut into chunks, a new order when the chunks are used up.

    Args:
        images: (N, C, H, W), from which the batches will be taken.
        batch_size: images a step, clipped to N; the smaller last chunk of an order comes first, as in the public code.
        steps: number of batches.
        augment: DSA strategy, drawn anew for each batch.
        generator: a CPU generator.
    """
    batches: list[InnerBatch] = []
    chunks: list[torch.Tensor] = []
    while len(batches) < steps:
        if not chunks:
            order = torch.randperm(len(images), generator=generator).to(images.device, non_blocking=True)
            chunks = list(order.split(batch_size))
        rows = chunks.pop()
        drawn = draw_augmentation(augment, len(rows), images.shape[2:], generator, device=images.device)
        batches.append(InnerBatch(rows, drawn))
    return batches

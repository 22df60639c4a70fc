"""The coupling issue, measured: what the paper argues, as quantities of one set, one network, one teacher.

Source: Du et al., NeurIPS 2023, section 3. Joint optimisation keeps condensing what networks learn early: images are drawn to
repair the errors of the others instead of adding later knowledge. The definitions that make this computable are ours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from seqmatch_lib.data.datasets import Split
from seqmatch_lib.engine.evaluation import train_staged
from seqmatch_lib.engine.inner_loop import InnerBatch, unroll
from seqmatch_lib.engine.networks import load_parameters
from seqmatch_lib.engine.training import TrainingRecipe, compute_logits, make_trainer
from seqmatch_lib.errors import require
from seqmatch_lib.methods.mtt import MTTConfig, matching_loss
from seqmatch_lib.methods.teachers import TeacherConfig, TrajectorySet
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.subsets import SubsetSequence


def image_losses(network: nn.Module, split: Split) -> torch.Tensor:
    """Returns the (N,) cross-entropies of single images, without augmentation."""
    return F.cross_entropy(compute_logits(network, split.images), split.labels, reduction="none")


def follow_real_training(
    network: nn.Module, real: Split, config: TeacherConfig, epochs: int, generator: torch.Generator, watched: Split
) -> torch.Tensor:
    """Trains a network in place on real images as teachers are, and watches every image.

    Args:
        network: fresh.
        real: images to train on.
        config: how.
        epochs: of training.
        generator: of batches and augmentation.
        watched: images to watch, the same or others.

    Returns:
        (epochs + 1, N) losses of the watched images, before the first epoch and after each.
    """
    losses = [image_losses(network, watched)]
    trainer = make_trainer([network], replace(config.recipe, engine="eager", precision="float32"), config.lr)
    for _ in range(epochs):
        trainer.epoch(real.images, real.labels, [generator])
        losses.append(image_losses(network, watched))
    return torch.stack(losses)


def split_easy_hard(losses: torch.Tensor) -> torch.Tensor:
    """Returns (N,) booleans: True for the half of the images whose loss falls most in the first epoch.

    The (epochs + 1, N) losses are those of `follow_real_training`.
    """
    drop = losses[0] - losses[1]
    easy = torch.zeros(len(drop), dtype=torch.bool, device=drop.device)
    easy[drop.argsort(descending=True)[: len(drop) // 2]] = True
    return easy


def difficulty_deciles(losses: torch.Tensor) -> torch.Tensor:
    """Returns (N,) numbers 0 (easiest) to 9 by the mean loss over a training, as `follow_real_training` returns it."""
    ranks = losses[1:].mean(0).argsort().argsort()
    return ranks * 10 // len(ranks)


def mean_losses(losses: torch.Tensor, easy: torch.Tensor, training: str) -> pd.DataFrame:
    """Returns mean losses of easy and hard images: columns training, step, images, loss, rate.

    Args:
        losses: (steps + 1, N).
        easy: (N,) of `split_easy_hard`.
        training: names what the network was trained on.

    Returns:
        `rate` is the fall of the mean loss since the step before; it is missing at step 0.
    """
    frames = [
        pd.DataFrame({"training": training, "step": range(len(losses)), "images": name, "loss": means.tolist()})
        for name, means in (("easy", losses[:, easy].mean(1)), ("hard", losses[:, ~easy].mean(1)))
    ]
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(rate=frame.groupby("images")["loss"].shift() - frame["loss"])


def follow_staged_training(
    network: nn.Module, sequence: SubsetSequence, recipe: TrainingRecipe, real: Split, generator: torch.Generator
) -> torch.Tensor:
    """Trains a network in place on S_1, then on S_1 ∪ S_2, …, and watches real images.

    Returns:
        (K + 1, N) losses of the real images, before the first stage and after each.
    """
    losses = [image_losses(network, real)]
    train_staged([network], sequence, recipe, [generator], lambda: losses.append(image_losses(network, real)))
    return torch.stack(losses)


def group_accuracies(network: nn.Module, split: Split, groups: torch.Tensor) -> dict[int, float]:
    """Returns the accuracy in per cent in each group of images, such as their classes or deciles of difficulty.

    Args:
        network: trained.
        split: N images.
        groups: (N,) int64, the group of each image.
    """
    right = compute_logits(network, split.images).argmax(1) == split.labels
    return {group: 100 * right[groups == group].double().mean().item() for group in groups.unique().tolist()}


class MatchingLoss:
    """The matching loss of MTT at one teacher segment, with whole sets as batches and no augmentation.

    L(S) = ‖θ̂(S) − θ*‖² / ‖θ_e − θ*‖², where θ̂(S) is reached from θ_e by `steps` steps on all of S.

    Args:
        network: the architecture.
        segment: (P,) teacher parameters θ_e and θ* = θ_{e+M}; they are taken to the device of the network.
        steps: inner steps.
        lr: step size.
        engine: of the inner loop, as in `unroll`, always in float32.
    """

    def __init__(
        self, network: nn.Module, segment: tuple[torch.Tensor, torch.Tensor], steps: int, lr: float, engine: str = "higher"
    ) -> None:
        require(steps >= 1, f"steps {steps} must be at least 1")
        self._network, self._steps, self._engine = network, steps, engine
        self._start, self._target = (part.to(next(network.parameters()).device) for part in segment)
        self._lr = self._start.new_tensor(lr)

    def reach(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns θ̂(S), differentiable in the images."""
        batch = InnerBatch(torch.arange(len(images), device=images.device), ())
        return unroll(self._network, self._start, images, labels, [batch] * self._steps, self._lr, self._engine)

    def error(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Returns L(S): 0 if the target is reached, 1 if the student came no nearer to it."""
        return matching_loss(self.reach(images, labels).detach(), self._start, self._target).item()

    def gradient(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns ∇L with respect to the images."""
        leaf = images.detach().clone().requires_grad_()
        return torch.autograd.grad(matching_loss(self.reach(leaf, labels), self._start, self._target), leaf)[0]

    def coupling(self, a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> float:
        """Returns c(A|B) = ‖∇_A L(A ∪ B) − ∇_A L(A)‖ / ‖∇_A L(A)‖: how far the presence of B changes A's gradient.

        Where B only shares the mean loss with A, as a copy of A would, it is the share of B among all images: one half if A
        and B are equally many.

        Args:
            a: images and labels of A.
            b: images and labels of B.
        """
        alone = self.gradient(*a)
        together = self.gradient(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]]))[: len(a[0])]
        return ((together - alone).norm() / alone.norm()).item()

    def repair_share(self, a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> float:
        """Returns the cosine between B's gradient and the part of it that would vanish if A's matching error were zero.

        With the residuals r_A = θ̂(A) − θ* and r = θ̂(A ∪ B) − θ* = r_A + (θ̂(A ∪ B) − θ̂(A)), and J_B the derivative of
        θ̂(A ∪ B) with respect to B, B's gradient is 2 J_Bᵀ r / scale, and the part that A's error causes 2 J_Bᵀ r_A / scale.
        A cosine of 1 says that B is drawn to what A leaves and to nothing else. It is near 1, too, where r ≈ r_A whatever B
        holds: at few steps, and for a copy of A. So it means something beside the same number for random real images.
        """
        residual_of_a = self.reach(*a).detach() - self._target
        own = b[0].detach().clone().requires_grad_()
        reached = self.reach(torch.cat([a[0].detach(), own]), torch.cat([a[1], b[1]]))
        (whole,) = torch.autograd.grad(reached, own, reached.detach() - self._target, retain_graph=True)
        (repair,) = torch.autograd.grad(reached, own, residual_of_a)
        return ((whole * repair).sum() / (whole.norm() * repair.norm())).item()


def errors_along_trajectory(
    network: nn.Module,
    teachers: TrajectorySet,
    sequence: SubsetSequence,
    mtt: MTTConfig,
    epochs: Iterable[int],
    which: Iterable[int] | None = None,
) -> pd.DataFrame:
    """Returns the matching error of a set as a function of the start epoch: columns epoch, teacher, error.

    Args:
        network: the architecture.
        teachers: recorded trajectories.
        sequence: the set, all of whose images are trained on at once, with the last step size.
        mtt: its settings: inner steps, M, engine.
        epochs: start epochs e; each e + M must have been recorded.
        which: numbers of the teachers to take; all by default.
    """
    rows, lr = [], sequence.subsets[-1].lr
    for epoch, teacher in product(epochs, range(len(teachers)) if which is None else which):
        segment = teachers.segment(teacher, epoch, epoch + mtt.expert_epochs)
        error = MatchingLoss(network, segment, mtt.syn_steps, lr, mtt.engine).error(*sequence.union())
        rows.append({"epoch": epoch, "teacher": teacher, "error": error})
    return pd.DataFrame(rows)


def errors_of_real_training(
    network: nn.Module,
    teachers: TrajectorySet,
    real: Split,
    config: TeacherConfig,
    expert_epochs: int,
    epochs: Iterable[int],
    which: Iterable[int],
    seed: int,
) -> pd.DataFrame:
    """Returns the matching error of real training itself: columns epoch, teacher, error.

    A network is trained from the start of a teacher's segment, for as many epochs and in the same way, but with other batches
    and augmentation. Each of the two movements is a part that both share, plus chance. The error counts the chance of both. A
    student that makes the shared movement alone would have half of this error. No set can be expected to have a smaller one.

    Args:
        network: the architecture; its parameters are replaced.
        teachers: recorded trajectories.
        real: images that the teachers were trained on.
        config: how they were trained. A momentum, which segments do not hold, begins at zero.
        expert_epochs: M.
        epochs: start epochs e; each e + M must have been recorded.
        which: numbers of the teachers to take.
        seed: of batches and augmentation.
    """
    rows = []
    for epoch, teacher in product(epochs, which):
        segment = [part.to(real.images) for part in teachers.segment(teacher, epoch, epoch + expert_epochs)]
        load_parameters(network, segment[0])
        trainer = make_trainer([network], config.recipe, config.lr)
        generator = make_generator(seed, "real training", teacher, epoch)
        for _ in range(expert_epochs):
            trainer.epoch(real.images, real.labels, [generator])
        rows.append({"epoch": epoch, "teacher": teacher, "error": matching_loss(trainer.parameters()[0], *segment).item()})
    return pd.DataFrame(rows)


def coupling_of_subsets(
    matches: Sequence[MatchingLoss], images: torch.Tensor, labels: torch.Tensor, num_classes: int, sizes: Sequence[int]
) -> pd.DataFrame:
    """Returns how strongly the first half of each class is coupled with the second, as the set grows.

    Args:
        matches: the quantities are taken at each of them.
        images: (classes * ipc, C, H, W), sorted by class.
        labels: of the images.
        num_classes: number of classes.
        sizes: images per class of A ∪ B, each even and at most ipc.

    Returns:
        Columns ipc, match, coupling (c(A|B)), repair_share.
    """
    ipc = len(images) // num_classes
    by_class, labels_by_class = images.unflatten(0, (num_classes, ipc)), labels.unflatten(0, (num_classes, ipc))
    rows = []
    for size in sizes:
        require(size % 2 == 0 and 2 <= size <= ipc, f"size {size} must be even and between 2 and ipc {ipc}")
        parts = slice(0, size // 2), slice(size // 2, size)
        halves = [(by_class[:, part].flatten(0, 1), labels_by_class[:, part].flatten(0, 1)) for part in parts]
        for number, match in enumerate(matches):
            coupling, share = match.coupling(*halves), match.repair_share(*halves)
            rows.append({"ipc": size, "match": number, "coupling": coupling, "repair_share": share})
    return pd.DataFrame(rows)

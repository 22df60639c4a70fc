"""Evaluation of a distilled set: the test accuracy of fresh networks that are trained on it, stage by stage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from seqmatch_lib.data.datasets import Split
from seqmatch_lib.engine.networks import NETWORKS, REGISTER_NETWORK, NetworkConfig, make_network
from seqmatch_lib.engine.step_functions import batch_loss
from seqmatch_lib.engine.training import TrainingCheckpoint, TrainingRecipe, compute_logits, measure_accuracy, train_stage
from seqmatch_lib.errors import NotRegisteredError, require
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.store.settings import omit_default
from seqmatch_lib.subsets import SubsetSequence


@dataclass(frozen=True)
class EvaluationConfig:
    """The networks that a distilled set is evaluated with, and how iterates are scored during distillation.

    Args:
        num_networks: networks of each architecture, at least 1; the published protocol has 5.
        networks: architectures of `NETWORKS`; the first one gives the headline accuracy.
        real_lr: step size for training on real images, for which none is learned.
        num_selections: iterates of each stage that are scored to select the best; evenly spaced, the last one included. 50 of
            5,000 iterations are one in 100, as in the public MTT code.
        score_test: whether the same iterates are also scored on the test images. These scores select nothing; they show the
            protocol of the public code, which reports the best test accuracy of all iterates.
    """

    num_networks: int = 5
    networks: tuple[str, ...] = ("convnet",)
    real_lr: float = 0.01
    num_selections: int = 50
    score_test: bool = omit_default(False)

    def __post_init__(self) -> None:
        require(self.num_networks >= 1, f"evaluation.num_networks {self.num_networks} must be at least 1")
        require(len(self.networks) >= 1, "evaluation.networks is empty; name at least one network")
        unknown = sorted(set(self.networks) - set(NETWORKS))
        problem = f"evaluation.networks has unknown names {unknown}; use any of {', '.join(NETWORKS)}"
        require(not unknown, f"{problem}; {REGISTER_NETWORK}", NotRegisteredError)
        require(self.real_lr > 0, f"evaluation.real_lr {self.real_lr} must be positive")
        require(self.num_selections >= 1, f"evaluation.num_selections {self.num_selections} must be at least 1")


NOT_LEARNED = "on the set itself they are no better than guessing; the step size may be too large"


def summarise(values: Sequence[float], not_learned: int = 0) -> dict[str, Any]:
    """Returns accuracies as records hold them: mean, std (n - 1; 0 for a single network), n, values, to 4 decimals.

    Args:
        values: in per cent, of networks that differ in their seed alone, in the order of the network's index.
        not_learned: number of networks that learned nothing, whose accuracies mean nothing; left out if it is 0.
    """
    rounded = [round(value, 4) for value in values]
    std = stdev(values) if len(values) > 1 else 0.0
    failed = {"not_learned": not_learned} if not_learned else {}
    return {"mean": round(fmean(values), 4), "std": round(std, 4), "n": len(rounded), "values": rounded, **failed}


def format_accuracy(accuracy: Mapping[str, Any]) -> str:
    """Returns what `summarise` returned as a text."""
    failed = f"; {accuracy['not_learned']} of them learned nothing: {NOT_LEARNED}" if "not_learned" in accuracy else ""
    return f"{format_mean(accuracy)} % (n = {accuracy['n']}{failed})"


def format_mean(accuracy: Mapping[str, Any]) -> str:
    """Returns mean and standard deviation as a text; one network has no deviation."""
    return f"{accuracy['mean']:.1f}" + (f" ± {accuracy['std']:.1f}" if accuracy["n"] > 1 else "")


def train_staged(
    networks: Sequence[nn.Module],
    sequence: SubsetSequence,
    recipe: TrainingRecipe,
    generators: Sequence[torch.Generator],
    after_stage: Callable[[], None] = lambda: None,
    checkpoint: TrainingCheckpoint | None = None,
) -> None:
    """Trains networks in place on S_1, then on S_1 ∪ S_2, …, each stage with its own step size, or that of the recipe.

    K = 1 is ordinary training, and `sequence.joint()` turns any sequence into K = 1. `after_stage` is called after each stage,
    for example to measure the networks. The other arguments are those of `train_stage`.

    Source: Algorithm 1 of SeqMatch. The evaluation in its public code drops the stages 2 … K - 1; this one does not.
    """
    for stage, subset in enumerate(sequence.subsets, start=1):
        images, labels = sequence.union(stage)
        train_stage(networks, images, labels, recipe.lr or subset.lr, recipe, generators, stage, checkpoint)
        after_stage()


@dataclass(frozen=True)
class EvaluationProtocol:
    """How fresh networks are trained on a set and tested.

    Args:
        num_classes: number of logits.
        recipe: of each stage of training.
        seed: of the evaluation.
    """

    num_classes: int
    recipe: TrainingRecipe
    seed: int

    def accuracies(self, sequence: SubsetSequence, test: Split, network: NetworkConfig, indices: Sequence[int]) -> list[float]:
        """Returns the accuracies in per cent on held-out images; arguments as in `evaluate`."""
        return self.evaluate(sequence, test, network, indices)[0]

    def evaluate(
        self,
        sequence: SubsetSequence,
        test: Split,
        network: NetworkConfig,
        indices: Sequence[int],
        checkpoint: TrainingCheckpoint | None = None,
    ) -> tuple[list[float], list[bool]]:
        """Trains networks on a set; returns their accuracies in per cent, and for each whether it has learned anything.

        Where the step size is too large, training ends in an accuracy like any other. A network has learned nothing if it
        answers the same to all images of the set, or if its loss on them is neither below that of equal probabilities for
        all classes nor below what it was before training.

        Args:
            sequence: the set; the networks are made on its device.
            test: held-out images.
            network: the architecture.
            indices: of the networks within the evaluation; they decide each network's start and batches.
            checkpoint: as in `train_stage`.
        """
        kind, learned = self.recipe.loss, []
        images, targets = sequence.union()
        networks, generators = self._start(sequence, network, indices)
        before = [batch_loss(kind, compute_logits(fresh, images), targets).item() for fresh in networks]
        train_staged(networks, sequence, self.recipe, generators, checkpoint=checkpoint)
        for trained, first in zip(networks, before, strict=True):
            logits = compute_logits(trained, images)
            loss, guessing = (batch_loss(kind, answer, targets).item() for answer in (logits, torch.zeros_like(logits)))
            learned.append(bool((logits != logits[:1]).any()) and (loss < guessing or loss < first))
        return [measure_accuracy(trained, test) for trained in networks], learned

    def score(
        self,
        sequence: SubsetSequence,
        splits: Sequence[Split],
        network: NetworkConfig,
        checkpoint: TrainingCheckpoint | None = None,
    ) -> list[float]:
        """Trains the network of index 0, from its checkpoint if any; returns its accuracy on each split in per cent."""
        networks, generators = self._start(sequence, network, [0])
        train_staged(networks, sequence, self.recipe, generators, checkpoint=checkpoint)
        return [measure_accuracy(networks[0], split) for split in splits]

    def _start(
        self, sequence: SubsetSequence, network: NetworkConfig, indices: Sequence[int]
    ) -> tuple[list[nn.Module], list[torch.Generator]]:
        """Returns fresh networks, and the generators of their batches."""
        images = sequence.subsets[0].images
        networks, generators = [], []
        for index in indices:
            purpose = ("evaluation", network.name, index)
            start = make_generator(self.seed, *purpose, "start")
            networks.append(make_network(network, tuple(images.shape[1:]), self.num_classes, start).to(images.device))
            generators.append(make_generator(self.seed, *purpose, "batches"))
        return networks, generators

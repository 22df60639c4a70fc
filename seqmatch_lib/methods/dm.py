"""DM: match the mean features of random networks, class by class (Zhao and Bilen, WACV 2023)."""

from dataclasses import dataclass

import torch
from torch import nn

from seqmatch_lib.engine.augment import DSA_STRATEGY, augment_alike, check_strategy
from seqmatch_lib.errors import require
from seqmatch_lib.methods.base import BaseMethod, Effort, MethodState, Stage, Trainable, register_method
from seqmatch_lib.subsets import SubsetSequence

FEATURE_PASSES = 3  # of a synthetic image: its features, and their derivative in the image


@dataclass(frozen=True)
class DMConfig:
    """Hyperparameters of DM, named as in its public code.

    Args:
        iterations: steps, each on all classes.
        lr_img: learning rate of the images.
        momentum_img: of the image optimiser.
        batch_real: real images of a class in a step.
        augment: DSA strategy, one draw for the real and synthetic images of a class.
        syn_lr: step size for training on the set (`lr_net`); DM learns none.
        fix_iter: steps before a new random network is drawn; 1 in the public code.
        later_fix_iter: the same in stages k >= 2, where each network is first trained on S_1 … S_{k-1}.

    Source: `main_DM.py` of the public code; under SeqMatch as in SeqMatch-IDC, whose option `fix_iter` this is.
    """

    iterations: int = 20_000
    lr_img: float = 1.0
    momentum_img: float = 0.5
    batch_real: int = 256
    augment: str = DSA_STRATEGY
    syn_lr: float = 0.01
    fix_iter: int = 1
    later_fix_iter: int = 50

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_real", "fix_iter", "later_fix_iter"):
            require(getattr(self, name) >= 1, f"dm.{name} {getattr(self, name)} must be at least 1")
        for name in ("lr_img", "syn_lr"):
            require(getattr(self, name) > 0, f"dm.{name} {getattr(self, name)} must be positive")
        require(0 <= self.momentum_img < 1, f"dm.momentum_img {self.momentum_img} must lie in [0, 1)")
        check_strategy(self.augment)


@dataclass
class DMPrepared(MethodState):
    """The real images by class, and the network of the present block of steps."""

    stage: Stage
    rows: list[torch.Tensor]
    block: int = -1
    features: nn.Module | None = None

    def features_of(self, block: int) -> nn.Module:
        """Returns the features of the network of a block of steps; it follows from the seed, whatever came before."""
        if block != self.block:
            (network,) = self.stage.start_networks(self.stage.seed, ("stage", self.stage.index, "features", block))
            self.features = network[:-1].requires_grad_(False)
            self.block = block
        return self.features


@register_method("dm")
class DM(BaseMethod):
    """Matching the distributions of features."""

    config_class = DMConfig

    def prepare(self, stage: Stage) -> DMPrepared:
        """Sorts the real images by class."""
        return DMPrepared(0.0, stage, stage.rows_by_class())

    def step(
        self, prepared: DMPrepared, trainable: Trainable, frozen: SubsetSequence, generator: torch.Generator
    ) -> torch.Tensor:
        """Matches the mean features of every class, those of S_1 ∪ … ∪ S_k with those of real images.

        Returns:
            The squared distances of the means, added up over classes, detached.
        """
        config, stage = self.config, prepared.stage
        fix_iter = config.fix_iter if stage.index == 1 else config.later_fix_iter
        features = prepared.features_of(trainable.iteration // fix_iter)
        sequence = frozen.then(trainable.freeze_view())
        losses = []
        for label, members in enumerate(prepared.rows):
            rows = members[torch.randperm(len(members), generator=generator)[: config.batch_real].to(members.device)]
            own = torch.cat([subset.of_class(label, stage.num_classes)[0] for subset in sequence.subsets])
            real, synthetic = augment_alike([stage.images[rows], own], config.augment, generator)
            with torch.no_grad():
                wanted = features(real.detach()).mean(0)
            loss = (features(synthetic).mean(0) - wanted).square().sum()
            loss.backward()  # class by class, so that one class's activations are kept at a time
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def effort(self, sizes: list[int], num_classes: int) -> Effort:
        """Returns what the features of all images cost."""
        config, passes = self.config, 0.0
        for index in range(1, len(sizes) + 1):
            passes += config.iterations * (num_classes * config.batch_real + FEATURE_PASSES * sum(sizes[:index]))
        starts = (config.iterations / config.fix_iter, *(config.iterations / config.later_fix_iter for _ in sizes[1:]))
        return Effort(passes, config.batch_real, 2, "eager float32", starts=starts)

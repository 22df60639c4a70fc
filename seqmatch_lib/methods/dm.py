"""DM: match the mean features of random networks, class by class (Zhao and Bilen, WACV 2023)."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from seqmatch_lib.engine.augment import DSA_STRATEGY, augment_alike, check_strategy
from seqmatch_lib.errors import require
from seqmatch_lib.methods.base import BaseConfig, BaseMethod, Effort, MethodState, Stage, Trainable, register_method
from seqmatch_lib.subsets import SubsetSequence

FEATURE_PASSES = 3  # cost of a synthetic image: its features, and their derivative in the image


@dataclass(frozen=True)
class DMConfig(BaseConfig):
    """Hyperparameters of DM, beside those of `BaseConfig`; named as in its public code, where `syn_lr` is `lr_net`.

    Args:
        iterations: each on all classes.
        batch_real: real images of each class in an iteration.
        augment: DSA strategy, with one draw for the real and synthetic images of a class.
        fix_iter: iterations with the same random network; 1 in the public code.
        later_fix_iter: the same in stages k >= 2, where each network is first trained on S_1 … S_{k-1}.

    Source: `main_DM.py` of the public code; `fix_iter` is from the public code of SeqMatch-IDC.
    """

    prefix = "dm."

    iterations: int = 20_000
    batch_real: int = 256
    augment: str = DSA_STRATEGY
    fix_iter: int = 1
    later_fix_iter: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_real", "fix_iter", "later_fix_iter"):
            require(getattr(self, name) >= 1, f"dm.{name} {getattr(self, name)} must be at least 1")
        check_strategy(self.augment)


@dataclass
class DMPrepared(MethodState):
    """The indices of the real images of each class, and the features of the network of the current block of iterations."""

    stage: Stage
    rows: list[torch.Tensor]
    block: int = -1
    features: nn.Module | None = None

    def features_of(self, block: int) -> nn.Module:
        """Returns the features of the network of a block of iterations, which depends only on the seed and the block."""
        if block != self.block:
            (network,) = self.stage.start_networks(self.stage.seed, ("stage", self.stage.index, "features", block))
            self.features = network[:-1].requires_grad_(False)
            self.block = block
        return self.features


@register_method("dm")
class DM(BaseMethod):
    """Matching of feature distributions."""

    config_class = DMConfig
    takes_pixel_labels = True

    def prepare(self, stage: Stage) -> DMPrepared:
        """Groups the real images by class; networks are made in `step`."""
        return DMPrepared(0.0, stage, stage.rows_by_class())

    def step(
        self, prepared: DMPrepared, trainable: Trainable, frozen: SubsetSequence, generator: torch.Generator
    ) -> torch.Tensor:
        """Matches, for every class, the mean features of S_1 ∪ … ∪ S_k with those of real images.

        The loss is the squared distance of the means, summed over classes.
        """
        config, stage = self.config, prepared.stage
        fix_iter = config.fix_iter if stage.index == 1 else config.later_fix_iter
        features = prepared.features_of(trainable.iteration // fix_iter)
        sequence = frozen.then(trainable.freeze_view())
        losses = []
        for label, members in enumerate(prepared.rows):
            rows = members[torch.randperm(len(members), generator=generator)[: config.batch_real].to(members.device)]
            images = torch.cat([subset.of_class(label, stage.num_classes)[0] for subset in sequence.subsets])
            real, synthetic = augment_alike([stage.images[rows], images], config.augment, generator)
            with torch.no_grad():
                real_mean = features(real).mean(0)
            loss = (features(synthetic).mean(0) - real_mean).square().sum()
            loss.backward()  # for each class, so that only the activations of one class are kept
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def effort(self, sizes: list[int], num_classes: int) -> Effort:
        """Returns the cost of computing the features."""
        config = self.config
        images = [num_classes * config.batch_real + FEATURE_PASSES * union for union in accumulate(sizes)]
        starts = (config.iterations / config.fix_iter, *(config.iterations / config.later_fix_iter for _ in sizes[1:]))
        return Effort(config.iterations * sum(images), config.batch_real, 2, "eager float32", starts=starts)

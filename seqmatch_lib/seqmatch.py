"""SeqMatch, Algorithm 1: distil S_1 … S_K one after another, each with the earlier ones frozen beside it.

Source: Du et al., "Sequential Subset Matching for Dataset Distillation", NeurIPS 2023. A plain base method is the case
K = 1 of the same loop. `runs/distillation.py` adds resuming, selection of iterates, timing and progress bars.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from seqmatch_lib.errors import ConfigError, DivergenceError, require
from seqmatch_lib.methods.base import BaseMethod, MethodState, Stage, Trainable
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset

LEARNED_LR = ("lr_lr", "syn_steps", "syn_lr")  # settings of methods that unroll training, and so learn its step size


def distill_subset(method: BaseMethod, stage: Stage) -> SyntheticSubset:
    """Returns S_k after its last iteration, without checkpoints."""
    trainable = method.initialise(stage)
    for _ in iterate(method, stage, method.prepare(stage), trainable):
        pass
    return trainable.freeze()


def distill_sequence(
    method: BaseMethod,
    first_stage: Stage,
    ipcs: Sequence[int],
    intervals: Sequence[tuple[int, int] | None],
    distill: Callable[[BaseMethod, Stage], SyntheticSubset] = distill_subset,
) -> SubsetSequence:
    """Distils S_1 … S_K in order.

    Args:
        method: the base method A.
        first_stage: settings of all stages; its index, ipc, interval and frozen subsets are replaced.
        ipcs: images per class of each subset; they may differ.
        intervals: teacher epochs of each subset; None for methods without teachers.
        distill: returns S_k, which is frozen in later stages; a run passes a function that also resumes and selects.
    """
    frozen = SubsetSequence()
    for index, (ipc, interval) in enumerate(zip(ipcs, intervals, strict=True), start=1):
        stage = replace(first_stage, index=index, ipc=ipc, interval=interval, frozen=frozen)
        frozen = frozen.then(distill(method, stage))
    return frozen


def iterate(method: BaseMethod, stage: Stage, prepared: MethodState, trainable: Trainable) -> Iterator[Trainable]:
    """Optimises S_k in place and yields it after each remaining iteration; raises DivergenceError as `advance` does."""
    while trainable.iteration < method.num_iterations(stage.index):
        advance(method, prepared, trainable, stage)
        yield trainable


def advance(method: BaseMethod, prepared: MethodState, trainable: Trainable, stage: Stage) -> None:
    """Performs one iteration: loss and gradients by the base method, then one step of every optimiser.

    A learned step size may pass below zero for some iterations, as in the public code; `Trainable.freeze` refuses it.

    Raises:
        ConfigError: the method's step returned no loss, or left no gradient.
        DivergenceError: a loss, gradient or new value is not finite. Images, labels and step size then stay as they were
            before the iteration.
    """
    generator = make_generator(stage.seed, "stage", stage.index, "iteration", trainable.iteration)
    for optimizer in trainable.optimizers.values():
        optimizer.zero_grad()
    before = _versions(stage.frozen)
    loss = method.step(prepared, trainable, stage.frozen, generator)
    step = f"step of {type(method).__name__}"
    require(_versions(stage.frozen) == before, f"{step} changed the frozen subsets; work on clones of their images and labels")
    if not (isinstance(loss, torch.Tensor) and loss.dim() == 0):  # whose numbers are read below alone
        raise ConfigError(f"{step} returned {loss!r:.80}; return the detached loss, a tensor of one number")
    has_gradient = any(trainable.leaves[name].grad is not None for name in trainable.optimizers)
    require(has_gradient, f"{step} left no gradient of {', '.join(trainable.optimizers)}; call loss.backward() in it")
    last = {name: tensor.detach().clone() for name, tensor in trainable.state().items()}
    for optimizer in trainable.optimizers.values():
        optimizer.step()
    finite = loss.isfinite() & trainable.lr.detach().isfinite()
    for leaf in (trainable.images, trainable.labels):
        if leaf.grad is not None:
            finite = finite & leaf.grad.isfinite().all() & leaf.detach().isfinite().all()
    loss_value, is_finite = torch.stack([loss.double(), finite.double()]).tolist()  # the only wait for the device
    if not is_finite:
        trainable.load_state(last, trainable.losses)
        names = ("lr_img", "lr_label", "net_lr", "net_weight_decay", *(LEARNED_LR if trainable.lr.requires_grad else ()))
        named = [name for name in names if getattr(method.config, name, 0)]  # what is 0 cannot be lowered
        raise DivergenceError(
            f"stage {stage.index}, iteration {trainable.iteration}: the loss is {loss_value:.4g}; the loss, its gradient or "
            f"the step is not finite. Lower {', '.join(named) or 'a learning rate'}"
        )
    trainable.losses.append(loss_value)
    trainable.iteration += 1


def _versions(frozen: SubsetSequence) -> list[int]:
    """Returns how often each tensor of the frozen subsets was changed in place."""
    return [tensor._version for subset in frozen.subsets for tensor in (subset.images, subset.labels)]

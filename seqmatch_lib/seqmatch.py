"""SeqMatch, Algorithm 1: distil S_1 … S_K one after another, each with the earlier ones frozen beside it.

Source: Du et al., "Sequential Subset Matching for Dataset Distillation", NeurIPS 2023. A plain base method is the case
K = 1 of the same loop. Resuming, selection, timing and progress bars are the runner's (`runs/distillation.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from seqmatch_lib.errors import DivergenceError, require
from seqmatch_lib.methods.base import BaseMethod, MethodState, Stage, Trainable
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset


def distill_subset(method: BaseMethod, stage: Stage) -> SyntheticSubset:
    """Returns S_k after its last iteration, distilled in one go and kept nowhere."""
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
    """Distils the subsets in order.

    Args:
        method: the base method A.
        first_stage: what is common to all stages; its index, ipc, interval and frozen subsets are set here.
        ipcs: images per class of each subset; they may differ.
        intervals: teacher epochs of each subset; None for methods without teachers.
        distill: makes S_k, which the later stages see frozen; a runner puts its own in, which resumes and selects.

    Returns:
        S_1 … S_K.
    """
    frozen = SubsetSequence()
    for index, (ipc, interval) in enumerate(zip(ipcs, intervals, strict=True), start=1):
        stage = replace(first_stage, index=index, ipc=ipc, interval=interval, frozen=frozen)
        frozen = frozen.then(distill(method, stage))
    return frozen


def iterate(method: BaseMethod, stage: Stage, prepared: MethodState, trainable: Trainable) -> Iterator[Trainable]:
    """Optimises S_k in place, and yields it after each iteration that it still lacks.

    Raises:
        DivergenceError: as in `advance`; the subset is as it was before that iteration.
    """
    while trainable.iteration < method.num_iterations(stage.index):
        advance(method, prepared, trainable, stage)
        yield trainable


def advance(method: BaseMethod, prepared: MethodState, trainable: Trainable, stage: Stage) -> None:
    """Makes one iteration: loss and gradients by the base method, then one step of every optimiser.

    Images, labels and step size are left as they were unless loss, gradients and the new values are in range.

    Raises:
        DivergenceError: a loss, gradient or new value that is not finite, or a step size that would not stay positive.
    """
    generator = make_generator(stage.seed, "stage", stage.index, "iteration", trainable.iteration)
    for optimizer in trainable.optimizers.values():
        optimizer.zero_grad()
    loss = method.step(prepared, trainable, stage.frozen, generator)
    undo = [_step(trainable.leaves[name], optimizer) for name, optimizer in trainable.optimizers.items()]
    finite = loss.isfinite()
    for leaf in (trainable.images, trainable.labels):
        if leaf.grad is not None:
            finite = finite & leaf.grad.isfinite().all() & leaf.detach().isfinite().all()
    values = torch.stack([part.double() for part in (loss, finite, trainable.lr.detach())])
    loss_value, is_finite, lr_value = values.tolist()  # the one wait for the device in an iteration
    if not (is_finite and 0 < lr_value < float("inf")):
        for take_back in undo:
            take_back()
        where = f"stage {stage.index}, iteration {trainable.iteration}"
        require(
            is_finite,
            f"{where}: the loss is {loss_value:.4g}; it, its gradient or the step is not finite; the state before it is kept. "
            "Lower lr_img or syn_steps, or begin with a smaller syn_lr",
            DivergenceError,
        )
        raise DivergenceError(
            f"{where}: the step size would go from {trainable.lr.item():.4g} to {lr_value:.4g}, but it must stay positive; "
            "the state before it is kept. Lower lr_lr, or begin with a larger syn_lr"
        )
    trainable.losses.append(loss_value)
    trainable.iteration += 1


def _step(leaf: torch.Tensor, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Makes the step of an optimiser, and returns what takes it back."""
    before = leaf.detach().clone()
    state = {key: value.clone() for key, value in optimizer.state[leaf].items() if value is not None}
    optimizer.step()

    def undo() -> None:
        with torch.no_grad():
            leaf.copy_(before)
        optimizer.state[leaf] = state

    return undo

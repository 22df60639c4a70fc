"""The sequential strategy: distil S_1 … S_K one after another, each with the earlier ones frozen beside it.

Source: Du et al., "Sequential Subset Matching for Dataset Distillation", NeurIPS 2023, Algorithm 1. A plain base
method is the case K = 1 of the same loop.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from tqdm import tqdm

from seqmatch_lib.engine.memory import reset_peak_memory
from seqmatch_lib.errors import DivergenceError, require
from seqmatch_lib.methods.base import BaseMethod, Prepared, Stage, Trainable
from seqmatch_lib.methods.checkpoint import StageCheckpoint, StageProgress
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.subsets import SubsetSequence

Scorer = Callable[[SubsetSequence], Sequence[float]]


def distill_sequence(
    method: BaseMethod,
    first_stage: Stage,
    ipcs: Sequence[int],
    intervals: Sequence[tuple[int, int] | None],
    make_checkpoint: Callable[[int], StageCheckpoint],
    score: Scorer | None = None,
    num_selections: int = 1,
) -> list[StageProgress]:
    """Distils the subsets in order.

    Args:
        method: the base method A.
        first_stage: what is common to all stages; its index, ipc, interval and frozen subsets are set here.
        ipcs: images per class of each subset; they may differ.
        intervals: teacher epochs of each subset; None for methods without teachers.
        make_checkpoint: k -> where stage k is kept; finished stages are read from there.
        score: accuracy of a sequence on held-out images, to select the best iterate of a stage, and perhaps a second one, on
            the test images, to be noted; None keeps the last iterate.
        num_selections: how many iterates a stage are scored.

    Returns:
        The finished stages. S_k as frozen for the later stages is `selected`; only S_K has a separate `last`.
    """
    frozen = SubsetSequence()
    finished = []
    for index, (ipc, interval) in enumerate(zip(ipcs, intervals, strict=True), start=1):
        stage = replace(first_stage, index=index, ipc=ipc, interval=interval, frozen=frozen)
        progress = distill_subset(method, stage, make_checkpoint(index), score, num_selections)
        frozen = frozen.then(progress.selected)
        finished.append(progress)
    return finished


def distill_subset(
    method: BaseMethod, stage: Stage, checkpoint: StageCheckpoint, score: Scorer | None, num_selections: int
) -> StageProgress:
    """Optimises S_k with S_1 … S_{k-1} frozen, from its checkpoint if there is one.

    Raises:
        DivergenceError: the loss or the step size leaves its range; the last good state is in the checkpoint.
        OutOfTime: the budget is spent; the state is in the checkpoint.
    """
    iterations = method.num_iterations(stage.index)
    progress, state = checkpoint.load(method.initialise(stage))
    trainable = progress.trainable
    if trainable.iteration >= iterations:
        return progress
    reset_peak_memory(stage.images.device)
    prepared = method.prepare(stage)
    if state:
        prepared.load_state(state)
    progress.seconds["teachers"] = prepared.seconds
    progress.note_memory("teachers")
    reset_peak_memory(stage.images.device)
    scored = {round(iterations * (i + 1) / num_selections) for i in range(num_selections)} if score else set()
    with tqdm(total=iterations, initial=trainable.iteration, desc=f"distil S_{stage.index}", unit="it") as bar:
        while trainable.iteration < iterations:
            began = time.perf_counter()
            try:
                advance(method, prepared, trainable, stage)
            except DivergenceError:
                checkpoint.save(progress, prepared.state())
                raise
            progress.seconds["distillation"] += time.perf_counter() - began
            bar.update()
            bar.set_postfix(loss=f"{trainable.losses[-1]:.4f}", lr=f"{trainable.lr.item():.4f}")
            if trainable.iteration in scored:
                began = time.perf_counter()
                progress.consider(*score(stage.frozen.then(trainable.freeze())))
                progress.seconds["selection"] += time.perf_counter() - began
            if trainable.iteration == iterations or stage.budget.wants_save():
                progress.note_memory("distillation")
                checkpoint.save(progress, prepared.state())
                stage.budget.saved()
    return progress


def advance(method: BaseMethod, prepared: Prepared, trainable: Trainable, stage: Stage) -> None:
    """Makes one iteration: loss and gradients by the base method, then one step of every optimiser.

    Images, labels and step size are left as they were unless loss, gradients and the new values are in range.

    Raises:
        DivergenceError: a loss, gradient or new value that is not finite, or a step size that would not stay positive.
    """
    generator = make_generator(stage.seed, "stage", stage.index, "iteration", trainable.iteration)
    for optimizer in trainable.optimizers.values():
        optimizer.zero_grad()
    loss = method.step(prepared, trainable, stage.frozen, generator)
    leaves = {"images": trainable.images, "labels": trainable.labels, "lr": trainable.lr}
    undo = [_step(leaves[name], optimizer) for name, optimizer in trainable.optimizers.items()]
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
    memory = {key: value.clone() for key, value in optimizer.state[leaf].items() if value is not None}
    optimizer.step()

    def undo() -> None:
        with torch.no_grad():
            leaf.copy_(before)
        optimizer.state[leaf] = memory

    return undo

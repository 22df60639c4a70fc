"""Distillation of a run: Algorithm 1 with checkpoints, selection of iterates, times, peak memory and progress bars."""

import sys
import time
from collections.abc import Callable, Sequence

import torch

from seqmatch_lib.data.labels import image_classes
from seqmatch_lib.engine.memory import reset_peak_memory
from seqmatch_lib.errors import ConfigError, DivergenceError, require
from seqmatch_lib.methods.base import BaseMethod, MethodState, Stage, Trainable
from seqmatch_lib.progress import progress_bar
from seqmatch_lib.runs.stages import StageCheckpoint, StageProgress
from seqmatch_lib.seqmatch import distill_sequence, iterate
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset

Scorer = Callable[[SubsetSequence], Sequence[float]]


def distill_stages(
    method: BaseMethod,
    first_stage: Stage,
    ipcs: Sequence[int],
    intervals: Sequence[tuple[int, int] | None],
    make_checkpoint: Callable[[int], StageCheckpoint],
    score: Scorer | None = None,
    num_selections: int = 1,
) -> list[StageProgress]:
    """Distils the subsets in order, from their checkpoints where there are any.

    Args:
        method: and all up to `intervals`: as in `distill_sequence`.
        first_stage: see there.
        ipcs: see there.
        intervals: see there.
        make_checkpoint: k -> where stage k is kept; finished stages are read from there.
        score: accuracy of a sequence on held-out images, to select the best iterate of a stage, and perhaps a second one, on
            the test images, to be noted; None keeps the last iterate.
        num_selections: how many iterates a stage are scored.

    Returns:
        The finished stages. S_k as frozen for the later stages is `selected`; only S_K has a separate `last`.

    Raises:
        ConfigError: networks have running statistics, which the method, or the engine of the stage's recipe, does not train;
            or the method's `initialise` or `prepare` returned what it must not.
        DivergenceError: a value is not finite, or the step size of an iterate that is needed is not positive. A scored iterate
            with such a step size, or on which a network diverges, is skipped, but each stage needs another one; and the last
            iterate of S_K needs a positive step size.
        OutOfTime: the budget is spent; the state is in the checkpoint.
    """
    finished = []

    def distill(method: BaseMethod, stage: Stage) -> SyntheticSubset:
        finished.append(distill_stage(method, stage, make_checkpoint(stage.index), score, num_selections))
        return finished[-1].selected

    distill_sequence(method, first_stage, ipcs, intervals, distill)
    return finished


def distill_stage(
    method: BaseMethod, stage: Stage, checkpoint: StageCheckpoint, score: Scorer | None = None, num_selections: int = 1
) -> StageProgress:
    """Distils the subset of one stage, from its checkpoint if there is one; arguments and errors as in `distill_stages`."""
    frozen = stage.frozen.sha256()
    progress, state = checkpoint.load(_initialise(method, stage), frozen)
    iterations, done = method.num_iterations(stage.index), progress.trainable.iteration
    if done >= iterations:
        return progress
    device = stage.images.device
    reset_peak_memory(device)
    prepared = _prepare(method, stage, state)
    if stage.recipe.engine == "compiled":  # with which iterates are scored, and the set evaluated
        remedy = "set training.engine=eager and training.precision=float32, or "
        stage.check_statistics("training.engine 'compiled' does not train", remedy)
    progress.seconds["teachers"] = prepared.seconds
    progress.note_memory("teachers")
    reset_peak_memory(device)
    scored = {round(iterations * (i + 1) / num_selections) for i in range(num_selections)} if score else set()
    with progress_bar(iterations, f"distil S_{stage.index}", "it", done) as bar:
        began = time.perf_counter()
        for trainable in iterate(method, stage, prepared, progress.trainable):
            progress.seconds["distillation"] += time.perf_counter() - began
            bar.update()
            bar.set_postfix(loss=f"{trainable.losses[-1]:.4f}", lr=f"{trainable.lr.item():.4f}")
            if trainable.iteration in scored:
                began = time.perf_counter()
                _consider(progress, stage, score)
                progress.seconds["selection"] += time.perf_counter() - began
            if trainable.iteration in {*scored, iterations} or stage.budget.wants_save():  # a score may have taken hours
                progress.note_memory("distillation")
                checkpoint.save(progress, prepared.state(), frozen)
                stage.budget.saved()
            began = time.perf_counter()
    return progress


def _consider(progress: StageProgress, stage: Stage, score: Scorer) -> None:
    """Scores the present iterate; one that no network can be trained on is left out, with a notice."""
    try:
        scores = score(stage.frozen.then(progress.trainable.freeze()))
    except DivergenceError as error:
        print(f"notice: S_{stage.index} was not scored: {error}", file=sys.stderr)
        return
    progress.consider(*scores)


def _initialise(method: BaseMethod, stage: Stage) -> Trainable:
    """Returns the subset before its first iteration; raises ConfigError unless its images lie class by class, all of them.

    Later code finds the images of a class by their place, see `SyntheticSubset.of_class`. Soft labels do not tell which class
    an image was made for, so for them only the number of images is checked. And each optimiser must change the leaf of its
    name: that of images which were replaced would change the old ones.
    """
    trainable = method.initialise(stage)
    name = f"initialise of {type(method).__name__}"
    is_subset = isinstance(trainable, Trainable)
    require(is_subset, f"{name} returned a {type(trainable).__name__}; return a Trainable, such as super().initialise(stage)")
    expected = torch.arange(stage.num_classes).repeat_interleave(stage.ipc)
    images, labels = tuple(trainable.images.shape), tuple(trainable.labels.shape)
    is_whole = images[:1] == labels[:1] == (len(expected),)
    found = f"images of shape {images} with labels of shape {labels}"
    if is_whole and not trainable.labels.is_floating_point():
        classes = image_classes(trainable.labels).tolist()
        is_whole, found = classes == expected.tolist(), f"images of classes {classes}"
    rule = f"stage {stage.index} has {stage.num_classes} classes * ipc {stage.ipc} = {len(expected)} images, class by class"
    remedy = "return stage.ipc of each class in the order of the classes, as super().initialise(stage) does"
    require(is_whole, f"{name} returned {found:.120}, but {rule}; {remedy}")
    for leaf, optimizer in trainable.optimizers.items():
        changed = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        is_own = [id(parameter) for parameter in changed] == [id(trainable.leaves.get(leaf))]
        remedy = f"make trainable.optimizers[{leaf!r}] anew, that of images with self.image_optimizer(trainable.images)"
        require(is_own, f"{name} returned a Trainable whose {leaf} its optimiser does not change; {remedy}")
    return trainable


def _prepare(method: BaseMethod, stage: Stage, state: dict[str, torch.Tensor]) -> MethodState:
    """Returns what the method's steps work with, resumed if a state was saved; raises ConfigError if that could not be."""
    prepared = method.resume(stage, state) if state else method.prepare(stage)
    is_state = isinstance(prepared, MethodState)
    require(is_state, f"prepare of {type(method).__name__} returned a {type(prepared).__name__}; return a MethodState")
    kind = type(prepared)
    loses_state = kind.state is not MethodState.state and kind.load_state is MethodState.load_state
    message = f"{kind.__name__} has `state`, but no `load_state` that a stopped run goes on with; write both"
    require(not loses_state or type(method).resume is not BaseMethod.resume, message)
    saved = prepared.state()
    are_tensors = isinstance(saved, dict) and all(isinstance(value, torch.Tensor) for value in saved.values())
    if not are_tensors:  # no message is made of whole tensors
        remedy = 'return a dictionary of tensors, such as {"count": torch.tensor(count)}'
        raise ConfigError(f"`state` of {kind.__name__} returned {saved!r:.120}; {remedy}")
    return prepared

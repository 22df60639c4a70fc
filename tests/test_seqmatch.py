"""The sequential strategy: K = 1 is the base method, K = 3 runs three stages, killed stages go on bit for bit."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import CLASSES, HIGHER, NETWORK, RECIPE, SHAPE, TEACHERS, call_flat, checkpoints, make_stage
from torch.func import grad

from seqmatch_lib.engine.augment import apply_augmentation, draw_augmentation
from seqmatch_lib.engine.evaluation import train_staged
from seqmatch_lib.engine.networks import flatten_parameters, make_network
from seqmatch_lib.errors import ConfigError, DivergenceError, StorageError
from seqmatch_lib.methods import get_method
from seqmatch_lib.methods.mtt import MTT, MTTConfig
from seqmatch_lib.methods.teachers import TrajectorySet, record_stage_teachers
from seqmatch_lib.runs.distillation import distill_stages
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.seqmatch import distill_sequence, distill_subset
from seqmatch_lib.subsets import SubsetSequence

CONFIG = MTTConfig(
    iterations=5, syn_steps=3, expert_epochs=2, lr_img=0.5, lr_lr=1e-3, syn_lr=0.05, later_syn_lr=0.07, **HIGHER
)
IPCS, INTERVALS = (2, 3, 1), ((0, 4), (0, 3), (0, 3))  # of three stages


def distil(folder, config=CONFIG, ipcs=(2,), intervals=((0, 4),), stage=None, **settings):
    stage = stage or make_stage(folder)
    return distill_stages(MTT(config), stage, ipcs, intervals, checkpoints(folder), **settings)


def literal_mtt(stage, config):
    """One stage of MTT, transcribed from the algorithm with torch.func: no checkpoint, no optimiser objects."""
    teachers = record_stage_teachers(stage)
    network = make_network(NETWORK, SHAPE, CLASSES, torch.Generator())

    def step_loss(theta, x, y):
        return F.cross_entropy(call_flat(network, theta, x), y)

    start = get_method("mtt")(config).initialise(stage)
    images, lr = start.images.detach().clone(), start.lr.detach().clone()
    image_momentum, lr_momentum = torch.zeros_like(images), torch.zeros_like(lr)
    labels = torch.cat([*(subset.labels for subset in stage.frozen.subsets), start.labels])
    for iteration in range(config.iterations):
        images.requires_grad_()
        lr.requires_grad_()
        generator = make_generator(stage.seed, "stage", stage.index, "iteration", iteration)
        teacher = int(torch.randint(len(teachers), (), generator=generator))
        low, high = stage.interval
        epoch = int(torch.randint(low, high - config.expert_epochs, (), generator=generator))
        theta_0, target = teachers.segment(teacher, epoch, epoch + config.expert_epochs)
        union = torch.cat([*(subset.images for subset in stage.frozen.subsets), images])
        theta, order = theta_0, labels[:0]
        for _ in range(config.syn_steps):
            order = order if len(order) else torch.randperm(len(union), generator=generator)
            batch_syn = config.batch_syn or len(images)
            size = len(order) % batch_syn or batch_syn  # the first batch of an order is what is left over
            row, order = order[-size:], order[:-size]
            drawn = draw_augmentation(config.augment, len(row), SHAPE[1:], generator)
            theta = theta - lr * grad(step_loss)(theta, apply_augmentation(union[row], drawn), labels[row])
        loss = ((theta - target) ** 2).sum() / ((theta_0 - target) ** 2).sum()
        image_gradient, lr_gradient = torch.autograd.grad(loss, [images, lr])
        with torch.no_grad():
            image_momentum = config.momentum_img * image_momentum + image_gradient
            lr_momentum = config.momentum_lr * lr_momentum + lr_gradient
            images = images - config.lr_img * image_momentum
            lr = lr - config.lr_lr * lr_momentum
    return images, lr.item()


@pytest.fixture(scope="module")
def three_stages(tmp_path_factory):
    """K = 3 with unequal subsets."""
    folder = tmp_path_factory.mktemp("three")
    return folder, distill_stages(MTT(CONFIG), make_stage(folder), IPCS, INTERVALS, checkpoints(folder))


@pytest.mark.parametrize(("k", "batch_syn"), [(1, 0), (2, 0), (3, 0), (2, 4)])
def test_every_stage_is_plain_mtt_beside_all_earlier_subsets(three_stages, k, batch_syn):
    folder, stages = three_stages
    frozen, config = SubsetSequence(tuple(stage.last for stage in stages[: k - 1])), replace(CONFIG, batch_syn=batch_syn)
    stage = replace(make_stage(folder), index=k, ipc=IPCS[k - 1], interval=INTERVALS[k - 1], frozen=frozen)
    found = distill_subset(MTT(config), stage) if batch_syn else stages[k - 1].last
    images, lr = literal_mtt(stage, config)
    assert not torch.allclose(found.images, MTT(CONFIG).initialise(stage).images, atol=1e-3)  # it moved
    torch.testing.assert_close(found.images, images, rtol=1e-4, atol=1e-5)
    assert found.lr == pytest.approx(lr, rel=1e-5)


def test_every_stage_begins_with_its_own_step_size_and_with_other_real_images(tmp_path):
    begun = [MTT(CONFIG).initialise(replace(make_stage(tmp_path), index=k)) for k in (1, 2, 3)]
    assert [trainable.lr.item() for trainable in begun] == pytest.approx([0.05, 0.07, 0.07])
    assert len({trainable.images.detach().numpy().tobytes() for trainable in begun}) == 3


def test_teachers_of_stage_three_start_from_a_network_trained_through_stages_one_and_two(three_stages):
    folder, stages = three_stages
    (path,) = (folder / "teachers").glob("convnet-stage3-*")
    teachers = TrajectorySet(path, TEACHERS.num_teachers)
    sequence = SubsetSequence((stages[0].last, stages[1].last))
    for index in range(TEACHERS.num_teachers):
        network = make_network(NETWORK, SHAPE, CLASSES, make_generator(0, "teacher", index, "start"))
        fresh = flatten_parameters(network)
        train_staged([network], sequence, RECIPE, [make_generator(0, "teacher", index, "earlier stages")])
        start, _ = teachers.segment(index, 0, 1)
        assert torch.equal(start, flatten_parameters(network))
        assert not torch.equal(start, fresh)


def test_the_best_scored_iterate_is_selected_and_survives_a_restart(tmp_path):
    scores = {1: 30.0, 2: 50.0, 4: 50.0, 5: 40.0}
    calls = []

    def score(sequence):
        calls.append(sequence)
        return [scores[[1, 2, 4, 5][len(calls) - 1]], 10.0 * len(calls)]

    (stage,) = distil(tmp_path, score=score, num_selections=4)
    assert stage.scores == [(1, 30.0), (2, 50.0), (4, 50.0), (5, 40.0)]
    assert stage.test_scores == [(1, 10.0), (2, 20.0), (4, 30.0), (5, 40.0)]  # the best of which select nothing
    assert torch.equal(stage.selected.images, calls[1].subsets[-1].images)  # the first of equals
    assert not torch.equal(stage.selected.images, stage.last.images)
    (again,) = distil(tmp_path, score=None)
    assert torch.equal(again.selected.images, stage.selected.images)
    assert again.selected.lr == stage.selected.lr
    assert (again.scores, again.test_scores) == (stage.scores, stage.test_scores)


def push_lr(monkeypatch, gradients):
    """Makes MTT give the step size these gradients, by iteration, and 0 in the others; returns where the step sizes go."""
    step, lrs = MTT.step, []

    def pushed(self, prepared, trainable, frozen, generator):
        lrs.append(trainable.lr.item())
        loss = step(self, prepared, trainable, frozen, generator)
        trainable.lr.grad.fill_(gradients.get(trainable.iteration, 0.0))
        return loss

    monkeypatch.setattr(MTT, "step", pushed)
    return lrs


def test_a_step_size_may_pass_below_zero_as_in_the_public_code(tmp_path, monkeypatch):
    lrs = push_lr(monkeypatch, {1: 60.0, 2: -120.0})
    (stage,) = distil(tmp_path)
    assert lrs[2] == pytest.approx(-0.01)
    assert len(stage.trainable.losses) == CONFIG.iterations
    assert stage.last.lr > 0


def test_no_subset_has_a_negative_step_size(tmp_path, monkeypatch):
    push_lr(monkeypatch, {4: 60.0})
    with pytest.raises(DivergenceError, match=r"step size after 5 iterations is -0\.01, .* lower lr_lr"):
        distil(tmp_path)


def test_an_iterate_with_a_negative_step_size_is_not_scored_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    lrs = push_lr(monkeypatch, {1: 60.0, 2: -120.0})
    scoring = {"score": lambda sequence: (1.0, None), "num_selections": 2}  # after iterations 2 and 5
    (stage,) = distil(tmp_path, **scoring)
    assert "notice: S_1 was not scored: the learned step size after 2 iterations is -0" in capsys.readouterr().err
    assert len(lrs) == CONFIG.iterations
    assert stage.scores == [(5, 1.0)]


def test_an_iterate_on_which_networks_diverge_is_not_scored_and_the_run_goes_on(tmp_path, capsys):
    def score(sequence):
        accuracies.append(10.0 * len(accuracies))
        if len(accuracies) == 2:
            raise DivergenceError("a network diverged")
        return accuracies[-1:]

    accuracies: list[float] = []
    (stage,) = distil(tmp_path, score=score, num_selections=4)
    assert "notice: S_1 was not scored: a network diverged" in capsys.readouterr().err
    assert stage.scores == [(1, 0.0), (4, 20.0), (5, 30.0)]


def test_a_run_with_more_teachers_adds_to_those_of_another(tmp_path):
    first = make_stage(tmp_path)
    few = record_stage_teachers(first)
    before = {path.name: path.read_bytes() for path in few.folder.glob("teacher-*.npy")}
    many = record_stage_teachers(replace(first, teachers=replace(TEACHERS, num_teachers=3)))
    assert (many.folder, len(few), len(many)) == (few.folder, 2, 3)
    after = {path.name: path.read_bytes() for path in many.folder.glob("teacher-*.npy")}
    assert len(after) == 3
    assert before.items() <= after.items()


def test_teachers_are_shared_by_stages_alone_that_have_the_same_ones(tmp_path):
    """Those of a later stage know its earlier subsets, so another S_1 takes other teachers."""
    first = replace(make_stage(tmp_path), teachers=replace(TEACHERS, num_teachers=1))
    subset = MTT(CONFIG).initialise(first).freeze()
    later = replace(first, index=2, frozen=SubsetSequence((subset,)))
    others = [
        first,
        later,
        replace(later, frozen=SubsetSequence((replace(subset, images=subset.images + 0.1),))),
        replace(later, recipe=replace(RECIPE, epochs=2)),
        replace(first, network=replace(NETWORK, width=3)),
        replace(first, data_identity={"name": "other"}),
        replace(first, teachers=replace(first.teachers, lr=0.01)),
    ]
    assert len({record_stage_teachers(stage).folder for stage in others}) == len(others)
    alike = replace(first, seed=1, ipc=1, interval=(0, 3), recipe=replace(RECIPE, epochs=2))
    assert record_stage_teachers(alike).folder == record_stage_teachers(first).folder
    for stage in (first, later):  # and so they do not depend on the seed of the run
        again = record_stage_teachers(replace(stage, seed=1, folder=tmp_path / "again"))
        assert all(map(torch.equal, again.segment(0, 0, 1), record_stage_teachers(stage).segment(0, 0, 1)))


def test_algorithm_1_alone_makes_the_set_that_the_runner_makes(tmp_path):
    """Without scores a runner keeps and times what the loop does, and changes nothing."""
    arguments = (MTT(CONFIG), make_stage(tmp_path), (2, 1), ((0, 4), (0, 3)))
    stages = distill_stages(*arguments, checkpoints(tmp_path))
    alone = distill_sequence(*arguments)
    assert [subset.lr for subset in alone.subsets] == [stage.last.lr for stage in stages]
    for subset, stage in zip(alone.subsets, stages, strict=True):
        assert torch.equal(subset.images, stage.last.images)


def test_state_of_another_run_is_refused(tmp_path):
    distil(tmp_path)
    stage = make_stage(tmp_path)
    with pytest.raises(StorageError, match="belongs to a run with other settings"):
        checkpoints(tmp_path, owner="another")(1).load(MTT(CONFIG).initialise(stage), stage.frozen.sha256())


def test_distilled_images_beat_their_start(tmp_path):
    """The loop does what it is for: the matching error falls."""
    (stage,) = distil(tmp_path, replace(CONFIG, iterations=60, augment="none"))
    losses = stage.trainable.losses
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


@pytest.mark.parametrize(
    ("interval", "message"),
    [((0, 2), "be longer than mtt.expert_epochs"), ((0, 5), "exceeds the 4 epochs recorded"), ((-1, 4), "-1-4")],
)
def test_an_interval_that_does_not_fit_is_named(tmp_path, interval, message):
    with pytest.raises(ConfigError, match=message):
        distil(tmp_path, intervals=(interval,))

"""Training on a distilled set, stage by stage and joint, under the public protocol."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import CLASSES, NETWORK, RECIPE, SHAPE, call_flat, make_images, make_stage
from torch.func import grad

from seqmatch_lib.data.datasets import Split
from seqmatch_lib.engine import training
from seqmatch_lib.engine.evaluation import EvaluationConfig, EvaluationProtocol, format_accuracy, summarise, train_staged
from seqmatch_lib.engine.networks import flatten_parameters, make_network
from seqmatch_lib.engine.step_functions import batch_loss, centred_one_hot
from seqmatch_lib.engine.training import TrainingRecipe, measure_accuracy, train_stage
from seqmatch_lib.errors import ConfigError, DataError, DivergenceError, StorageError
from seqmatch_lib.methods.mtt import MTT, MTTConfig
from seqmatch_lib.seeds import derive_seed, make_generator
from seqmatch_lib.store.files import save_tensors
from seqmatch_lib.subsets import (
    SubsetSequence,
    SyntheticSubset,
    load_sequence,
    sample_real_sequence,
    sample_real_subset,
)


def make_sequence(sizes=(2, 1, 3), lrs=(0.01, 0.02, 0.03)):
    images, labels = make_images(120)
    sequence = sample_real_sequence(Split(images, labels), CLASSES, sizes, 0.01, seed=0)
    return SubsetSequence(tuple(replace(subset, lr=lr) for subset, lr in zip(sequence.subsets, lrs, strict=True)))


def test_every_stage_trains_on_the_union_so_far_with_its_own_step_size(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "seqmatch_lib.engine.evaluation.train_stage",
        lambda networks, images, labels, lr, *_: calls.append((images, labels, lr)),
    )
    sequence = make_sequence()
    train_staged([], sequence, RECIPE, [])
    assert [len(images) for images, _, _ in calls] == [6, 9, 18]
    assert [lr for _, _, lr in calls] == [0.01, 0.02, 0.03]
    train_staged([], sequence, replace(RECIPE, lr=0.05), [])
    assert [lr for _, _, lr in calls[3:]] == [0.05] * 3, "unless the recipe has one"
    assert torch.equal(calls[2][0], torch.cat([subset.images for subset in sequence.subsets]))
    assert torch.equal(calls[2][1], torch.cat([subset.labels for subset in sequence.subsets]))


def test_joint_is_one_stage_on_everything_with_the_last_step_size():
    sequence = make_sequence()
    joint = sequence.joint()
    assert len(joint) == 1
    assert torch.equal(joint.subsets[0].images, sequence.union()[0])
    assert joint.subsets[0].lr == 0.03


@pytest.mark.parametrize(
    ("schedule", "lrs"),
    [
        ("half", [0.05] * 5 + [0.005] * 2),  # after epoch 7 // 2 + 1, counted from 0
        ("steps", [0.05] * 4 + [0.01] + [0.002] * 2),
    ],
)
@pytest.mark.parametrize("engine", training.TRAINING_ENGINES)
def test_a_stage_is_sgd_whose_momentum_survives_the_steps_of_idc_and_not_that_of_mtt(engine, schedule, lrs, uncompiled):
    """Against the public protocols written out: full batch, no augmentation."""
    images, labels = make_images(12)
    shared = {"batch_size": 64, "momentum": 0.9, "weight_decay": 0.01, "augment": "none"}
    recipe = replace(RECIPE, epochs=7, engine=engine, schedule=schedule, **shared)
    network = make_network(NETWORK, SHAPE, CLASSES, make_generator(0))
    theta = flatten_parameters(network)
    velocity = torch.zeros_like(theta)
    for epoch, lr in enumerate(lrs):
        if epoch == 5 and schedule == "half":
            velocity = torch.zeros_like(theta)
        gradient = grad(lambda theta: F.cross_entropy(call_flat(network, theta, images), labels))(theta)
        velocity = 0.9 * velocity + gradient + 0.01 * theta
        theta = theta - lr * velocity
    train_stage([network], images, labels, 0.05, recipe, [make_generator(0)])
    torch.testing.assert_close(flatten_parameters(network), theta, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", training.TRAINING_ENGINES)
def test_an_epoch_visits_every_image_once(monkeypatch, engine, uncompiled):
    seen = []
    monkeypatch.setattr(training, "apply_augmentation", lambda images, drawn: seen.append(images) or images)
    images, labels = make_images(10)
    network = make_network(NETWORK, SHAPE, CLASSES, make_generator(0))
    recipe = replace(RECIPE, batch_size=4, augment="none", engine=engine)
    training.make_trainer([network], recipe, 0.1).epoch(images, labels, [make_generator(0)])
    assert [len(batch) for batch in seen] == [4, 4, 2]
    assert sorted(torch.cat(seen).flatten(1).sum(1).tolist()) == sorted(images.flatten(1).sum(1).tolist())
    assert not torch.equal(torch.cat(seen), images)


def test_together_is_one_by_one_up_to_rounding(uncompiled):
    """Batches, augmentations, momentum, weight decay, phases and losses, in float64 so that rounding stays small."""
    sequence = make_sequence()
    subsets = [replace(subset, images=subset.images.double()) for subset in sequence.subsets]
    trained = {}
    for engine in training.TRAINING_ENGINES:
        networks = [make_network(NETWORK, SHAPE, CLASSES, make_generator(index)).double() for index in range(3)]
        before = torch.stack([flatten_parameters(network) for network in networks])
        recipe = replace(RECIPE, batch_size=4, engine=engine)
        train_staged(networks, SubsetSequence(tuple(subsets)), recipe, [make_generator(index, "b") for index in range(3)])
        trained[engine] = torch.stack([flatten_parameters(network) for network in networks])
        assert (trained[engine] - before).abs().max() > 0.01
    torch.testing.assert_close(trained["compiled"], trained["eager"], rtol=1e-8, atol=1e-9)
    losses = []
    for engine in training.TRAINING_ENGINES:
        networks = [make_network(NETWORK, SHAPE, CLASSES, make_generator(index)) for index in range(2)]
        trainer = training.make_trainer(networks, replace(RECIPE, batch_size=4, augment="color", engine=engine), 0.05)
        losses.append(trainer.epoch(*make_images(10), [make_generator(index) for index in range(2)]))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_together_is_one_by_one_with_every_optimizer_loss_and_cutmix(optimizer, loss, uncompiled):
    images, labels = make_images(10)
    recipe = replace(RECIPE, epochs=9, batch_size=4, optimizer=optimizer, loss=loss, schedule="steps", cutmix=0.5)
    trained = []
    for engine in training.TRAINING_ENGINES:
        networks = [make_network(NETWORK, SHAPE, CLASSES, make_generator(index)).double() for index in range(2)]
        generators = [make_generator(index) for index in range(2)]
        train_stage(networks, images.double(), labels, 0.02, replace(recipe, engine=engine), generators)
        trained.append(torch.stack([flatten_parameters(network) for network in networks]))
    torch.testing.assert_close(*trained, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_weights_decay_with_every_optimizer(optimizer):
    trained = []
    for weight_decay in (0.0, 0.1):
        network = make_network(NETWORK, SHAPE, CLASSES, make_generator(0))
        recipe = replace(RECIPE, epochs=2, optimizer=optimizer, weight_decay=weight_decay)
        train_stage([network], *make_images(6), 0.01, recipe, [make_generator(0)])
        trained.append(flatten_parameters(network))
    assert not torch.allclose(*trained, atol=1e-4)


@pytest.mark.parametrize(("loss", "shift"), [("cross_entropy", 0), ("mse", 1 / CLASSES)])
def test_cutmix_mixes_the_targets_that_the_loss_has_for_classes(loss, shift):
    images, labels = make_images(10)
    trained = []
    for targets in (labels, torch.eye(CLASSES)[labels] - shift):
        network = make_network(NETWORK, SHAPE, CLASSES, make_generator(0))
        network[-1] = torch.nn.Sequential(network[-1])  # a head of one's own may be more than a linear layer
        recipe = replace(RECIPE, epochs=2, batch_size=4, loss=loss, cutmix=0.5)
        train_stage([network], images, targets, 0.02, recipe, [make_generator(0)])
        trained.append(flatten_parameters(network))
    assert torch.equal(*trained)


def test_schedules_are_those_of_the_public_codes():
    assert training.SCHEDULES["half"](8) == [1.0] * 6 + [0.1] * 2  # MTT: after epoch 8 // 2 + 1, counted from 0
    steps = training.SCHEDULES["steps"](12)  # IDC: MultiStepLR at 2 / 3 and 5 / 6, stepped after each epoch
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[8, 10], gamma=0.2)
    for factor in steps:
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    cosine = training.SCHEDULES["cosine"](2000)  # FRePo: 500 steps of linear warm-up, half a cosine to a hundredth
    assert max(cosine) == cosine[500] == 1.0
    assert cosine[250] == pytest.approx(0.5, abs=0.002)
    assert cosine[1250] == pytest.approx(0.505)
    assert cosine[-1] == pytest.approx(0.01, abs=1e-4)
    for schedule in training.SCHEDULES.values():
        assert [len(schedule(epochs)) for epochs in (1, 2, 7)] == [1, 2, 7]
        assert all(0 < factor <= 1 for factor in schedule(7))


def test_cutmix_mixes_one_rectangle_and_the_targets_by_its_area(generator):
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 2, 8, 6)  # an image shows its number
    targets = torch.eye(5)
    mixed_once = 0
    for _ in range(200):
        mixed, wanted = training.mix_patches(images, targets, 0.5, generator)
        assert torch.equal(images[:, 0, 0, 0], torch.arange(5.0))  # the batch itself is left alone
        torch.testing.assert_close(wanted.sum(1), torch.ones(5))
        changed = (mixed != images).any(1)
        for number in range(5):
            shares = torch.bincount(mixed[number, 0].flatten().long(), minlength=5) / 48
            torch.testing.assert_close(shares, wanted[number], atol=1e-6, rtol=0)
        rectangle = changed.any(0)
        if rectangle.any():
            mixed_once += 1
            rows, columns = rectangle.any(1).nonzero().flatten(), rectangle.any(0).nonzero().flatten()
            assert rectangle[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert 40 < mixed_once < 120  # half the batches, less those whose rectangle is empty


def test_the_share_of_mixed_batches_is_the_probability(generator):
    images, targets = torch.randn(4, 1, 4, 4, generator=generator), torch.eye(4)
    assert training.mix_patches(images, targets, 0.0, generator)[0] is images
    drawn = [training.mix_patches(images, targets, 0.3, generator)[0] is images for _ in range(1000)]
    assert 0.64 < sum(drawn) / 1000 < 0.76


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_squared_loss_centres_classes(dtype):
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    labels = torch.tensor([0, 2])
    centred = torch.tensor([[2 / 3, -1 / 3, -1 / 3], [-1 / 3, -1 / 3, 2 / 3]], dtype=dtype)
    torch.testing.assert_close(centred_one_hot(labels, 3, dtype), centred)
    expected = 0.5 * ((logits - centred) ** 2).sum() / 2
    torch.testing.assert_close(batch_loss("mse", logits, labels), expected)
    torch.testing.assert_close(batch_loss("mse", logits, centred), expected)


def test_compiled_code_trains_as_plain_code_does():
    """With a compiler, which the tests above leave out."""
    images, labels = make_images(12)
    trained = []
    for engine in training.TRAINING_ENGINES:
        networks = [make_network(NETWORK, SHAPE, CLASSES, make_generator(index)).double() for index in range(2)]
        trainer = training.make_trainer(networks, replace(RECIPE, batch_size=6, engine=engine), 0.05)
        trainer.epoch(images.double(), labels, [make_generator(index, "batches") for index in range(2)])
        trained.append(trainer.parameters())
    torch.testing.assert_close(*trained, rtol=1e-8, atol=1e-9)


def test_soft_labels_train_as_hard_ones_do():
    images, labels = make_images(12)
    networks = []
    for targets in (labels, F.one_hot(labels, CLASSES).float()):
        network = make_network(NETWORK, SHAPE, CLASSES, make_generator(0))
        train_stage([network], images, targets, 0.05, RECIPE, [make_generator(1)])
        networks.append(flatten_parameters(network))
    torch.testing.assert_close(*networks)


def test_real_images_teach_and_noise_does_not():
    """Ten sets of noise, since a single one can put most images into the right class by chance (of three)."""
    test = Split(*make_images(300, seed=7))
    protocol = EvaluationProtocol(CLASSES, replace(RECIPE, epochs=60, augment="none"), seed=0)
    (good,) = protocol.accuracies(make_sequence(), test, NETWORK, [0])
    labels = torch.arange(18) % CLASSES
    noise = [SubsetSequence((SyntheticSubset(torch.randn(18, *SHAPE), labels, 0.01),)) for _ in range(10)]
    bad = [accuracy for sequence in noise for accuracy in protocol.accuracies(sequence, test, NETWORK, [0])]
    assert good > 80
    assert sum(bad) / len(bad) < 55


def test_networks_differ_by_index_and_repeat_by_seed():
    test = Split(*make_images(300, seed=7))

    def values(seed):
        return EvaluationProtocol(CLASSES, RECIPE, seed).accuracies(make_sequence(), test, NETWORK, range(4))

    assert values(0) == values(0)
    assert values(0) != values(1)
    assert len(set(values(0))) > 1


def test_an_answer_depends_on_its_own_image_alone():
    """Also where networks hold running statistics, which no answer changes."""
    images, labels = make_images(12)
    network = make_network(replace(NETWORK, norm="batch"), SHAPE, CLASSES, make_generator(0))
    train_stage([network], images, labels, 0.05, RECIPE, [make_generator(0)])
    together = training.compute_logits(network, images)
    torch.testing.assert_close(training.compute_logits(network, images[:3]), together[:3])


def test_accuracy_counts_right_answers():
    class Constant(torch.nn.Module):
        def forward(self, x):
            return F.one_hot(torch.ones(len(x), dtype=torch.long), 3).float()

    labels = torch.tensor([1] * 5 + [0] * 15)
    assert measure_accuracy(Constant(), Split(torch.zeros(20, 1, 2, 2), labels)) == 25.0


def test_accuracy_statistics():
    accuracy = summarise([50.0, 60.0, 70.0])
    assert accuracy == {"mean": 60.0, "std": 10.0, "n": 3, "values": [50.0, 60.0, 70.0]}
    assert format_accuracy(accuracy) == "60.0 ± 10.0 % (n = 3)"
    assert summarise([50.0])["std"] == 0.0


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"momentum": 0.5, "lr": 1e30}, "which is training.lr, or lower training.momentum"),
        (
            {"weight_decay": 0.1, "momentum": 0.0},
            r"that of the set \(.*\), or set training.lr, or lower training.weight_decay",
        ),
    ],
)
def test_a_diverging_stage_stops(changes, remedy):
    images, labels = make_images(12)
    network = make_network(NETWORK, SHAPE, CLASSES, make_generator(0))
    recipe = replace(RECIPE, **({"weight_decay": 0.0} | changes))
    with pytest.raises(DivergenceError, match=rf"diverged by epoch \d.*step size 1e\+30; lower the step size, {remedy}$"):
        train_stage([network], images, labels, 1e30, recipe, [make_generator(0)])


def test_sequences_survive_the_file(tmp_path):
    sequence = SubsetSequence(make_sequence().subsets, {"run_id": "x", "config": {"a": [1]}})
    sequence.save(tmp_path / "set.safetensors")
    loaded = load_sequence(tmp_path / "set.safetensors")
    assert loaded.sha256() == sequence.sha256()
    assert loaded.metadata == sequence.metadata
    assert [subset.lr for subset in loaded.subsets] == [0.01, 0.02, 0.03]
    save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {"num_subsets": 1})
    with pytest.raises(StorageError, match="other.safetensors is not a distilled set: 'images.1' is missing"):
        load_sequence(tmp_path / "other.safetensors")


def test_random_subsets_are_real_images_of_the_right_class():
    images, labels = make_images(60)
    subset = sample_real_subset(images, labels, CLASSES, 4, 0.1, 0, "purpose")
    assert subset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for image, label in zip(subset.images, subset.labels, strict=True):
        (row,) = (images == image).flatten(1).all(1).nonzero().flatten()
        assert labels[row] == label
    assert subset.images.data_ptr() != images.data_ptr()
    with pytest.raises(DataError, match="class 0 has 20 real images, fewer than ipc 21; lower ipc"):
        sample_real_subset(images, labels, CLASSES, 21, 0.1, 0)


def test_seeds_are_told_apart_by_purpose():
    seeds = {derive_seed(*path) for path in ((0,), (1,), (0, "a"), (0, "a", 1), (0, "a", 2), (0, "b"))}
    assert len(seeds) == 6
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1)


DRAWS = {
    "baseline": lambda stage, seed: sample_real_sequence(
        Split(stage.images, stage.labels), CLASSES, (2, 1), 0.1, seed
    ).union()[0],
    "first images": lambda stage, seed: MTT(MTTConfig()).initialise(replace(stage, seed=seed)).images,
    "network": lambda stage, seed: flatten_parameters(
        EvaluationProtocol(CLASSES, RECIPE, seed)._start(make_sequence(), NETWORK, [0])[0][0]
    ),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_what_is_drawn_is_that_of_the_seed(tmp_path, draw):
    stage = make_stage(tmp_path)
    assert torch.equal(draw(stage, 3), draw(stage, 3))
    assert not torch.equal(draw(stage, 3), draw(stage, 4))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (TrainingRecipe, {"batch_size": 0}, "training.batch_size 0"),
        (TrainingRecipe, {"momentum": 1.0}, r"training.momentum 1.0 must lie in \[0, 1\)"),
        (TrainingRecipe, {"weight_decay": -1.0}, "training.weight_decay -1.0"),
        (TrainingRecipe, {"optimizer": "adamw"}, "training.optimizer 'adamw' is unknown; use one of sgd, adam"),
        (TrainingRecipe, {"schedule": "linear"}, "training.schedule 'linear' is unknown; use one of half, steps, cosine"),
        (TrainingRecipe, {"loss": "l1"}, "loss 'l1' is unknown; use one of cross_entropy, mse"),
        (TrainingRecipe, {"cutmix": 1.5}, r"training.cutmix 1.5 must lie in \[0, 1\]"),
        (TrainingRecipe, {"augment": "x"}, "augmentation 'x'"),
        (TrainingRecipe, {"lr": -0.1}, "training.lr -0.1 must be positive, or 0 for the step sizes of the subsets"),
        (TrainingRecipe, {"lr": float("nan")}, "training.lr nan"),
        (EvaluationConfig, {"networks": ()}, "evaluation.networks is empty"),
        (EvaluationConfig, {"real_lr": 0.0}, "evaluation.real_lr 0.0 must be positive"),
        (EvaluationConfig, {"num_selections": 0}, "evaluation.num_selections 0"),
    ],
)
def test_settings_out_of_range_are_named(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)

"""Training that is stopped and goes on from its file ends bit for bit as if it had not been stopped."""

from dataclasses import replace

import pytest
import torch
from helpers import EAGER, Impatient, finish_in_parts, flip, make_images, make_stage

from seqmatch_lib.engine.evaluation import train_staged
from seqmatch_lib.engine.networks import NetworkConfig, flatten_parameters, make_network
from seqmatch_lib.engine.training import OPTIMIZERS, SCHEDULES, LoopTrainer, TrainingCheckpoint, TrainingRecipe
from seqmatch_lib.errors import OutOfTime, StorageError
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.files import load_tensors, save_tensors
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset

SHAPE, CLASSES, EPOCHS = (1, 4, 4), 3, 5
RECIPE = TrainingRecipe(epochs=EPOCHS, batch_size=4, cutmix=0.5, **EAGER)
OWNER = {"networks": [0, 1]}


def make_sequence():
    generator = make_generator(0, "images")
    subsets = [
        SyntheticSubset(torch.randn(6, *SHAPE, generator=generator), torch.arange(6) % CLASSES, lr) for lr in (0.05, 0.02)
    ]
    return SubsetSequence(tuple(subsets))


def train(recipe, norm="instance", checkpoint=None):
    """Returns all parameters and running statistics of two networks after both stages."""
    config = NetworkConfig(width=4, depth=1, norm=norm)
    networks = [make_network(config, SHAPE, CLASSES, make_generator(index)) for index in range(2)]
    generators = [make_generator(index, "batches") for index in range(2)]
    train_staged(networks, make_sequence(), recipe, generators, checkpoint=checkpoint)
    statistics = [buffer.flatten().float() for network in networks for buffer in network.buffers()]
    return torch.cat([*map(flatten_parameters, networks), *statistics])


def train_in_parts(path, recipe, norm="instance"):
    """Stops after every epoch; returns what `train` does, and how often training was stopped."""
    return finish_in_parts(lambda: train(recipe, norm, TrainingCheckpoint(path, OWNER, Impatient())))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("engine", "norm"), [("eager", "instance"), ("eager", "batch"), ("compiled", "instance")])
def test_stopped_after_every_epoch_training_ends_bit_for_bit_the_same(tmp_path, uncompiled, engine, norm, schedule, optimizer):
    recipe = replace(RECIPE, engine=engine, schedule=schedule, optimizer=optimizer)
    parts, stops = train_in_parts(tmp_path / "networks.safetensors", recipe, norm)
    assert stops == 2 * EPOCHS
    assert torch.equal(parts, train(recipe, norm))


def test_momentum_is_a_part_of_the_state(tmp_path):
    path = tmp_path / "networks.safetensors"
    with pytest.raises(OutOfTime):
        train(RECIPE, checkpoint=TrainingCheckpoint(path, OWNER, Impatient()))
    tensors, notes = load_tensors(path)
    momenta = [name for name in tensors if name.endswith("momentum_buffer")]
    assert momenta
    save_tensors(path, {name: torch.zeros_like(x) if name in momenta else x for name, x in tensors.items()}, notes)
    assert not torch.equal(train(RECIPE, checkpoint=TrainingCheckpoint(path, OWNER, Budget())), train(RECIPE))


def test_nothing_is_written_while_the_last_save_is_young(tmp_path):
    path = tmp_path / "networks.safetensors"
    train(RECIPE, checkpoint=TrainingCheckpoint(path, OWNER, Budget()))
    assert not path.exists()
    train(RECIPE, checkpoint=TrainingCheckpoint(path, OWNER, Budget(save_seconds=0)))
    assert path.exists()


def test_a_file_of_other_networks_counts_as_none(tmp_path):
    path = tmp_path / "networks.safetensors"
    with pytest.raises(OutOfTime):
        train(RECIPE, checkpoint=TrainingCheckpoint(path, {"networks": [2, 3]}, Impatient()))
    assert torch.equal(train(RECIPE, checkpoint=TrainingCheckpoint(path, OWNER, Budget())), train(RECIPE))


def test_seconds_of_stopped_processes_count(tmp_path):
    path = tmp_path / "networks.safetensors"
    with pytest.raises(OutOfTime):
        train(RECIPE, checkpoint=TrainingCheckpoint(path, OWNER, Impatient()))
    tensors, notes = load_tensors(path)
    save_tensors(path, tensors, notes | {"seconds": 1000.0})
    assert 1000 < TrainingCheckpoint(path, OWNER, Budget()).seconds < 1060
    assert TrainingCheckpoint(path, {"networks": [2]}, Budget()).seconds < 60


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "networks.safetensors"
    with pytest.raises(OutOfTime):
        train(RECIPE, checkpoint=TrainingCheckpoint(path, OWNER, Impatient()))
    tensors, notes = load_tensors(path)
    path.write_bytes(flip(path.read_bytes(), -1))
    with pytest.raises(StorageError, match=r"networks\.safetensors does not match its checksum.*delete it"):
        TrainingCheckpoint(path, OWNER, Budget())
    for lost in ("trainer.0.network.0.weight", "generator.1"):
        save_tensors(path, {name: tensor for name, tensor in tensors.items() if name != lost}, notes)
        with pytest.raises(StorageError, match=r"networks\.safetensors does not fit these networks.*delete it"):
            train(RECIPE, checkpoint=TrainingCheckpoint(path, OWNER, Budget()))


def test_networks_that_a_stage_starts_from_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    """Stopped after every epoch of both earlier stages; each epoch is made once."""
    earlier = SubsetSequence(tuple(SyntheticSubset(*make_images(6, seed), lr=0.05) for seed in range(2)))
    stage = replace(make_stage(tmp_path), index=3, frozen=earlier)
    purposes = ("pool", 0), ("pool", 1)
    expected = torch.cat([flatten_parameters(network) for network in stage.start_networks(0, *purposes)])
    stopped, epochs, epoch = replace(stage, budget=Impatient()), [], LoopTrainer.epoch

    def counted(self, *arguments):
        epochs.append(len(arguments))
        return epoch(self, *arguments)

    monkeypatch.setattr(LoopTrainer, "epoch", counted)
    found, stops = finish_in_parts(lambda: stopped.start_networks(0, *purposes))
    assert torch.equal(torch.cat([flatten_parameters(network) for network in found]), expected)
    assert stops == len(epochs) == 2 * stage.recipe.epochs
    assert not list((stage.folder / "starts").iterdir())


def test_networks_that_another_first_subset_began_are_not_gone_on_with(tmp_path):
    one, other = (SubsetSequence((SyntheticSubset(*make_images(6, seed), lr=0.05),)) for seed in range(2))
    stage = replace(make_stage(tmp_path), index=2, frozen=one)
    (expected,) = stage.start_networks(0, ("pool", 0))
    with pytest.raises(OutOfTime):
        replace(stage, frozen=other, budget=Impatient()).start_networks(0, ("pool", 0))
    (found,) = stage.start_networks(0, ("pool", 0))
    assert torch.equal(flatten_parameters(found), flatten_parameters(expected))


def test_saves_of_networks_that_a_stage_starts_from_are_no_saves_of_the_stage(tmp_path, monkeypatch):
    """Else a method that starts often and long would save its iterations hardly ever; its time ends with that of the run."""
    now, saved, save = [1000.0], [], TrainingCheckpoint.write
    monkeypatch.setattr("seqmatch_lib.store.budget.time.monotonic", lambda: now[0])
    monkeypatch.setattr(TrainingCheckpoint, "write", lambda self, *arguments: saved.append(save(self, *arguments)))
    earlier = SubsetSequence((SyntheticSubset(*make_images(6), lr=0.05),))
    stage = replace(make_stage(tmp_path), index=2, frozen=earlier, budget=Budget(max_minutes=60, save_seconds=100))

    def passing(self, *arguments):
        now[0] += 60
        return torch.zeros(1)

    monkeypatch.setattr(LoopTrainer, "epoch", passing)
    stage.start_networks(0, ("features", 0))
    assert len(saved) == 3  # of six minutes
    assert stage.budget.wants_save()
    stage.budget.saved()
    now[0] += 3300
    with pytest.raises(OutOfTime):
        stage.start_networks(0, ("features", 1))

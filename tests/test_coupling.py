"""The coupling measurements: cases with known answers, finite differences, and the definitions written out."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import CLASSES, HIGHER, NETWORK, RECIPE, SHAPE, TEACHERS, make_images, make_stage

from seqmatch_lib import coupling
from seqmatch_lib.coupling import MatchingLoss
from seqmatch_lib.data.datasets import Split
from seqmatch_lib.engine.evaluation import train_staged
from seqmatch_lib.engine.networks import flatten_parameters, make_network
from seqmatch_lib.errors import ConfigError, StorageError
from seqmatch_lib.methods.mtt import MTTConfig
from seqmatch_lib.methods.teachers import record_stage_teachers
from seqmatch_lib.runs.config import RunConfig, config_of_subsets
from seqmatch_lib.runs.coupling_measurements import find_table, load_coupling, measure_coupling
from seqmatch_lib.runs.experiment import open_run, run_experiment
from seqmatch_lib.runs.order import runs_of_order
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.store.files import read_json
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset, load_sequence, sample_real_subset, set_path


@pytest.fixture
def problem(float64, generator):
    """Two halves of a small set, and a match towards random parameters."""
    network = make_network(NETWORK, SHAPE, CLASSES, generator)
    start = flatten_parameters(network)
    target = start + 0.1 * torch.randn(start.shape, generator=generator)
    images = torch.randn(6, *SHAPE, generator=generator)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return (
        MatchingLoss(network, (start, target), steps=3, lr=0.3),
        start,
        target,
        (images[:3], labels[:3]),
        (images[3:], labels[3:]),
    )


def test_errors_are_zero_at_the_target_and_one_for_no_steps(problem):
    match, start, _, a, _ = problem
    reached = match.reach(*a).detach()
    assert MatchingLoss(match._network, (start, reached), 3, 0.3).error(*a) == pytest.approx(0, abs=1e-20)
    assert MatchingLoss(match._network, (start, reached), 3, 1e-30).error(*a) == pytest.approx(1)
    with pytest.raises(ConfigError, match="steps 0 must be at least 1"):
        MatchingLoss(match._network, (start, reached), 0, 0.3)


def test_gradients_equal_finite_differences(problem):
    """The shift is tiny, since the error leaps where a step of the inner loop meets the kink of a ReLU."""
    match, _, _, (images, labels), _ = problem
    gradient = match.gradient(images, labels)
    for index in ((0, 0, 1, 2), (1, 0, 3, 3), (2, 0, 5, 0)):
        sides = []
        for shift in (1e-7, -1e-7):
            moved = images.clone()
            moved[index] += shift
            sides.append(match.error(moved, labels))
        assert gradient[index].item() == pytest.approx((sides[0] - sides[1]) / 2e-7, rel=1e-4, abs=1e-8)


def test_coupling_is_its_definition_and_that_with_copies_is_their_share(problem):
    """Beside copies of A the mean loss is that of A, and each image has a smaller share in it."""
    match, _, _, a, b = problem
    alone = match.gradient(*a)
    together = match.gradient(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]]))
    assert match.coupling(a, b) == pytest.approx(((together[:3] - alone).norm() / alone.norm()).item())
    for copies, share in ((1, 1 / 2), (2, 2 / 3)):
        assert match.coupling(a, (a[0].repeat(copies, 1, 1, 1), a[1].repeat(copies))) == pytest.approx(share)


def test_repair_is_all_that_a_powerless_second_half_can_do(problem):
    match, start, target, a, b = problem
    share = match.repair_share(a, b)
    assert -1 <= share <= 1
    # where both halves stay at the start, the residual is A's alone
    still = MatchingLoss(match._network, (start, target), 3, 1e-9)
    assert still.repair_share(a, b) == pytest.approx(1, abs=1e-5)


def test_repair_share_is_its_definition(problem):
    match, _, target, a, b = problem
    own = b[0].clone().requires_grad_()
    reached = match.reach(torch.cat([a[0], own]), torch.cat([a[1], b[1]]))
    residual, residual_of_a = reached.detach() - target, match.reach(*a).detach() - target
    columns = [torch.autograd.grad(one, own, retain_graph=True)[0].flatten() for one in reached]
    jacobian = torch.stack(columns)
    whole, repair = residual @ jacobian, residual_of_a @ jacobian
    assert match.repair_share(a, b) == pytest.approx((whole @ repair / whole.norm() / repair.norm()).item())


def test_the_compiled_inner_loop_measures_the_same(problem):
    match, start, target, a, b = problem
    compiled = MatchingLoss(match._network, (start, target), 3, 0.3, engine="compiled")
    assert compiled.coupling(a, b) == pytest.approx(match.coupling(a, b), rel=1e-9)
    assert compiled.repair_share(a, b) == pytest.approx(match.repair_share(a, b), rel=1e-9)


def test_growing_sets_have_a_row_for_each_size_and_match(problem):
    match = problem[0]
    images = torch.randn(CLASSES * 4, *SHAPE)
    labels = torch.arange(CLASSES).repeat_interleave(4)
    frame = coupling.coupling_of_subsets([match, match], images, labels, CLASSES, (2, 4))
    assert frame["ipc"].tolist() == [2, 2, 4, 4]
    by_hand = match.coupling((images[::4], labels[::4]), (images[1::4], labels[1::4]))
    assert frame["coupling"][0] == pytest.approx(by_hand)
    with pytest.raises(ConfigError, match="size 3 must be even"):
        coupling.coupling_of_subsets([match], images, labels, CLASSES, (3,))


def test_real_training_is_watched_image_by_image():
    real = Split(*make_images(60))
    network = make_network(NETWORK, SHAPE, CLASSES, make_generator(0))
    losses = coupling.follow_real_training(network, real, TEACHERS, 5, make_generator(1), real)
    assert losses.shape == (6, 60)
    assert losses[-1].mean() < losses[0].mean()
    assert torch.equal(losses[-1], coupling.image_losses(network, real)), "after the last epoch"
    easy = coupling.split_easy_hard(losses)
    assert easy.sum() == 30
    drop = losses[0] - losses[1]
    assert drop[easy].min() >= drop[~easy].max()
    deciles = coupling.difficulty_deciles(losses)
    assert torch.bincount(deciles).tolist() == [6] * 10
    assert losses[1:, deciles == 0].mean() < losses[1:, deciles == 9].mean()


def test_mean_losses_of_easy_and_hard_images_by_hand():
    losses = torch.tensor([[2.0, 4.0, 6.0], [1.0, 3.5, 2.5]])
    frame = coupling.mean_losses(losses, torch.tensor([True, False, False]), "real").set_index(["images", "step"])
    assert frame["loss"].to_dict() == {("easy", 0): 2, ("easy", 1): 1, ("hard", 0): 5, ("hard", 1): 3}
    assert frame["rate"].dropna().to_dict() == {("easy", 1): 1, ("hard", 1): 2}


def test_staged_training_is_that_of_the_evaluation():
    images, labels = make_images(60)
    subsets = [sample_real_subset(images, labels, CLASSES, ipc, 0.05, 0, "x", ipc) for ipc in (2, 3)]
    sequence = SubsetSequence(tuple(subsets))
    networks = [make_network(NETWORK, SHAPE, CLASSES, make_generator(0)) for _ in range(2)]
    real = Split(images, labels)
    losses = coupling.follow_staged_training(networks[0], sequence, RECIPE, real, make_generator(1))
    train_staged([networks[1]], sequence, RECIPE, [make_generator(1)])
    assert losses.shape == (3, 60)
    assert torch.equal(losses[-1], coupling.image_losses(networks[0], real)), "after the last stage"
    assert torch.equal(flatten_parameters(networks[0]), flatten_parameters(networks[1]))


def test_accuracies_by_group():
    class Guess(torch.nn.Module):
        def forward(self, x):
            return x

    images, labels = torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, 0, 0, 0])
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    assert coupling.group_accuracies(Guess(), Split(images, labels), groups) == {0: 100.0, 1: pytest.approx(100 / 3)}


def test_errors_along_a_trajectory_have_a_row_for_each_epoch_and_teacher(tmp_path):
    stage = make_stage(tmp_path)
    teachers = record_stage_teachers(stage)
    network = stage.make_network(0, "any")
    sequence = SubsetSequence(tuple(SyntheticSubset(*make_images(6, seed), lr) for seed, lr in ((0, 0.01), (1, 0.05))))
    mtt = MTTConfig(syn_steps=4, expert_epochs=2, **HIGHER)
    frame = coupling.errors_along_trajectory(network, teachers, sequence, mtt, (0, 2))
    assert frame["epoch"].tolist() == [0, 0, 2, 2]
    match = MatchingLoss(network, teachers.segment(1, 2, 4), 4, 0.05)  # the last step size
    assert frame["error"][3] == pytest.approx(match.error(*sequence.union()))


def test_real_training_with_the_batches_of_the_teacher_has_no_error_and_with_others_it_has(tmp_path, monkeypatch):
    stage = make_stage(tmp_path)
    teachers, real = record_stage_teachers(stage), Split(stage.images, stage.labels)

    def errors():
        given = teachers, real, stage.teachers, 1, (0, 2), (1,), 0
        return coupling.errors_of_real_training(stage.make_network(0, "any"), *given).set_index(["epoch", "teacher"])["error"]

    others = errors()
    assert others.index.tolist() == [(0, 1), (2, 1)]
    assert others.gt(0.001).all()
    monkeypatch.setattr(
        coupling,
        "make_generator",
        lambda _, __, teacher, epoch: make_generator(TEACHERS.seed, "teacher", teacher, "epoch", epoch),
    )
    assert errors().tolist() == pytest.approx([0, 0], abs=1e-9)


def test_committed_measurements_are_read_and_missing_ones_named(tmp_path):
    run_id = "cifar10-seqmatch_mtt-ipc10-k2-seed0-0818608f"
    measured = load_coupling(run_id, Path(__file__).parents[1] / "paper_results")
    assert set(measured["losses"]["training"]) == {"real data", "MTT", "SeqMatch"}
    assert set(measured["deciles"]["after"]) == {"stage 1", "stage 2"}
    assert set(measured["deciles"]["network"]) == {0}  # of which its file says nothing
    with pytest.raises(StorageError, match="has no measurements; run 01_coupling_issue"):
        load_coupling(run_id, tmp_path)


def test_a_pair_of_runs_is_measured_and_the_tables_are_kept(tmp_path):
    configs = [config_of_subsets("digits", "mtt", sizes, "smoke") for sizes in ([10], [5, 5])]
    other_half = runs_of_order(configs[1])["part 2"]
    for config in (*configs, other_half):
        run_experiment(config, tmp_path)
    path = set_path(tmp_path, configs[1].run_id, selected=True)
    first, second = load_sequence(path).subsets
    SubsetSequence((first, replace(second, images=-second.images))).save(path)  # surely another set than the last
    assert list(measure_coupling(*configs, [], tmp_path, ["losses"])) == ["losses"]
    noted = read_json(tmp_path / "coupling" / configs[1].run_id / "sets.json")
    assert list(noted["tables"]) == ["losses"]
    assert noted["tables"]["losses"]["torch"] == torch.__version__
    with pytest.raises(ConfigError, match=r"tables \['loss'\] are unknown; use any of gradients"):
        measure_coupling(*configs, [], tmp_path, ["loss"])
    measured = measure_coupling(*configs, [], tmp_path)
    assert measured["gradients"]["ipc"].max() == 10
    assert measured["gradients"]["coupling"].gt(0).all()
    keys = ["ipc", "match", "start epoch", "teacher"]
    assert measured["real_gradients"][keys].equals(measured["gradients"][keys])
    assert not measured["real_gradients"].equals(measured["gradients"])
    assert measured["gradients"].groupby(keys[:3])["coupling"].nunique().eq(3).all(), "three teachers, each with its own value"
    after = ["$S_1 \\cup S_2$, after $S_1$", "$S_1$ repeated, after $S_1$"]
    assert measured["errors"]["set"].unique().tolist() == ["MTT, 10 images", "$S_1$", *after]
    assert set(measured["real_errors"]["set"]) == {"10 random real, step size of MTT", "5 random real, step size of $S_1$"}
    assert len(measured["real_errors"]) == 2 / 4 * len(measured["errors"]), (
        "at the same start epochs, of the teachers of stage 1"
    )
    trainings = measured["training_errors"].set_index(["set", "epoch", "teacher"])["error"]
    assert trainings.index.get_level_values("set").unique().tolist() == ["real training", "real training, after $S_1$"]
    assert set(trainings.index.get_level_values("epoch")) == set(measured["errors"]["epoch"])
    assert trainings.gt(0).all()
    seen, unseen = (set(measured[name]["teacher"]) for name in ("errors", "unseen_errors"))
    assert len(unseen) == 3
    assert min(unseen) == max(seen) + 1, "teachers that no set was distilled with"
    assert set(measured["unseen_errors"]["set"]) == {"MTT, 10 images, unseen teachers", "$S_1$, unseen teachers"}
    assert measured["losses"].groupby("training")["step"].max().to_dict() == {"MTT": 1, "SeqMatch": 2, "real data": 4}
    controls = measured["control_losses"].set_index(["training", "images", "step"])["loss"]
    assert controls.index.droplevel("images").unique().tolist() == [
        ("MTT, as many epochs", 0), ("MTT, as many epochs", 1), *(("$S_1$ repeated", step) for step in range(3)),
        *(("independent halves", step) for step in range(3)),
    ]  # fmt: skip
    losses = measured["losses"].set_index(["training", "images", "step"])["loss"]
    for images in ("easy", "hard"):
        assert controls["MTT, as many epochs", images, 0] == losses["MTT", images, 0], "the same network at first"
        assert controls["MTT, as many epochs", images, 1] != losses["MTT", images, 1]
        for name in ("$S_1$ repeated", "independent halves"):
            for step, same in ((0, True), (1, True), (2, False)):  # S_1 comes first in all
                assert (controls[name, images, step] == losses["SeqMatch", images, step]) == same
        assert controls["$S_1$ repeated", images, 2] != controls["independent halves", images, 2]
    assert sorted(set(measured["deciles"]["decile"])) == list(range(10))
    by_network = measured["deciles"].pivot_table("accuracy", "network", ["after", "decile"])
    assert len(by_network) == configs[1].evaluation.num_networks == len(set(map(tuple, by_network.to_numpy()))) > 1
    trained = measured["control_deciles"].pivot_table("accuracy", "after", "decile", sort=False)
    assert trained.index.tolist() == ["MTT", "MTT, as many epochs", "$S_1$ repeated", "independent halves"]
    assert len(set(map(tuple, trained.to_numpy()))) == 4
    chosen = measured["selected_deciles"].set_index("decile")["accuracy"]
    assert set(measured["selected_deciles"]["after"]) == {"SeqMatch, selected iterate"}
    assert chosen.tolist() != measured["deciles"].query("after == 'stage 2'")["accuracy"].tolist()
    assert measured["subsets"]["K"].eq(2).all()

    (_, joint, _), (_, sequence, stages) = (open_run(config, tmp_path) for config in configs)
    first, mtt, last = SubsetSequence(sequence.subsets[:1]), configs[1].options, measured["errors"]["epoch"].max()

    def match(stage, epoch, sequence, teacher=1):
        """A teacher of a stage, and the last step size of a set."""
        teachers = record_stage_teachers(replace(stage, teachers=replace(stage.teachers, num_teachers=teacher + 1)))
        segment = teachers.segment(teacher, epoch, epoch + mtt.expert_epochs)
        return MatchingLoss(stage.make_network(0, "any"), segment, mtt.syn_steps, sequence.subsets[-1].lr)

    given, lr = (stages[0].images, stages[0].labels, 10, 5), first.subsets[0].lr
    repeated = replace(first.subsets[0], lr=sequence.subsets[1].lr)
    real = SubsetSequence((sample_real_subset(*given, lr, 0, "matching error", 5),))
    for table, name, stage, measured_set, teacher in (
        ("errors", "MTT, 10 images", 0, joint, 1),
        ("errors", "$S_1$", 0, first, 1),
        ("errors", "$S_1 \\cup S_2$, after $S_1$", 1, sequence, 1),
        ("errors", "$S_1$ repeated, after $S_1$", 1, SubsetSequence((first.subsets[0], repeated)), 1),
        ("unseen_errors", "MTT, 10 images, unseen teachers", 0, joint, max(unseen)),
        ("unseen_errors", "$S_1$, unseen teachers", 0, first, max(unseen)),
        ("real_errors", "5 random real, step size of $S_1$", 0, real, 1),
    ):
        found = measured[table].set_index(["set", "epoch", "teacher"])["error"][name, last, teacher]
        error = match(stages[stage], last, measured_set, teacher).error(*measured_set.union())
        assert found == pytest.approx(error, abs=1e-4)
    (again,) = coupling.errors_of_real_training(
        stages[1].make_network(0, "any"), record_stage_teachers(stages[1]), Split(stages[1].images, stages[1].labels),
        stages[1].teachers, mtt.expert_epochs, [last], [0], 0,
    )["error"]  # fmt: skip
    assert trainings["real training, after $S_1$", last, 0] == pytest.approx(again, abs=1e-4)
    images, labels = joint.union()
    halves = (images[::10], labels[::10]), (images[1::10], labels[1::10])
    found = measured["gradients"].set_index(["ipc", "start epoch", "teacher"]).loc[2, last, 1]
    assert found["coupling"] == pytest.approx(match(stages[0], last, joint).coupling(*halves), rel=1e-3)
    parts = [(subset.images, subset.labels) for subset in sequence.subsets]
    found = measured["subsets"].set_index("teacher").loc[1]
    assert found["coupling_of_earlier"] == pytest.approx(match(stages[1], 0, sequence).coupling(*parts), rel=1e-3)
    assert found["repair_by_last"] == pytest.approx(match(stages[1], 0, sequence).repair_share(*parts), rel=1e-3)
    assert load_coupling(configs[1].run_id, tmp_path).keys() == measured.keys()
    noted = read_json(tmp_path / "coupling" / configs[1].run_id / "sets.json")
    assert noted["tables"].keys() == measured.keys(), "those of earlier calls, too"
    assert set(noted["sets"]) == {run.run_id for run in (*configs, other_half)}


def test_controls_whose_sets_are_missing_are_left_out(tmp_path):
    """Independent halves take a run of their own. And S_1 repeated is S_1 with the step sizes of the later subsets."""
    configs = [config_of_subsets("digits", "mtt", sizes, "smoke") for sizes in ([10], [5, 5])]
    for config in configs:
        run_experiment(config, tmp_path)
    distilled, selected = (set_path(tmp_path, configs[1].run_id, selected) for selected in (False, True))
    shutil.copy(distilled, selected)  # the last iterate is the selected one
    measured = measure_coupling(*configs, [], tmp_path, ["control_losses", "selected_deciles"])
    selected.unlink()  # as in runs of older versions
    assert measure_coupling(*configs, [], tmp_path, ["control_losses", "selected_deciles"]).keys() == measured.keys()
    assert list(measured) == ["control_losses"]
    assert measured["control_losses"]["training"].unique().tolist() == ["MTT, as many epochs", "$S_1$ repeated"]
    noted = read_json(tmp_path / "coupling" / configs[1].run_id / "sets.json")
    assert set(noted["sets"]) == {run.run_id for run in configs}
    _, sequence, (stage, _) = open_run(configs[1], tmp_path)
    first, second = sequence.subsets
    real, means = Split(stage.images, stage.labels), []
    for lr in (second.lr, first.lr):
        network, repeated = stage.make_network(0, "watched", "SeqMatch"), SubsetSequence((first, replace(first, lr=lr)))
        given = repeated, configs[1].training, real, make_generator(0, "SeqMatch")
        means.append(coupling.follow_staged_training(network, *given)[-1].mean().item())
    rows = measured["control_losses"].query("training == '$S_1$ repeated' and step == 2").set_index("images")["loss"]
    easy = len(real.labels) // 2
    mean = (easy * rows["easy"] + (len(real.labels) - easy) * rows["hard"]) / len(real.labels)
    assert mean == pytest.approx(means[0], abs=1e-5)
    assert mean != pytest.approx(means[1], abs=1e-4), "with the step size of S_1 it would be another mean"


def test_a_stopped_measurement_goes_on_and_teachers_of_stage_2_may_be_shorter(tmp_path):
    """At published settings the teachers of stage 2 have fewer epochs than the interval of one set."""
    joint = config_of_subsets("digits", "mtt", [10], "smoke")
    shorter = {"intervals": [[0, 3], [0, 3]], "teachers.later_epochs": 3}
    sequential = RunConfig.from_preset("digits-ipc10-seqmatch_mtt", "smoke", overrides=shorter)
    for config in (joint, sequential):
        run_experiment(config, tmp_path)
    folder = tmp_path / "coupling" / sequential.run_id
    folder.mkdir(parents=True)
    (folder / "losses.csv").write_text("measured\nbefore\n")
    measured = measure_coupling(joint, sequential, [], tmp_path, ["losses", "errors"])
    assert measured["losses"]["measured"].tolist() == ["before"]
    assert sorted(set(measured["errors"]["epoch"])) == [0, 1], "start epochs whose ends all teachers have recorded"
    assert set(measured["errors"].groupby("epoch")["set"].nunique()) == {4}


def test_tables_of_other_sets_are_neither_used_nor_read(tmp_path, capsys):
    """As after `run --force`, or when another run of the base method is asked about."""
    joint, other = (
        RunConfig.from_preset("digits-ipc10-mtt", "smoke", overrides={"mtt.lr_img": lr_img}) for lr_img in (0.1, 0.2)
    )
    sequential = config_of_subsets("digits", "mtt", [5, 5], "smoke")
    for config in (joint, other, sequential):
        record = run_experiment(config, tmp_path)
    measure_coupling(joint, sequential, [], tmp_path, ["losses"])
    assert find_table(record, "losses", tmp_path).is_file()
    with pytest.raises(
        StorageError, match=f"another set of {joint.run_id}, or of another run of the base method; delete it to measure again"
    ):
        measure_coupling(other, sequential, [], tmp_path, ["losses"])
    assert find_table(replace(record, synthetic_sha256="0" * 64), "losses", tmp_path) is None
    assert f"was measured on another set than that of {record.run_id} here" in capsys.readouterr().err

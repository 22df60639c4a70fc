"""Numbers and images at the edge of what is meant: each is an error that says what to do, or gives finite results.

What is tested elsewhere is not repeated here. A step size driven negative, and a loss of MTT that explodes: test_seqmatch.py;
teachers and evaluations that diverge: test_trajectories.py, test_evaluation.py; fewer real images than ipc: test_evaluation.py
and test_experiment.py; an ipc that K does not divide, and K beyond ipc: test_config.py, test_seqmatch.py; tiles that do not
divide the side: test_multi_formation.py; labels out of range, missing classes and grey images in shards, and a validation
split of a class with one image: test_data.py.
"""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz_layouts import read_layout
from fuzz_own_files import set_metadata
from fuzz_samples import PLAIN, make_set
from helpers import CLASSES, EAGER, SHAPE, checkpoints, make_images, make_stage
from PIL import Image
from test_cli import fails_in_one_line
from test_methods import METHODS

from seqmatch_lib.__main__ import main
from seqmatch_lib.data.datasets import DATASETS, DatasetSpec, Split, load_dataset, split_validation
from seqmatch_lib.data.preprocessing import Normalisation, Whitening
from seqmatch_lib.data.readers import read_header, read_image_files
from seqmatch_lib.engine.evaluation import EvaluationProtocol
from seqmatch_lib.engine.networks import NORMS, NetworkConfig
from seqmatch_lib.engine.training import TRAINING_ENGINES, TrainingRecipe
from seqmatch_lib.errors import ConfigError, DataError, DivergenceError
from seqmatch_lib.exchange.formats import export_sequence
from seqmatch_lib.methods.krr import KRRPrepared, regress
from seqmatch_lib.runs.config import RunConfig, parse_override
from seqmatch_lib.runs.distillation import distill_stages
from seqmatch_lib.runs.real_data import prepare_data
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.files import load_tensors, save_tensors
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset

QUICK = TrainingRecipe(epochs=3, **EAGER)
ODD = (math.nan, math.inf, 0.0, -0.1)


# --- distilled sets that somebody hands in


def write_digits(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], soft: bool = False) -> Path:
    """Writes a set of digits with one of its tensors changed, checksum and all."""
    path = folder / "set.safetensors"
    config = set_metadata()["config"] | {"training": {"epochs": 1}, "evaluation": {"num_networks": 1}}
    replace(make_set(DATASETS["digits"].shape, 10, soft), metadata={"config": config}).save(path)
    tensors, metadata = load_tensors(path)
    tensors[name] = change(tensors[name])
    save_tensors(path, tensors, metadata)
    return path


def at_one_place(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns what puts a value into one place of a tensor."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed.view(-1)[tensor.numel() // 2] = value
        return changed

    return change


@pytest.mark.parametrize(
    ("name", "change", "soft", "message"),
    [
        *[("images.2", at_one_place(value), False, "subset 2 has pixels that are not finite") for value in ODD[:2]],
        *[("labels.1", at_one_place(value), True, "subset 1 has soft labels that are not 10 finite") for value in ODD[:2]],
        *[("lr.1", at_one_place(value), False, f"step size of {value}, which must be positive") for value in ODD],
        ("labels.1", at_one_place(10), False, "labels from 0 to 10, but they must lie in 0 … 9"),
        ("labels.1", at_one_place(-1), False, "labels from -1 to 9"),
        ("labels.1", at_one_place(0), False, "from 1 to 3 images per class; all classes must have the same number"),
        ("labels.1", lambda labels: labels.int(), False, "labels of torch.int32"),
        ("labels.1", lambda labels: labels[:, None], False, "shape (20, 1), not one int64 class an image"),
        ("labels.1", lambda labels: labels.double(), True, "finite float32 numbers for each image"),
        ("labels.1", lambda labels: labels[:-1], False, "20 images but labels of shape (19,)"),
        ("images.1", lambda images: images.double(), False, "images of torch.float64 instead of float32"),
        ("images.1", lambda images: images[:0], False, "has no images"),
        ("images.1", lambda images: images[:, :, :7], False, "images of shape (1, 7, 8), but the data set has (1, 8, 8)"),
    ],
)  # fmt: skip
def test_a_set_that_cannot_be_trained_on_is_refused(tmp_path, capsys, name, change, soft, message):
    path = write_digits(tmp_path, name, change, soft)
    for command in (["evaluate"], ["export", "--to", "parquet", "--out", str(tmp_path / "out")]):
        assert message in fails_in_one_line(capsys, command[0], str(path), *command[1:])
    assert not (tmp_path / "out").exists()


def test_the_same_set_unchanged_is_evaluated_and_exported(tmp_path, capsys):
    path = write_digits(tmp_path, "images.1", lambda images: images)
    assert main(["evaluate", str(path)]) == 0
    assert main(["export", str(path), "--to", "parquet", "--out", str(tmp_path / "out")]) == 0
    assert "convnet: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images_best.pt", torch.full((3, *SHAPE), math.nan), "S_2/images_best.pt holds pixels that are not finite"),
        ("images_best.pt", torch.zeros(0, *SHAPE), "S_2/images_best.pt holds no images"),
        ("labels_best.pt", torch.tensor([0, 1, 3]), "subset 2 has labels from 0 to 3, but they must lie in 0 … 2"),
        ("labels_best.pt", torch.tensor(1), r"3 images but labels of shape \(\)"),
        ("best_lr.pt", torch.tensor(math.nan), "subset 2 has a step size of nan"),
        ("best_lr.pt", torch.tensor(-1), "subset 2 has a step size of -1"),
    ],
)
def test_an_imported_set_that_cannot_be_trained_on_is_refused(tmp_path, name, value, message):
    export_sequence(make_set(), "mtt", tmp_path, PLAIN, "abc")
    (tmp_path / "SHA256SUMS").unlink()
    torch.save(value, tmp_path / "S_2" / name)
    with pytest.raises(DataError, match=message):
        read_layout("mtt", tmp_path)


def test_soft_labels_of_zero_become_finite_logits(tmp_path):
    certain = [replace(subset, labels=torch.eye(CLASSES)[subset.labels]) for subset in make_set().subsets]
    export_sequence(SubsetSequence(tuple(certain)), "datm", tmp_path, PLAIN, "abc")
    for subset, back in zip(certain, read_layout("datm", tmp_path).subsets, strict=True):
        torch.testing.assert_close(back.labels, subset.labels)
    (tmp_path / "SHA256SUMS").unlink()
    torch.save(torch.full((3, CLASSES), -math.inf), tmp_path / "S_2" / "labels_best.pt")
    with pytest.raises(DataError, match="subset 2 has soft labels that are not 3 finite"):
        read_layout("datm", tmp_path)


# --- settings


@pytest.mark.parametrize(
    "key", ["training.momentum", "mtt.syn_lr", "mtt.lr_img", "mtt.lr_lr", "evaluation.real_lr", "teachers.lr"]
)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "1e39"])
def test_settings_must_be_finite(key, value):
    with pytest.raises(ConfigError, match=rf"{key} = .* must be a finite number"):
        RunConfig.from_preset("digits-ipc10-mtt", "smoke", overrides=dict([parse_override(f"{key}={value}")]))


def test_settings_must_be_numbers_that_fit_into_64_bits():
    for value in (10**30, -(10**400)):
        with pytest.raises(ConfigError, match="mtt.iterations = .* at most 63 bits"):
            RunConfig.from_preset("digits-ipc10-mtt", "smoke", overrides={"mtt.iterations": value})
    with pytest.raises(ConfigError, match="mtt.lr_img = 1000.* must be a finite number"):
        RunConfig.from_preset("digits-ipc10-mtt", "smoke", overrides={"mtt.lr_img": 10**400})


# --- distillation that leaves the finite numbers


def spoil_loss(loss, trainable):
    return loss * math.nan


def spoil_gradient(loss, trainable):
    trainable.images.grad.view(-1)[3] = math.inf
    return loss


def spoil_step(loss, trainable):
    trainable.optimizers["images"].param_groups[0]["lr"] = 3e38
    trainable.images.grad.fill_(10.0)  # finite, as is the rate: the images would not be
    return loss


def spoil_step_size(loss, trainable):
    trainable.lr.grad.fill_(math.nan)
    return loss


def distil(folder, method, stage=None, ipcs=(2,)):
    stage = stage or make_stage(folder)
    return distill_stages(method, stage, ipcs, ((0, 4), (0, 3))[: len(ipcs)], checkpoints(folder))


@pytest.mark.parametrize(
    ("name", "spoil"), [*product(METHODS, (spoil_loss, spoil_gradient, spoil_step)), ("mtt", spoil_step_size)]
)
def test_what_is_not_finite_stops_a_run_and_leaves_nothing_of_its_own(tmp_path, monkeypatch, name, spoil):
    """Without the fault the same call then ends, bit for bit, as a run that never met it: nothing of that step was saved."""
    method, good = METHODS[name], 1
    step = type(method).step

    def spoiled(self, prepared, trainable, frozen, generator):
        loss = step(self, prepared, trainable, frozen, generator)
        return spoil(loss, trainable) if trainable.iteration == good else loss

    monkeypatch.setattr(type(method), "step", spoiled)
    saving = replace(make_stage(tmp_path / "spoiled"), budget=Budget(save_seconds=0.0))  # after every iteration
    with pytest.raises(DivergenceError, match=rf"stage 1, iteration {good}: .* is not finite. Lower"):
        distil(tmp_path / "spoiled", method, saving)
    monkeypatch.setattr(type(method), "step", step)
    (found,), (whole,) = (distil(tmp_path / name, method) for name in ("spoiled", "whole"))
    assert found.trainable.iteration == whole.trainable.iteration > good + 1
    for one in ("images", "labels", "lr"):
        ours, theirs = getattr(found.trainable, one), getattr(whole.trainable, one)
        assert torch.equal(ours, theirs), one
        assert ours.isfinite().all()
    assert found.trainable.losses == whole.trainable.losses
    for key, optimizer in found.trainable.optimizers.items():
        memory = [one.state[one.param_groups[0]["params"][0]] for one in (optimizer, whole.trainable.optimizers[key])]
        assert memory[0].keys() == memory[1].keys()
        assert all(torch.equal(memory[0][part], memory[1][part]) for part in memory[0])


@pytest.mark.parametrize(
    ("method", "setting", "named"),  # neither method trains on its set, so syn_lr does nothing
    [("dm", "dm.lr_img=1e37", "lr_img"), ("krr", "krr.net_lr=1e37", "lr_img, net_lr")],
)
def test_a_run_that_diverges_tells_so_in_one_line_and_leaves_no_set(tmp_path, capsys, method, setting, named):
    arguments = ["--scale", "smoke", "--results", str(tmp_path), "--set", setting, "--set", f"{method}.iterations=99"]
    assert main(["run", f"digits-ipc10-{method}", *arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert error[0].endswith(f"is not finite. Lower {named}")
    assert not (tmp_path / "distilled").exists()
    assert not (tmp_path / "runs").exists()


def test_features_that_vanish_are_told_as_a_loss_not_as_a_failing_solver(tmp_path, monkeypatch):
    assert regress(torch.zeros(2, 4), torch.zeros(3, 4), torch.eye(3), 1e-6).isnan().all()
    monkeypatch.setattr(KRRPrepared, "features", lambda self, index: lambda images: 0 * images.flatten(1))
    with pytest.raises(DivergenceError, match="stage 1, iteration 0: the loss is nan"):
        distil(tmp_path, METHODS["krr"])


# --- images that do not vary


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (
            (0.5, 0.5),
            (0.2, 0.0),
            r"std \[0.2, 0.0\] must be positive in every channel; leave a channel that never changes at 1",
        ),
        ((0.5,), (-1.0,), "must be positive"),
        ((0.5,), (math.nan,), "must be positive"),
        ((0.5,), (math.inf,), "must be positive"),
        ((math.nan,), (0.5,), r"mean \[nan\] must be finite"),
        ((math.inf,), (0.5,), r"mean \[inf\] must be finite"),
    ],
)
def test_normalisation_needs_a_spread(mean, std, message):
    with pytest.raises(DataError, match=message):
        Normalisation(mean, std)


@pytest.mark.parametrize("constant", ["channel", "pixel", "all"])
def test_whitening_of_what_does_not_vary_is_finite_and_invertible(generator, constant):
    images = torch.randint(256, (50, 2, 4, 4), dtype=torch.uint8, generator=generator)
    match constant:
        case "channel":
            images[:, 1] = 7
        case "pixel":
            images[:, :, 0, 0] = 255
        case "all":
            images[:] = 7
    whiten = Whitening(images)
    assert whiten(images).isfinite().all()
    torch.testing.assert_close(whiten.inverse(whiten(images)), images / 255.0, atol=1e-4, rtol=0)


def test_whitening_needs_two_images():
    with pytest.raises(DataError, match="ZCA whitening needs at least 2 training images, not 1"):
        Whitening(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])  # zero is the mean colour
@pytest.mark.parametrize("name", METHODS)
def test_constant_images_distil_to_finite_ones_that_evaluate(tmp_path, name, value):
    stage = make_stage(tmp_path)
    stage = replace(stage, images=torch.full_like(stage.images, value))
    stages = distil(tmp_path, METHODS[name], stage, (2, 1))
    sequence = SubsetSequence(tuple(progress.last for progress in stages))
    assert all(subset.images.isfinite().all() and 0 < subset.lr < math.inf for subset in sequence.subsets)
    assert all(math.isfinite(loss) for progress in stages for loss in progress.trainable.losses)
    recipe = replace(QUICK, loss="mse" if name == "krr" else "cross_entropy")
    test = Split(stage.images[:9], stage.labels[:9])
    (accuracy,) = EvaluationProtocol(CLASSES, recipe, 0).accuracies(sequence, test, stage.network, [0])
    assert 0 <= accuracy <= 100


# --- few images


def only(stage, per_class):
    """Returns the stage with so many real images a class."""
    rows = torch.cat([members[:per_class] for members in stage.rows_by_class()])
    return replace(stage, images=stage.images[rows], labels=stage.labels[rows])


@pytest.mark.parametrize("name", METHODS)
def test_one_real_image_a_class_is_enough_for_one_distilled(tmp_path, name):
    (progress,) = distil(tmp_path, METHODS[name], only(make_stage(tmp_path), 1), (1,))
    assert progress.last.images.shape == (CLASSES, *SHAPE)
    assert progress.last.images.isfinite().all()
    with pytest.raises(DataError, match="class 0 has 1 real image, fewer than ipc 2; lower ipc"):
        distil(tmp_path / "two", METHODS[name], only(make_stage(tmp_path), 1), (2,))


BATCHES_OF_ONE = {
    "mtt": {"batch_syn": 1},
    "idc": {"batch_real": 1, "batch_syn_max": 1, "net_batch_size": 1, "n_data": 1},
    "dm": {"batch_real": 1},
    "krr": {"batch_real": 1, "batch_syn": 1},
}


@pytest.mark.parametrize("name", METHODS)
def test_batches_of_one_image(tmp_path, name):
    stage = make_stage(tmp_path)
    one = {"batch_size": 1}
    stage = only(replace(stage, teachers=replace(stage.teachers, **one), recipe=replace(stage.recipe, **one)), 2)
    if name == "krr":
        stage = replace(stage, recipe=replace(stage.recipe, loss="mse"))
    method = type(METHODS[name])(replace(METHODS[name].config, **BATCHES_OF_ONE[name]))
    stages = distil(tmp_path, method, stage, (1, 1))  # the second stage trains networks on the first, image by image
    assert all(progress.last.images.isfinite().all() for progress in stages)


@pytest.mark.parametrize("engine", TRAINING_ENGINES)
@pytest.mark.parametrize("norm", NORMS)
def test_networks_train_on_one_image(norm, engine, uncompiled):
    images, labels = make_images(1)
    sequence = SubsetSequence((SyntheticSubset(images, labels, 0.01),))
    protocol, test = EvaluationProtocol(CLASSES, replace(QUICK, batch_size=1, engine=engine), 0), Split(images, labels)
    network = NetworkConfig(width=4, depth=2, norm=norm)
    if (norm, engine) == ("batch", "compiled"):
        with pytest.raises(ConfigError, match="cannot be trained by engine 'compiled'; use 'eager' in 'float32'"):
            protocol.accuracies(sequence, test, network, [0])
        return
    (accuracy,) = protocol.accuracies(sequence, test, network, [0])
    assert accuracy in (0.0, 100.0)


@pytest.mark.parametrize("name", ["resnet18", "resnet18_ap"])
def test_one_image_of_which_one_pixel_is_left(name):
    """Three halvings leave one pixel of eight: an instance is its own mean, and a batch of one has no spread at all."""
    images, labels = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    sequence = SubsetSequence((SyntheticSubset(images, labels, 0.01),))
    recipe = replace(QUICK, epochs=1, batch_size=2, augment="none")  # two images, then the one that is left over
    protocol, test = EvaluationProtocol(3, recipe, 0), Split(images[:1], labels[:1])
    (accuracy,) = protocol.accuracies(sequence, test, NetworkConfig(name), [0])
    assert accuracy in (0.0, 100.0)
    with pytest.raises(ConfigError, match="norm 'batch' cannot normalise a batch of one image.*use norm 'instance'"):
        protocol.accuracies(sequence, test, NetworkConfig(name, norm="batch"), [0])


def test_a_run_at_one_image_a_class_with_batches_of_one(tmp_path, capsys):
    sizes = ["--set", "ipc=1", "--set", "subset_ipcs=[1]", "--set", "training.batch_size=1", "--set", "training.epochs=1"]
    more = ["--set", "dm.iterations=2", "--set", "evaluation.num_networks=1", "--set", "select_on=none"]
    assert main(["run", "digits-ipc10-dm", "--scale", "smoke", "--results", str(tmp_path), *sizes, *more]) == 0
    assert "nan" not in capsys.readouterr().out


@pytest.mark.parametrize(("factor", "side"), [(4, 6), (6, 6)])
def test_tiles_that_do_not_divide_the_side_distil_all_the_same(tmp_path, factor, side):
    config = replace(METHODS["idc"].config, factor=factor, batch_syn_max=50)
    (progress,) = distil(tmp_path, type(METHODS["idc"])(config), ipcs=(1,))
    assert progress.last.images.shape[2:] == (side, side)
    images, _ = SubsetSequence((progress.last,)).union()
    assert len(images) == CLASSES * factor**2
    assert images.isfinite().all()


def test_more_tiles_than_pixels_are_refused(tmp_path):
    method = type(METHODS["idc"])(replace(METHODS["idc"].config, factor=7))
    with pytest.raises(ConfigError, match="idc.factor 7 exceeds the 6 pixels of an image's side; lower it"):
        distil(tmp_path, method)


# --- files of images


def save_image(path: Path, pixels: np.ndarray, mode: str | None = None, kind: str = "PNG", **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    image = image if mode is None else image.convert(mode)
    content = io.BytesIO()
    image.save(content, kind, **options)
    path.write_bytes(content.getvalue())


def ramp(channels: int = 0, dtype: type = np.uint8, step: int = 4) -> np.ndarray:
    grey = (step * np.arange(64)).reshape(8, 8).astype(dtype)
    return np.stack([grey] * channels, axis=2) if channels else grey


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["grey", "16 bits", "colour", "palette", "clear palette", "grey with alpha", "alpha"])
def test_every_kind_of_png_is_read_with_its_own_colours(tmp_path, kind, channels):
    path = tmp_path / "image.png"
    match kind:
        case "grey":
            save_image(path, ramp())
        case "16 bits":
            save_image(path, ramp(dtype=np.uint16, step=1024))
        case "colour":
            save_image(path, ramp(3))
        case "palette":
            save_image(path, ramp(), "P")
        case "clear palette":
            save_image(path, ramp(), "P", transparency=bytes(range(256)))
        case "grey with alpha":
            save_image(path, np.stack([ramp(), 255 - ramp()], axis=2))
        case "alpha":
            save_image(path, np.concatenate([ramp(3), 255 - ramp(1)], axis=2))
    images = read_image_files([path], (channels, 8, 8))
    assert images.shape == (1, channels, 8, 8)
    assert all(torch.equal(channel, torch.from_numpy(ramp())) for channel in images[0])
    assert read_header(path) == ((8, 8), kind in ("grey", "16 bits"))


def test_print_colours_become_screen_colours(tmp_path):
    """CMYK white, black and cyan, as JPEGs of printers have them."""
    inks = {"white": (0, 0, 0, 0), "black": (0, 0, 0, 255), "cyan": (255, 0, 0, 0)}
    colours = {"white": [255, 255, 255], "black": [0, 0, 0], "cyan": [0, 255, 255]}
    for name, ink in inks.items():
        Image.new("CMYK", (8, 8), ink).save(tmp_path / f"{name}.jpg", quality=100)
        image = read_image_files([tmp_path / f"{name}.jpg"], (3, 8, 8))[0]
        assert (image.float().mean((1, 2)) - torch.tensor(colours[name])).abs().max() < 3, name


def write_folder(folder: Path, counts: dict[str, dict[str, int]], mode: str = "L") -> Path:
    for split, classes in counts.items():
        for name, count in classes.items():
            for number in range(count):
                save_image(folder / split / name / f"{number}.png", ramp(), mode)
    return folder


def test_grey_images_in_a_colour_folder_and_coloured_ones_in_a_grey_set(tmp_path):
    folder = write_folder(tmp_path / "pets", {"train": {"cats": 3}, "test": {"cats": 1, "dogs": 1}})
    write_folder(folder, {"train": {"dogs": 3}}, "RGB")
    dataset = load_dataset(DatasetSpec.from_folder(folder))
    assert dataset.spec.shape == (3, 8, 8)
    assert torch.equal(dataset.train.images[0], dataset.train.images[-1])
    grey = load_dataset(DatasetSpec("pets", 2, (1, 8, 8), (0.5,), (0.25,), folder=folder))
    assert torch.equal(grey.train.images[:, 0], dataset.train.images[:, 0])


def test_a_folder_of_one_class_is_refused(tmp_path):
    folder = write_folder(tmp_path / "pets", {"train": {"cats": 3}})
    with pytest.raises(DataError, match="data set 'pets' has 1 class; at least two are needed"):
        DatasetSpec.from_folder(folder)


def test_the_test_split_must_have_the_classes_of_the_training_split(tmp_path):
    folder = write_folder(tmp_path / "lacks", {"train": {"cats": 3, "dogs": 3}, "test": {"cats": 1}})
    with pytest.raises(DataError, match=r"test has no folders of the classes \['dogs'\]; add them"):
        load_dataset(DatasetSpec.from_folder(folder))
    write_folder(folder, {"test": {"dogs": 1, "birds": 1}})
    with pytest.raises(DataError, match=r"test has classes \['birds'\] that train has not"):
        load_dataset(DatasetSpec.from_folder(folder))


def test_a_class_too_small_to_be_divided_is_named_wherever_it_is_divided(tmp_path):
    parts = r"1 held out for testing \(none .*\), 1 held out for validation \(none .*\), and 1 to train on"
    folder = write_folder(tmp_path / "few", {"train": {"cats": 3, "dogs": 1}})
    with pytest.raises(DataError, match=f"class 'dogs' has 1 image, but needs at least 3: {parts}; add 2"):
        load_dataset(DatasetSpec.from_folder(folder))
    few = load_dataset(DatasetSpec.from_folder(write_folder(tmp_path / "more", {"train": {"cats": 3, "dogs": 2}})))
    with pytest.raises(DataError, match=f"class 'dogs' has 2 images, but needs at least 3: {parts}; add 1"):
        prepare_data(few, False, "validation", torch.device("cpu"))
    assert len(prepare_data(few, False, "none", torch.device("cpu")).train) == 3  # what the message says of select_on
    enough = load_dataset(DatasetSpec.from_folder(write_folder(tmp_path / "enough", {"train": {"cats": 3, "dogs": 3}})))
    assert len(prepare_data(enough, False, "validation", torch.device("cpu")).train) == 2
    tested = write_folder(tmp_path / "tested", {"train": {"cats": 2, "dogs": 1}, "test": {"cats": 1, "dogs": 1}})
    with pytest.raises(DataError, match="'dogs' has 1 image, but needs at least 2: 1 held out for validation .*; add 1"):
        prepare_data(load_dataset(DatasetSpec.from_folder(tested)), False, "validation", torch.device("cpu"))
    train, held_out = split_validation(Split(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])), 0.99)
    assert len(train) + len(held_out) == 4

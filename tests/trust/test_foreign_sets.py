"""Sets from elsewhere: what is in the files decides what they mean, and what is doubtful is refused with what was found."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_class_folders
from test_cli import fails_in_one_line
from test_exchange import DIGITS, NAMES, PLAIN, configure, import_as, make_sequence

from seqmatch_lib.__main__ import main
from seqmatch_lib.data.datasets import DATASETS, DatasetSpec, fit_preprocessing, load_dataset
from seqmatch_lib.errors import DataError, SeqMatchError, StorageError
from seqmatch_lib.exchange.formats import export_sequence
from seqmatch_lib.exchange.public_layouts import _check_colours
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.records import load_reevaluations, load_runs
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset, load_sequence

LABELS = torch.arange(10).repeat_interleave(2)
NORMALISED = {"mtt": "best_lr.pt", "datm": "lr_best.pt"}


def write(folder: Path, kind: str, **changed) -> Path:
    """Writes a set of 2 images a class as another code would, but for what is changed: images, labels, lr."""
    folder.mkdir(exist_ok=True)
    colours = torch.rand(20, *DIGITS.shape, generator=torch.Generator().manual_seed(0))
    if kind == "idc":
        parts = {"images": colours, "labels": LABELS} | changed
        torch.save([parts["images"], parts["labels"]], folder / "data.pt")
        return folder
    logits = 3 * torch.randn(20, 10, generator=torch.Generator().manual_seed(1))
    parts = {
        "images": PLAIN(255 * colours),
        "labels": logits if kind == "datm" else LABELS,
        "lr": torch.tensor(0.02),
    } | changed
    for name, value in zip(("images_best.pt", "labels_best.pt", NORMALISED[kind]), parts.values(), strict=True):
        torch.save(value, folder / name)
    return folder


def read(folder: Path, kind: str, lrs=()) -> SyntheticSubset:
    return import_as(configure((2,)), [folder], kind, lrs).subsets[0]


def refuses(error: type[SeqMatchError], words: str, folder: Path, kind: str, **changed) -> None:
    with pytest.raises(error, match=words) as caught:
        read(write(folder, kind, **changed), kind)
    assert str(caught.value).isprintable(), "no terminal escapes of others"


# --- labels

ONE_HOT = torch.nn.functional.one_hot(LABELS, 10)
SOFT = (3 * torch.randn(20, 10, generator=torch.Generator().manual_seed(2))).softmax(1)


@pytest.mark.parametrize(
    "rows",
    [ONE_HOT.float(), SOFT, SOFT.bfloat16(), 0.9 * ONE_HOT + 0.01],
    ids=["one-hot", "soft", "soft-bfloat16", "smoothed"],
)
def test_rows_of_probabilities_are_taken_as_they_are(tmp_path, capsys, rows):
    torch.testing.assert_close(read(write(tmp_path, "datm", labels=rows), "datm").labels, rows.float())
    assert "holds probabilities, not logits" in capsys.readouterr().err


@pytest.mark.parametrize("shift", [0.0, 5.0, -50.0])
def test_logits_become_probabilities_and_nothing_is_said(tmp_path, capsys, shift):
    labels = read(write(tmp_path, "datm", labels=SOFT.log() + shift), "datm").labels
    torch.testing.assert_close(labels, SOFT)
    assert capsys.readouterr().err == ""


def test_rows_of_both_kinds_are_refused(tmp_path):
    mixed = torch.cat([SOFT[:5], SOFT[5:].log()])
    refuses(
        DataError, r"holds 5 rows of probabilities .* among 20, the others logits; save either", tmp_path, "datm", labels=mixed
    )


@pytest.mark.parametrize("kind", ["mtt", "idc"])
@pytest.mark.parametrize(
    "labels",
    [LABELS.float(), LABELS.double(), LABELS.to(torch.uint8), LABELS.int(), ONE_HOT, ONE_HOT.float(), ONE_HOT.bool()],
    ids=lambda labels: f"{labels.dtype}-{labels.dim()}",
)
def test_classes_are_read_from_whatever_says_them_clearly(tmp_path, kind, labels):
    found = read(write(tmp_path, kind, labels=labels), kind, lrs=[0.1]).labels
    assert found.dtype is torch.int64
    assert torch.equal(found, LABELS)


@pytest.mark.parametrize("kind", ["mtt", "idc"])
def test_what_says_no_classes_is_refused(tmp_path, kind):
    remedy = {"mtt": "import it as datm", "idc": "save classes"}[kind]
    refuses(DataError, rf"float32 and shape \(20, 10\), which are soft labels: .*{remedy}", tmp_path, kind, labels=SOFT)
    refuses(DataError, r"labels of torch.float32 .* not one whole number an image", tmp_path, kind, labels=LABELS + 0.5)
    refuses(DataError, r"labels of torch.int64 and shape \(20, 1\)", tmp_path, kind, labels=LABELS[:, None])
    refuses(DataError, r"not one whole number", tmp_path, kind, labels=torch.full((20,), torch.nan))


def test_the_advice_about_soft_labels_works(tmp_path):
    write(tmp_path, "mtt", labels=SOFT)
    with pytest.raises(DataError, match="import it as datm"):
        read(tmp_path, "mtt")
    torch.testing.assert_close(read(tmp_path, "datm").labels, SOFT)
    write(tmp_path, "mtt")
    with pytest.raises(DataError, match="import it as mtt"):
        read(tmp_path, "datm")
    assert torch.equal(read(tmp_path, "mtt").labels, LABELS)


# --- images


def test_pixels_and_normalised_images_are_no_colours(tmp_path):
    digits = load_dataset("digits").train.images[:20].float()
    refuses(DataError, r"from 0 to 255, on average \d+ outside \[0, 1\].*; save images / 255", tmp_path, "idc", images=digits)
    seen = r"from -0.81\d* to 1.8\d*, on average 0.\d+ outside \[0, 1\].*save images \* std \+ mean"
    refuses(DataError, seen, tmp_path, "idc", images=PLAIN(digits))
    refuses(DataError, "on average", tmp_path, "idc", images=2 * torch.rand(20, *DIGITS.shape) - 1)
    refuses(DataError, "pixels that are not finite", tmp_path, "idc", images=digits * torch.nan)


@pytest.mark.parametrize("name", ["cifar10", "place_names", "canvas_digits", "digits"])
def test_colours_are_told_from_what_networks_see_in_every_data_set(name):
    spec = DATASETS[name]
    pixels = (
        torch.randint(256, (30, *spec.shape)).to(torch.uint8) if name == "cifar10" else load_dataset(name).train.images[:30]
    )
    noise = 0.05 * torch.randn(pixels.shape)  # distilled images go beyond black and white
    _check_colours(pixels / 255 + noise, Path("x"))
    for wrong in (pixels.float(), fit_preprocessing(spec, zca=False)(pixels)):
        with pytest.raises(DataError, match="outside"):
            _check_colours(wrong, Path("x"))


@pytest.mark.parametrize("kind", ["mtt", "datm"])
def test_colours_and_pixels_are_not_what_networks_see(tmp_path, kind):
    colours = torch.rand(20, *DIGITS.shape)
    for images in (colours, 255 * colours):
        refuses(DataError, r"none negative.*save \(images", tmp_path, kind, images=images)


@pytest.mark.parametrize("kind", ["mtt", "datm", "idc"])
def test_whole_numbers_are_no_images_and_are_called_what_they_are(tmp_path, kind):
    remedy = {"idc": r"save images.float\(\) / 255"}.get(kind, r"save \(images.float\(\) / 255 - mean\) / std")
    images = torch.randint(256, (20, *DIGITS.shape)).to(torch.uint8)
    refuses(DataError, rf"holds images of torch.uint8 instead of float32; {remedy}", tmp_path, kind, images=images)


# --- step sizes, and what is no tensor


@pytest.mark.parametrize(
    "lr", [0.02, [0.02], (torch.tensor(0.02),), torch.tensor([[0.02]]), torch.tensor(0.02).double()], ids=str
)
def test_a_step_size_is_read_in_any_plain_form(tmp_path, lr):
    assert read(write(tmp_path, "mtt", lr=lr), "mtt").lr == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("lr", "words"),
    [
        ([0.1, 0.2, 0.3], "holds a list of 3 instead of one step size; give it with --lr"),
        (torch.tensor([0.1, 0.2]), r"a tensor of torch.float32 and shape \(2,\) instead of one step size"),
        ({"lr": 0.1}, "a dict of 1 instead of one step size"),
        (True, "a bool instead"),
        (np.float64(0.1), "best_lr.pt .*arrays of numpy"),
    ],
    ids=str,
)
def test_what_is_no_step_size_is_named_and_the_advice_works(tmp_path, lr, words):
    refuses(StorageError, words, tmp_path, "mtt", lr=lr)
    assert read(tmp_path, "mtt", lrs=[0.3]).lr == 0.3


@pytest.mark.parametrize("name", ["images", "labels"])
def test_arrays_of_numpy_are_named_and_the_advice_works(tmp_path, name):
    array = {"images": torch.rand(20, *DIGITS.shape) - 0.5, "labels": LABELS}[name].numpy()
    words = r"arrays of numpy; load it where it was saved, and save tensors: torch.save\(torch.as_tensor\(array\), path\)"
    refuses(StorageError, words, tmp_path, "mtt", **{name: array})
    path = tmp_path / f"{name}_best.pt"
    torch.save(torch.as_tensor(torch.load(path, weights_only=False)), path)
    assert len(read(tmp_path, "mtt").images) == 20
    with path.open("wb") as file:
        np.save(file, array)
    with pytest.raises(StorageError, match=r"an array saved by numpy; save torch.as_tensor\(numpy.load\(path\)\)"):
        read(tmp_path, "mtt")
    torch.save(torch.as_tensor(np.load(path)), path)
    assert len(read(tmp_path, "mtt").images) == 20


# --- folders


def put_pictures(folder: Path, names: list[str], shape: tuple[int, int, int] = DIGITS.shape) -> Path:
    """Writes a picture into each class folder, whose brightness says at which place of the list the folder was."""
    size = shape[1:] if shape[0] == 1 else (*shape[1:], 3)
    write_class_folders(folder, {name: [np.full(size, place, dtype=np.uint8)] for place, name in enumerate(names)})
    return folder


def read_pictures(folder: Path, preset: str = "place_names-ipc10-mtt") -> list[int]:
    """Imports such a folder; returns the place of the picture that each label got."""
    config = RunConfig.from_preset(preset, overrides={"ipc": 1, "subset_ipcs": [1], "zca": False})
    spec = DATASETS[config.dataset]
    pixels = fit_preprocessing(spec, zca=False)
    sequence = import_as(config, [folder], "folder", [0.1], spec, pixels)
    images, labels = sequence.union()
    assert labels.tolist() == list(range(spec.num_classes))
    return (255 * pixels.inverse(images)).round().int()[:, 0, 0, 0].tolist()


def test_numbered_folders_are_read_by_number(tmp_path):
    assert read_pictures(put_pictures(tmp_path, list(map(str, range(100))), (3, 32, 32)), "cifar100-ipc1-mtt") == list(
        range(100)
    )


@pytest.mark.parametrize("change", [str, str.upper, lambda name: name.replace(" ", "_")], ids=["same", "upper", "underscores"])
def test_named_folders_are_matched_with_the_names_of_the_classes(tmp_path, change):
    names = list(load_dataset("place_names").class_names)
    assert names != sorted(names, reverse=True)
    put_pictures(tmp_path, [change(name) for name in names], DATASETS["place_names"].shape)
    assert read_pictures(tmp_path) == list(range(8))


@pytest.mark.parametrize(
    "names", [list("12345678"), list("abcdefgh"), list("0123456"), [*"0123456", "07", "7"], [*"0123456", "8"], []], ids=str
)
def test_folders_that_match_neither_are_refused(tmp_path, names):
    put_pictures(tmp_path, names, DATASETS["place_names"].shape)
    with pytest.raises(DataError, match=r"neither the numbers 0 … 7 nor the names of the classes|holds no class folders"):
        read_pictures(tmp_path)


def test_numbered_classes_of_ones_own_have_their_numbers(tmp_path):
    names = [str(number) for number in range(12)]
    shutil.copytree(put_pictures(tmp_path, names) / "train", tmp_path / "test")
    dataset = load_dataset(DatasetSpec.from_folder(tmp_path, name="numbered"))
    assert dataset.class_names == tuple(names)
    assert dataset.test.images[:, 0, 0, 0].tolist() == dataset.test.labels.tolist() == list(range(12))


# --- networks that learn nothing


def test_networks_that_diverge_are_told_from_those_that_learn(tmp_path, capsys):
    digits = load_dataset("digits").train
    rows = torch.cat([(digits.labels == label).nonzero()[:2, 0] for label in range(10)])
    network = {"network.width": 4, "network.depth": 1}
    training = {"training.epochs": 12, "training.augment": "none", "training.engine": "eager", "training.precision": "float32"}
    config = configure((2,)).changed(network | training).as_dict()
    for lr, said in ((0.02, False), (20.0, True)):
        subset = SyntheticSubset(PLAIN(digits.images[rows]), LABELS, lr)
        SubsetSequence((subset,), {"config": config}).save(tmp_path / "set.safetensors")
        assert main(["evaluate", str(tmp_path / "set.safetensors"), "--num-networks", "2", "--results", str(tmp_path)]) == 0
        assert ("(n = 2; 2 of them learned nothing: " in capsys.readouterr().out) == said
        found = {one.synthetic_sha256: one.accuracy["convnet"] for one in load_reevaluations(tmp_path)}
        assert found[load_sequence(tmp_path / "set.safetensors").sha256()].get("not_learned", 0) == 2 * said


def test_a_run_whose_networks_diverge_says_so_in_its_record(tmp_path, capsys):
    arguments = ["run", "digits-ipc10-random", "--scale", "smoke", "--results", str(tmp_path), "--set"]
    assert main([*arguments, "evaluation.real_lr=20", "--set", "evaluation.num_networks=1"]) == 0
    assert "(1 learned nothing)" in capsys.readouterr().out
    (record,) = load_runs(tmp_path)
    assert record.accuracy_last["not_learned"] == record.accuracy_last["by_network"]["convnet"]["not_learned"] == 1


def test_a_network_that_does_not_fit_is_told_before_others_are_trained(tmp_path, generator, capsys, monkeypatch):
    sequence = make_sequence(generator, (2,))
    replace(sequence, metadata={"config": configure((2,)).as_dict()}).save(tmp_path / "set.safetensors")
    monkeypatch.setattr("seqmatch_lib.engine.evaluation.train_stage", lambda *_: pytest.fail("it trains"))
    line = fails_in_one_line(capsys, "evaluate", str(tmp_path / "set.safetensors"), "--networks", "convnet", "vgg11")
    assert "5 poolings of 'vgg11', which needs 32x32 pixels; use 'resnet18', or larger images" in line


# --- what is exported is still what is imported


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_pictures_of_what_went_beyond_black_and_white_end_there(tmp_path, generator, kind):
    sequence = make_sequence(generator, (2,))
    wild = replace(sequence.subsets[0], images=1.5 * sequence.subsets[0].images)
    export_sequence(SubsetSequence((wild,)), kind, tmp_path, PLAIN, NAMES)
    found = PLAIN.inverse(read(tmp_path, kind, lrs=[0.1] * (kind == "folder")).images)
    torch.testing.assert_close(found, PLAIN.inverse(wild.images).clamp(0, 1), rtol=0, atol=0.51 / 255)

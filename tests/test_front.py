"""The interface does what its docstrings say, from arrays and data sets in memory as from presets."""

import copy
import doctest
import gc
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import finish_in_parts, make_images
from torch.utils.data import TensorDataset

import seqmatch_lib as sm
from seqmatch_lib import front
from seqmatch_lib.data import datasets as datasets_module
from seqmatch_lib.data.arrays import dataset_from_arrays
from seqmatch_lib.data.datasets import DATASETS, fit_preprocessing, load_dataset
from seqmatch_lib.engine.evaluation import EvaluationProtocol
from seqmatch_lib.engine.networks import NETWORKS
from seqmatch_lib.errors import ConfigError, DataError, OutOfTime, StorageError
from seqmatch_lib.report.evidence import Evidence
from seqmatch_lib.runs.records import load_reevaluations
from seqmatch_lib.store.files import write_json
from seqmatch_lib.store.sheets import read_sheet, write_sheet
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset, set_path

ROOT = Path(__file__).parents[1]
QUICK = {"network.depth": 1, "training.epochs": 2}


def as_pixels(count, seed=0):
    """Images that a small network can tell apart, (count, 1, 6, 6) uint8, and their labels."""
    images, labels = make_images(count, seed)
    return (64 * images + 128).clamp(0, 255).to(torch.uint8), labels


TWO = as_pixels(90), as_pixels(30, 1)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    settings = QUICK | {"mtt.lr_lr": 0.0}
    return sm.distill(*TWO, "mtt", (2, 1), iterations=3, scale="smoke", set=settings, results_dir=folder)


def test_the_example_of_the_docstring_runs(tmp_path):
    failures, tried = doctest.testmod(front, extraglobs={"folder": tmp_path}, optionflags=doctest.ELLIPSIS)
    assert tried > 4
    assert failures == 0


def test_whitened_images_are_looked_at_without_the_data_set(tmp_path, monkeypatch):
    settings = QUICK | {"zca": True, "ipc": 3, "subset_ipcs": [2, 1], "mtt.iterations": 2}
    run = sm.run("digits-ipc10-seqmatch_mtt", "smoke", set=settings, results_dir=tmp_path)
    inverse = fit_preprocessing(DATASETS["digits"], zca=True).inverse
    made = [inverse(subset.images).clamp(0, 1) for subset in run.distilled.subsets]
    monkeypatch.setattr(datasets_module, "load_dataset", None)
    pictures = run.pictures()
    assert list(pictures) == ["seqmatch_mtt, $S_1$", "seqmatch_mtt, $S_2$"]
    for (_, shown), pixels in zip(pictures.items(), made, strict=True):
        torch.testing.assert_close(shown, pixels, rtol=0, atol=0.51 / 255)
    (sheet,) = (tmp_path / "distilled").glob("*.png")
    sheet.write_bytes(sheet.read_bytes()[:-30])
    with pytest.raises(StorageError, match=f"{sheet.name} is damaged; delete it"):
        run.pictures()
    sheet.unlink()
    leftover = sheet.with_name(f".{sheet.name}.1234.tmp")  # of a process that was killed while it wrote the sheet
    leftover.touch()
    monkeypatch.undo()
    for (_, shown), pixels in zip(run.pictures().items(), made, strict=True):
        torch.testing.assert_close(shown.clamp(0, 1), pixels)
    sm.run("digits-ipc10-seqmatch_mtt", "smoke", set=settings, results_dir=tmp_path, force=True)
    assert sheet.is_file()
    assert not leftover.exists()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_of_another_set_is_refused(tmp_path, generator, channels):
    subsets = [torch.rand(4, channels, 3, 5, generator=generator), torch.rand(2, channels, 3, 5, generator=generator)]
    write_sheet(tmp_path / "sheet.png", subsets, 2)
    for shown, pixels in zip(read_sheet(tmp_path / "sheet.png", [2, 1], 2, (channels, 3, 5)), subsets, strict=True):
        torch.testing.assert_close(shown, pixels, rtol=0, atol=0.51 / 255)
    with pytest.raises(StorageError, match="of another set; delete it"):
        read_sheet(tmp_path / "sheet.png", [2, 2], 2, (channels, 3, 5))


def test_importing_the_library_imports_nothing_slow():
    code = "import sys, seqmatch_lib; print(sorted({'torch', 'numpy', 'pandas', 'matplotlib'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_of_the_front_door_is_there_and_others_are_named():
    for name in sm.__all__:
        assert getattr(sm, name).__name__ == name
    assert set(sm.__all__) <= set(dir(sm))
    with pytest.raises(AttributeError, match=r"no attribute 'distil'; it has .*distill"):
        sm.distil  # noqa: B018


def test_arrays_are_distilled_in_subsets(mine):
    assert mine.record.method == "seqmatch_mtt"
    assert [tuple(subset.images.shape) for subset in mine.distilled.subsets] == [(6, 1, 6, 6), (3, 1, 6, 6)]
    assert len(mine.losses) == 6
    assert mine.losses["loss"].tolist() == [loss for stage in mine.record.stages for loss in stage["losses"]]
    assert set(mine.scores["images"]) == {"validation"}
    assert re.fullmatch(r"Run\(arrays-seqmatch_mtt-ipc3-k2-seed0-\w{8}, scale smoke: .* n = 2\)", repr(mine))


def test_a_distilled_set_is_saved_loaded_and_evaluated(mine, tmp_path):
    mine.distilled.save(tmp_path / "mine.safetensors")
    again = sm.load(tmp_path / "mine.safetensors")
    assert again.sha256() == mine.distilled.sha256()
    other = sm.evaluate(tmp_path / "mine.safetensors", ["vit"], joint=True, dataset=mine.dataset, set={"training.epochs": 1})
    assert list(other.accuracy) == ["vit"]
    assert other.joint


@pytest.mark.parametrize("method", ["dm", "mtt", "idc", "krr"])
def test_modes_of_torch_that_the_caller_is_in_change_nothing(method):
    def distil():
        data = as_pixels(30)
        run = sm.distill(data, data, method, (1, 1), 2, "smoke", set=QUICK | ({"mtt.lr_lr": 0.0} if method == "mtt" else {}))
        return run.distilled.sha256(), run.record.accuracy_last, run.evaluate(joint=True).accuracy

    usual = distil()
    with torch.inference_mode(), torch.autocast("cpu"):
        assert distil() == usual


def test_another_default_of_torch_is_refused_and_stays(mine):
    calls = (lambda: sm.run("digits-ipc10-random", "smoke"), lambda: sm.distill(*TWO), lambda: mine.evaluate())
    torch.set_default_dtype(torch.float64)
    try:
        for call in calls:
            with pytest.raises(ConfigError, match=r"default dtype is torch.float64; call torch.set_default_dtype\("):
                call()
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    for call in calls:
        with torch.device("meta"), pytest.raises(ConfigError, match=r"default device is meta; call torch.set_default_device"):
            call()


def test_kept_re_evaluations_are_listed(mine, tmp_path):
    with pytest.raises(ConfigError, match="holds no re-evaluations; make one with"):
        sm.reevaluations(tmp_path)
    kept = mine.evaluate(joint=True, random=True, seed=3, set={"training.epochs": 1}, results_dir=tmp_path)
    found = sm.reevaluations(tmp_path)
    assert found[["joint", "seed", "network"]].drop_duplicates().to_numpy().tolist() == [[True, 3, "convnet"]]
    values = {"set": kept.accuracy, "random": kept.random_baseline}
    for training, rows in found.groupby("training"):
        assert rows["accuracy"].tolist() == values.pop(training)["convnet"]["values"]
    assert not values


def test_work_is_not_stopped_where_nothing_is_kept():
    with pytest.raises(ConfigError, match="max_minutes needs a folder that keeps the state; give results_dir"):
        sm.distill(*TWO, "dm", max_minutes=1)


def test_a_reevaluation_trains_as_the_run_did_in_stages_or_jointly_or_with_another_seed(mine):
    def evaluate(**asked):
        found = mine.evaluate(random=True, **asked)
        return [accuracy["convnet"]["values"] for accuracy in (found.accuracy, found.random_baseline)]

    staged, joint, other = evaluate(), evaluate(joint=True), evaluate(seed=1)
    assert staged == [mine.record.accuracy_last["values"], mine.record.random_baseline["values"]]
    assert joint[0] == mine.record.accuracy_joint["values"]
    assert other[0] != staged[0], "other networks"


@pytest.mark.parametrize("scale", ["smoke", "reduced", "short", "paper"])
@pytest.mark.parametrize("method", ["mtt", "idc", "dm", "krr"])
def test_a_sequence_has_the_settings_of_the_sequential_preset(method, scale, tmp_path, monkeypatch):
    monkeypatch.setattr(front, "run_experiment", lambda *_, **__: None)
    config = sm.distill(*TWO, method, (5, 5), scale=scale, results_dir=tmp_path).config
    plain, sequential = (sm.RunConfig.from_preset(f"cifar10-ipc10-{name}{method}", scale) for name in ("", "seqmatch_"))
    data = {"dataset": "arrays", "zca": False}
    assert config.as_dict() == sequential.changed(data).as_dict() | {"preset": plain.preset}
    if scale in ("smoke", "reduced"):  # where both presets have the same settings, and runs had those of the plain one
        changes = data | {"method": f"seqmatch_{method}", "subset_ipcs": [5, 5]}
        both = [list(interval) for interval in plain.intervals] * 2
        assert config.hash == plain.changed(changes | {"intervals": both}).hash
    longer = sm.distill(*TWO, method, (4, 3, 3), scale=scale, iterations=7, results_dir=tmp_path).config
    assert longer.intervals == config.intervals + config.intervals[:1]


def test_a_temporary_folder_goes_with_its_run_or_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = sm.distill(*TWO, "dm", (1,), 2, "smoke", set=QUICK)
    folder = run.results_dir
    assert folder.parent == tmp_path
    assert len(run.distilled) == len(run.pictures()) == 1
    del run
    gc.collect()
    assert not folder.exists()
    with pytest.raises(DataError, match="fewer than ipc 40"):
        sm.distill(*TWO, "dm", (40,), 2, "smoke", set=QUICK)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_given_stays(tmp_path):
    sm.distill(*TWO, "dm", (1,), 2, "smoke", set=QUICK, results_dir=tmp_path)
    gc.collect()
    assert list((tmp_path / "distilled").iterdir())


def test_a_set_of_arrays_is_evaluated_with_the_same_arrays_another_day(mine, tmp_path):
    path = tmp_path / "mine.safetensors"
    mine.distilled.save(path)
    for dataset in (TWO, [TensorDataset(*part) for part in TWO]):
        assert sm.evaluate(path, dataset=dataset).accuracy["convnet"]["values"] == mine.record.accuracy_last["values"]
    with pytest.raises(
        DataError, match=r"data set 'arrays' is unknown.*of your own, give them again.*evaluate\(…, dataset=\(train, test\)"
    ):
        sm.evaluate(path)
    with pytest.raises(DataError, match="distilled from other arrays images"):
        sm.evaluate(path, dataset=(as_pixels(90), as_pixels(30, 2)))
    with pytest.raises(ConfigError, match=r"dataset has 3 parts; give the pair \(train, test\)"):
        sm.evaluate(path, dataset=(*TWO, None))


def test_pictures_of_the_set_and_of_its_losses_are_drawn(mine):
    assert len(mine.show().axes) == 2
    assert len(mine.plot_losses().axes[0].lines) == 2
    assert not plt.get_fignums()  # a notebook draws open figures once more


@pytest.mark.parametrize("method", ["idc", "dm", "krr"])
def test_other_methods_take_arrays_too(method, tmp_path):
    run = sm.distill(*TWO, method, (2,), 2, "smoke", set=QUICK, results_dir=tmp_path)
    assert run.record.method == method
    assert len(run.losses) == 2


def test_arrays_of_any_kind_are_the_same_data_set():
    images, labels = as_pixels(30)
    kinds = {
        "tensors": (images, labels),
        "numpy": (images.numpy(), labels.numpy().astype(np.uint8)),
        "floats": (images.float() / 255, labels),
        "two bytes a label": (images, labels.numpy().astype(np.uint16)),
        "backwards": (images.numpy()[::-1].copy()[::-1], labels.numpy()[::-1].copy()[::-1]),
        "lists": (images.float().div(255).tolist(), labels.tolist()),
        "a data set": TensorDataset(images, labels),
    }
    found = {name: dataset_from_arrays(part, part).fingerprint for name, part in kinds.items()}
    assert len(set(found.values())) == 1, found


def test_images_of_two_colours_are_taken_in_either_range_and_black_ones_too():
    images, labels = as_pixels(30)
    bits = (images > 128).to(torch.uint8)
    for remedied in (255 * bits, bits.float()):
        assert torch.equal(dataset_from_arrays((remedied, labels), (remedied, labels)).train.images, 255 * bits)
    for dark in (0 * images, 0 * images + 2):
        assert torch.equal(dataset_from_arrays((dark, labels), (dark, labels)).train.images, dark)


@pytest.mark.parametrize(
    ("mode", "channels"), [("RGB", 3), ("P", 3), ("RGBA", 3), ("CMYK", 3), ("L", 1), ("1", 1), ("I;16", 1)]
)
def test_pictures_of_any_mode_are_read_as_those_of_a_folder_are(mode, channels):
    """Channels last, and the places in a palette are no colours."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    picture = Image.fromarray(pixels)
    if mode == "I;16":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        picture = picture.convert(mode)
    expected = pixels[..., :1] if mode == "I;16" else np.asarray(picture.convert("L" if channels == 1 else "RGB"))

    train = dataset_from_arrays(items((picture, 0), (picture, 1)), items((picture, 0), (picture, 1))).train
    assert tuple(train.images.shape) == (2, channels, 4, 5)
    for image in train.images:
        assert image.permute(1, 2, 0).numpy().tolist() == expected.reshape(4, 5, channels).tolist()


def items(*items):
    """A data set that yields these items."""

    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return len(items)

        def __getitem__(self, index):
            return items[index]

    return Items()


class Noisy(torch.utils.data.Dataset):
    """A data set with a random transform."""

    def __init__(self, size, draw=lambda: torch.rand(1, 6, 6)):
        self.size, self.draw = size, draw

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.draw(), index % 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:, 0], y), r"images of shape \(30, 6, 6\); they must be \(N, C, H, W\) .*images\[:, None\]"),
        (lambda x, y: (x.permute(0, 2, 3, 1), y), r"\(30, 6, 6, 1\); they must be .*images\).permute\(0, 3, 1, 2\)"),
        (lambda x, y: (x[:0], y[:0]), r"images of shape \(0, 1, 6, 6\), so none; give at least one of each class"),
        (lambda x, y: (x, y[:, None]), r"they must be \(N,\) whole numbers; take labels\[:, 0\]"),
        (lambda x, y: (x / 255**2, y), r"pixels of at most 0.0039\d*, which are all but black .*; divide by 255 only once"),
        (lambda x, y: (x, torch.eye(3)[y]), r"they must be \(N,\) whole numbers; take labels.argmax\(1\) of one-hot rows"),
        (lambda x, y: torch.utils.data.DataLoader(TensorDataset(x, y)), "it is a DataLoader; give its `dataset`"),
        (lambda x, y: items((x[0], 0), (x[1], 0.9)), "but is not: 'float' object cannot be interpreted as an integer"),
        (
            lambda x, y: items(*((x[0].permute(1, 2, 0).numpy(), int(label)) for label in y)),
            r"images of shape \(30, 6, 6, 1\)",
        ),
        (lambda x, y: (x.float(), y), r"pixels from .* floats must lie in \[0, 1\], so divide by 255"),
        (lambda x, y: (x.float() * float("nan"), y), r"1080 values that are not finite \(nan, inf\); replace them"),
        (
            lambda x, y: ((x > 128).byte(), y),
            "uint8 pixels of 0 and 1 alone, .*; multiply them by 255, or give them as floats",
        ),
        (lambda x, y: TensorDataset(torch.ones_like(x), y), "train has uint8 pixels of 0 and 1 alone"),
        (lambda x, y: (x.int(), y), r"images of torch.int32; they must be uint8"),
        (lambda x, y: (x, y.float()), r"labels of torch.float32 and shape \(30,\); they must be \(N,\) whole .*\.long\(\)"),
        (lambda x, y: (x, y + 1), r"train has labels from 1 to 3, .* 0 … 2, .*; subtract 1 from all"),
        (
            lambda x, y: (x, y.where(y > 0, -1)),
            r"train has labels from -1 to 2, .* leave out images without a class, or add 1 to all",
        ),
        (lambda x, y: (x, y[:-1]), r"30 images and 29 labels; give each image one label"),
        (lambda x, y: (x, y[:0]), r"labels of torch.int64 and shape \(0,\); they must be \(N,\) whole numbers"),
        (lambda x, y: (x, 2 * y), r"train has labels from 0 to 4, .* 0 … 2, .*; no image has label 1: number .* without gaps"),
        (
            lambda x, y: (x, y % 2),
            r"test has labels from 0 to 2, which must be 0 … 1, each at least once; number the classes alike",
        ),
        (lambda x, y: (x[:, :, 1:], y), r"test has images of shape \(1, 6, 6\), train of \(1, 5, 6\); bring them to one"),
        (lambda x, y: (x, y * 0 + 10**9), r"labels from 1000000000 to 1000000000, .* subtract"),
        (lambda x, y: (x, y, y), r"train must be a pair \(images, labels\) of arrays.*but is not: too many values"),
        (lambda x, y: (x, ["a"] * 30), r"but is not: it holds texts; number the classes with numpy.unique"),
        (lambda x, y: ([[1, 2], [3]], [0, 1]), r"but is not: .*inhomogeneous"),
        (lambda x, y: None, r"but is not: .*NoneType"),
        (lambda x, y: items(*((x[0], 0), (x[0, :, 1:], 1))), r"with images of one size, but is not: .*\[1, 6, 6\]"),
        (lambda x, y: items(*[(x[0], 0, 1)] * 4), r"a Dataset of pairs \(image, class number\).*but is not: too many values"),
        (lambda x, y: items({"image": x[0], "label": 0}), r"its items are dictionaries of image, label; make pairs of them"),
        (lambda x, y: Noisy(len(y)), r"it draws random numbers, so each reading has other images; leave out its random"),
        (lambda x, y: Noisy(len(y), lambda: np.random.rand(1, 6, 6)), r"it draws random numbers, so each reading has other"),
        (lambda x, y: items((x[0], "cat")), r"but is not: 'str' object cannot be interpreted as an integer"),
        (lambda x, y: items(), r"train must be a pair .*but is not"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_what_was_found(change, message):
    with pytest.raises(DataError, match=message):
        dataset_from_arrays(change(*as_pixels(30)), as_pixels(30))


def test_a_configuration_is_run_in_place_of_a_preset(tmp_path):
    config = sm.RunConfig.from_preset("digits-ipc10-random", "smoke", 3, QUICK)
    assert sm.run(config, results_dir=tmp_path).record.run_id == config.run_id
    for more in ({"scale": "smoke"}, {"seed": 1}, {"set": QUICK}):
        with pytest.raises(ConfigError, match="a RunConfig has its own scale, seed and settings"):
            sm.run(config, results_dir=tmp_path, **more)


def test_a_finished_set_is_asked_with_numbers_of_numpy(mine, tmp_path):
    limits = {"seed": np.int64(3), "max_minutes": np.int64(9), "results_dir": tmp_path}
    assert sm.evaluate(mine.distilled, dataset=TWO, **limits).seed == 3
    assert len(load_reevaluations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("method", "outputs", "message"),
    [
        ("idc", 3, "network 'own' has no convolutions, whose gradients idc matches; take one that has some"),
        ("dm", 4, r"network 'own' maps 2 images to \(2, 4\), not to \(2, 3\) logits"),
    ],
)
def test_a_network_that_distils_alone_is_checked_too(method, outputs, message, monkeypatch):
    layers = torch.nn.Flatten, lambda: torch.nn.Linear(36, outputs)
    monkeypatch.setitem(NETWORKS, "own", lambda *_: torch.nn.Sequential(*(layer() for layer in layers)))
    with pytest.raises(ConfigError, match=message):
        sm.distill(*TWO, method, (1,), 1, "smoke", set=QUICK | {"network.name": "own"})


def test_networks_that_the_evaluation_cannot_train_are_refused_before_anything_is_distilled(tmp_path, monkeypatch):
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 10)
    monkeypatch.setitem(NETWORKS, "own", lambda *_: torch.nn.Sequential(*copy.deepcopy(layers)).to(torch.empty(0).device))
    settings = {"evaluation.networks": ["convnet", "own"], "training.engine": "compiled"}
    with pytest.raises(ConfigError, match="networks own have running statistics, which .*; set training.engine=eager and"):
        sm.run("digits-ipc10-dm", "smoke", set=settings, results_dir=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_cannot_be_distilled_is_refused(tmp_path):
    data = as_pixels(30)
    with pytest.raises(ConfigError, match="method 'mmt' is unknown; use one of dm, idc, krr, mtt"):
        sm.distill(data, data, "mmt")
    sm.distill(data, data, "dm", (1,), 1, "smoke", set=QUICK, results_dir=tmp_path)
    other = as_pixels(30, seed=5)
    with pytest.raises(StorageError, match="of arrays than those found; use another results folder, or, for `run`, --force"):
        sm.distill(other, data, "dm", (1,), 1, "smoke", set=QUICK, results_dir=tmp_path)
    forced = sm.distill(other, data, "dm", (1,), 1, "smoke", set=QUICK, results_dir=tmp_path, force=True)
    assert forced.record.data["fingerprint"] == forced.dataset.fingerprint


NO_LIST = r"must be a list of whole numbers of at least 1, such as \[5, 5\]"
NO_TABLE = r"settings 'dm.lr_img=1' must be a dictionary, such as \{\"mtt.syn_steps\": 20"
NO_PATH = "path 3 must be a string or a Path, such as 'build/own'"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: sm.distill(*TWO, subset_ipcs=4), f"subset_ipcs 4 {NO_LIST}"),
        (lambda run: sm.distill(*TWO, subset_ipcs="22"), f"subset_ipcs '22' {NO_LIST}"),
        (lambda run: sm.distill(*TWO, subset_ipcs=[2.0]), NO_LIST),
        (lambda run: sm.distill(*TWO, subset_ipcs=[]), rf"subset_ipcs \[\] {NO_LIST}"),
        (lambda run: sm.distill(*TWO, subset_ipcs=[-2]), rf"subset_ipcs \[-2\] {NO_LIST}"),
        (lambda run: sm.distill(*TWO, set={"method": "mtt"}), "method cannot be set like a setting; give method='mtt'"),
        (
            lambda run: sm.run("digits-ipc10-mtt", "smoke", set={"method": "dm"}),
            "method 'dm' is that of preset digits-ipc10-dm; run this preset",
        ),
        (lambda run: sm.distill(*TWO, method=None), "method 'None' is unknown; use one of dm, idc, krr, mtt"),
        (lambda run: sm.distill(*TWO, set="dm.lr_img=1"), NO_TABLE),
        (lambda run: sm.run("digits-ipc10-dm", "smoke", set="dm.lr_img=1"), NO_TABLE),
        (lambda run: run.evaluate(set="dm.lr_img=1"), NO_TABLE),
        (lambda run: sm.distill(*TWO, set={1: 2}), "unknown key 1; known are dataset"),
        (lambda run: sm.distill(*TWO, results_dir=3), NO_PATH),
        (lambda run: sm.run("digits-ipc10-dm", "smoke", results_dir=3), NO_PATH),
        (lambda run: run.evaluate("resnet18"), "networks 'resnet18' must be a list of names, such as .'convnet', 'resnet18'"),
        (lambda run: run.evaluate(18), "networks 18 must be a list of names"),
        (lambda run: run.evaluate([]), "evaluation.networks is empty; name at least one network"),
        (lambda run: run.evaluate(["resnet1"]), r"evaluation.networks has unknown names \['resnet1'\]; use any of convnet"),
        (lambda run: run.evaluate(results_dir=3), NO_PATH),
        (lambda run: sm.records(3), NO_PATH),
        (lambda run: sm.Results.open(3), NO_PATH),
        (lambda run: sm.Results.open(3, compute=True), NO_PATH),
        (lambda run: sm.run(None), "unknown preset None; known are digits-ipc10-random"),
        (lambda run: run.show(classes=[0, 9, -1]), r"classes \[9, -1\] are unknown; give a list of some of 0 … 2"),
        (lambda run: run.show(classes=5), "classes 5 are unknown; give a list of some of 0 … 2"),
        (lambda run: run.plot_losses(0), "window 0 must be a whole number of at least 1"),
        (lambda run: run.plot_losses(2.5), "window 2.5 must be a whole number of at least 1"),
        (lambda run: run.show(0), "max_per_class 0 must be a whole number of at least 1"),
        (lambda run: run.show(classes=[True]), r"classes \[True\] are unknown"),
        (lambda run: sm.run(["a"]), r"unknown preset \['a'\]; known are digits-ipc10-random"),
        (lambda run: sm.load(3), NO_PATH),
        (lambda run: sm.presets(results_dir=3), NO_PATH),
        (lambda run: sm.presets(["digits"]), r"data set \['digits'\] is unknown; use one of digits"),
        (lambda run: sm.distill(*TWO, set={"dataset": "cifar10"}), "dataset 'cifar10' cannot be set, since the images are"),
        (lambda run: run.evaluate(joint=1), "joint 1 must be True or False"),
        (lambda run: run.evaluate(random="no"), "random 'no' must be True or False"),
        (lambda run: run.evaluate(seed=1.5), "seed = 1.5 has the wrong type; it must be int"),
        (lambda run: run.evaluate(seed=True), "seed = True has the wrong type; it must be int"),
        (lambda run: run.evaluate(set={"zca": True}), "training, evaluation and network can be changed; leave out zca"),
        (lambda run: run.evaluate(set={"mtt.syn_lr": 0.5}), "leave out mtt.syn_lr, or distil another set with it"),
        (lambda run: sm.evaluate(run.distilled, max_minutes=1), r"a folder that keeps the state; give results_dir \(on"),
        (lambda run: sm.evaluate(run.distilled, max_minutes="1", results_dir="x", dataset=TWO), "'1' must be a positive"),
        (lambda run: sm.evaluate(run.distilled, dataset="digits"), "dataset 'digits' is not a pair; give"),
        (lambda run: run.config.changed({"scale": "paper"}), "scale cannot be set like a setting; give it .* --scale"),
    ],
)
def test_arguments_of_another_kind_are_named(call, message, mine):
    with pytest.raises(ConfigError, match=message):
        call(mine)


def test_numbers_of_numpy_are_numbers(tmp_path):
    whole, more = np.int64(1), {"training.epochs": np.int32(2)}
    for ipcs in (np.array([1, 1]), [whole, whole]):
        run = sm.distill(*TWO, "dm", ipcs, whole, "smoke", set=QUICK | more, results_dir=tmp_path)
        assert run.record.config["subset_ipcs"] == [1, 1]
    assert len(sm.records(tmp_path)["run_id"].unique()) == 1


def test_a_folder_without_records_is_refused_as_show_does(tmp_path):
    for folder in (tmp_path, tmp_path / "absent", str(tmp_path / "absent")):
        with pytest.raises(ConfigError, match=f"^{folder} holds no records; make one with `run"):
            sm.records(folder)


@pytest.mark.parametrize(("of_arrays", "call"), [(False, "run"), (True, "distill")])
def test_a_record_without_its_set_says_how_to_get_the_set(mine, tmp_path, of_arrays, call):
    bare = front.Run(mine.config, mine.record, tmp_path, mine.dataset if of_arrays else None)
    with pytest.raises(StorageError, match=rf"give {call}\(…, force=True\) to distil it again"):
        _ = bare.distilled
    with pytest.raises(StorageError, match=rf"selected.*give {call}\(…, force=True\) to distil it again"):
        _ = replace(bare, record=replace(bare.record, selected_on="validation")).selected


def test_the_selected_set_of_a_run_is_its_own_or_the_distilled_one(tmp_path):
    run = sm.run("digits-ipc10-mtt", "smoke", set=QUICK, results_dir=tmp_path)
    assert run.selected.sha256() == sm.load(tmp_path / "selected" / f"{run.record.run_id}.safetensors").sha256()
    unscored = sm.run("digits-ipc10-mtt", "smoke", set=QUICK | {"select_on": "none"}, results_dir=tmp_path)
    assert unscored.selected is unscored.distilled


def test_the_selected_set_is_evaluated_beside_the_last_one_and_never_taken_for_it(tmp_path, monkeypatch, capsys):
    scores = iter([80.0, 70.0, 60.0, 50.0])  # of both stages: the first iterate is best
    monkeypatch.setattr(EvaluationProtocol, "score", lambda *_: [next(scores)])
    settings = QUICK | {"dm.iterations": 2, "evaluation.num_selections": 2}
    run = sm.run("digits-ipc10-seqmatch_dm", "smoke", set=settings, results_dir=tmp_path)
    assert run.has_selected
    last, selected = (run.evaluate(["convnet"], results_dir=tmp_path, selected=asked) for asked in (False, True))
    assert selected.accuracy["convnet"]["values"] == run.record.accuracy_selected["values"]
    assert selected.path(tmp_path) != last.path(tmp_path)
    assert {one.iterate: one for one in load_reevaluations(tmp_path)} == {"last": last, "selected": selected}
    assert "selected iterate" in repr(selected)
    assert "selected iterate" not in repr(last)
    assert set(sm.reevaluations(tmp_path)["training"]) == {"set", "selected set"}
    alone = sm.evaluate(set_path(tmp_path, run.record.run_id, selected=True), results_dir=tmp_path / "other")
    assert alone.last_sha256 == run.record.synthetic_sha256, "the file says that it is the selected set"
    found = Evidence.load(tmp_path).accuracies.set_index("kind")["values"]
    assert found["selected again"] == selected.accuracy["convnet"]["values"]
    assert found["last again"] == last.accuracy["convnet"]["values"]
    replace(run.record, synthetic_sha256="0" * 64).save(tmp_path)  # as after `run --force`
    assert Evidence.load(tmp_path).reevaluations == []
    assert capsys.readouterr().err.count("left out") == 2


def test_a_re_evaluation_holds_what_was_asked_and_an_older_one_is_read_without_it(mine, tmp_path):
    kept = mine.evaluate(["vit"], set={"training.epochs": 1}, results_dir=tmp_path)
    assert kept.overrides == {"evaluation.networks": ["vit"], "training.epochs": 1}
    path, values = kept.path(tmp_path), asdict(kept)
    write_json(path, {name: value for name, value in values.items() if name not in ("overrides", "last_sha256")})
    assert load_reevaluations(tmp_path) == [replace(kept, overrides=None)]
    assert load_reevaluations(tmp_path)[0].path(tmp_path) == path


def test_a_run_on_all_real_images_says_that_it_has_no_set(tmp_path):
    whole = sm.run("digits-whole", "smoke", set=QUICK | {"evaluation.num_networks": 1}, results_dir=tmp_path)
    for ask in (lambda: whole.distilled, whole.show, whole.pictures, whole.evaluate):
        with pytest.raises(StorageError, match="has no distilled set, because method 'whole' trains on all real images; take"):
            ask()


def test_presets_stand_beside_what_was_published():
    found = sm.presets("cifar10", results_dir=ROOT / "paper_results").set_index("preset")
    assert found.loc["cifar10-ipc10-mtt", "published"] == 65.3
    assert found.loc["cifar10-ipc50-seqmatch_mtt", "num_subsets"] == 3
    assert found.loc["cifar10-ipc10-seqmatch_mtt", "check"] == "unverified"
    assert "read in" in found.loc["cifar10-ipc10-mtt", "check"]
    assert set(found.index.str.split("-").str[0]) == {"cifar10"}
    bare = sm.presets("digits", results_dir="nowhere")
    assert bare["minutes"].isna().all()
    with pytest.raises(ConfigError, match="data set 'cifar1O' is unknown"):
        sm.presets("cifar1O")


def test_a_narrower_question_keeps_what_a_wider_one_found(mine, tmp_path):
    wide = mine.evaluate(random=True, results_dir=tmp_path)
    narrow = mine.evaluate(results_dir=tmp_path)
    assert wide.random_baseline is not None
    assert narrow.random_baseline == wide.random_baseline
    assert load_reevaluations(tmp_path) == [narrow]
    path = narrow.path(tmp_path)
    path.write_text(path.read_text()[:-20])  # what cannot be read is made again
    assert mine.evaluate(results_dir=tmp_path).random_baseline is None
    mine.evaluate(random=True, results_dir=tmp_path)
    assert load_reevaluations(tmp_path)[0].random_baseline == wide.random_baseline


def test_accuracies_on_other_real_data_are_never_taken_for_those_on_these(mine, tmp_path):
    """A set from elsewhere does not say of which images it was made, so it is evaluated on any."""
    stranger = SubsetSequence(mine.distilled.subsets, {"config": mine.distilled.metadata["config"]})
    spec = replace(mine.dataset.spec, mean=(0.1,))
    others = [dataset_from_arrays(as_pixels(90, 7), as_pixels(30, 8)), replace(mine.dataset, spec=spec)]
    refused = r"belongs to other images of arrays than those found, or .*; use another results folder"

    def ask(dataset, folder=None, max_minutes=None):
        found = sm.evaluate(stranger, random=True, dataset=dataset, results_dir=folder, max_minutes=max_minutes)
        return found.accuracy, found.random_baseline

    with pytest.raises(OutOfTime):
        ask(mine.dataset, tmp_path, max_minutes=1e-6)
    for other in others:  # other images; the same, normalised otherwise
        with pytest.raises(StorageError, match=rf"data\.json {refused}"):
            ask(other, tmp_path)
    assert ask(mine.dataset, tmp_path) == ask(mine.dataset)
    (record,) = load_reevaluations(tmp_path)
    shutil.rmtree(tmp_path / "state")  # as in a folder of records alone
    with pytest.raises(StorageError, match=rf"reevaluations.arrays.imported-\w+\.json {refused}"):
        ask(others[0], tmp_path)
    assert load_reevaluations(tmp_path) == [record]
    assert ask(mine.dataset, tmp_path) == ask(mine.dataset)  # the refusal has left nothing in the way
    assert ask(others[0], tmp_path / "another") == ask(others[0])  # the remedy


def test_a_set_is_evaluated_on_its_own_images_only_as_they_were_preprocessed(tmp_path):
    run = sm.run("digits-ipc10-random", "smoke", set=QUICK, results_dir=tmp_path)
    digits = load_dataset("digits")
    pairs = [(split.images, split.labels) for split in (digits.train, digits.test)]
    with pytest.raises(DataError, match=r"was distilled from these images preprocessed with .*; leave out `dataset`"):
        sm.evaluate(run.distilled, dataset=pairs)
    assert run.evaluate().accuracy == sm.evaluate(run.distilled, dataset=digits).accuracy


def test_a_set_of_ones_own_is_evaluated_with_the_remedy_of_its_refusal():
    bare = SubsetSequence((SyntheticSubset(torch.rand(20, 1, 8, 8), torch.arange(10).repeat_interleave(2), 0.01),))
    with pytest.raises(ConfigError, match="does not say how it was made; give a file .*, or a SubsetSequence with metadata="):
        sm.evaluate(bare)
    config = sm.RunConfig.from_preset("digits-ipc10-random", "smoke", overrides=QUICK)
    assert sm.evaluate(SubsetSequence(bare.subsets, {"config": config.as_dict()})).accuracy


def test_a_state_that_does_not_say_of_which_data_it_is_is_not_used(mine, tmp_path):
    stranger = SubsetSequence(mine.distilled.subsets, {"config": mine.distilled.metadata["config"]})
    other = dataset_from_arrays(as_pixels(90, 7), as_pixels(30, 8))
    here = sm.evaluate(stranger, dataset=mine.dataset, results_dir=tmp_path)
    here.path(tmp_path).unlink()
    for claim in (tmp_path / "state").rglob("data.json"):
        claim.unlink()  # as in a folder of an older version
    there = sm.evaluate(stranger, dataset=other, results_dir=tmp_path)
    assert there.accuracy == sm.evaluate(stranger, dataset=other).accuracy != here.accuracy


def test_a_reevaluation_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """Stopped after each network; the networks that are finished are not trained again."""
    short = {"evaluation.num_networks": 3, "training.epochs": 3}
    run = sm.run("digits-ipc10-dm", scale="smoke", results_dir=tmp_path, set=short)
    whole = run.evaluate(seed=7, random=True)
    asked = {"seed": 7, "random": True, "results_dir": tmp_path, "max_minutes": 1e-6}
    resumed, stops = finish_in_parts(lambda: sm.evaluate(run.distilled, **asked))
    assert stops > 0
    assert load_reevaluations(tmp_path) == [resumed]
    assert (resumed.accuracy, resumed.random_baseline) == (whole.accuracy, whole.random_baseline)

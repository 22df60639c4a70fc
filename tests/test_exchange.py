"""Distilled sets go out in every layout and come back, read as the public codes read them, and serve without this library."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers import flip, write_class_folders
from PIL import Image
from test_cli import fails_in_one_line

from seqmatch_lib import __main__ as command_line
from seqmatch_lib.__main__ import main
from seqmatch_lib.data import datasets
from seqmatch_lib.data.datasets import DATASETS, fit_preprocessing, load_dataset
from seqmatch_lib.data.multi_formation import AS_STORED, Formation
from seqmatch_lib.errors import ConfigError, DataError, StorageError
from seqmatch_lib.exchange.formats import FORMATS, export_sequence, import_sequence
from seqmatch_lib.exchange.pixel_layouts import share_outside
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset, load_sequence

ROOT = Path(__file__).parents[1]
DIGITS = DATASETS["digits"]
NAMES = [f"digit {label}" for label in range(10)]
PLAIN = fit_preprocessing(DIGITS, zca=False)


def make_sequence(generator, ipcs=(2, 1), soft=False, formation=AS_STORED):
    """A set of digits whose colours lie within black and white, with a step size of its own in every subset."""
    subsets = []
    for k, ipc in enumerate(ipcs, start=1):
        labels = torch.arange(10).repeat_interleave(ipc)
        images = PLAIN(255 * torch.rand(len(labels), *DIGITS.shape, generator=generator))
        if soft:
            labels = (3 * torch.randn(len(labels), 10, generator=generator)).softmax(1)
        subsets.append(SyntheticSubset(images, labels, 0.01 * k, formation))
    return SubsetSequence(tuple(subsets))


def configure(ipcs=(2, 1), method="seqmatch_mtt"):
    name = method if len(ipcs) > 1 else method.removeprefix("seqmatch_")
    overrides = {"ipc": sum(ipcs), "subset_ipcs": list(ipcs)}
    if name == "idc":
        overrides["idc.factor"] = 1
    return RunConfig.from_preset(f"digits-ipc10-{name}", overrides=overrides)


def import_as(config, paths, kind, lrs=(), spec=DIGITS, preprocessing=PLAIN):
    """Imports a set as an instance of a configuration."""
    return import_sequence(paths, kind, spec, preprocessing, config.subset_ipcs, config.as_dict(), lrs)


def there_and_back(sequence, kind, folder, config, lrs=(), preprocessing=PLAIN):
    written = export_sequence(sequence, kind, folder, preprocessing, NAMES)
    assert all(path.is_file() and folder in path.parents for path in written)
    return import_as(config, [folder], kind, lrs, preprocessing=preprocessing)


@pytest.mark.parametrize("ipcs", [(3,), (2, 1)])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_set_comes_back_from_every_layout(tmp_path, generator, kind, ipcs):
    sequence = make_sequence(generator, ipcs, soft=kind == "datm")
    lrs = [subset.lr for subset in sequence.subsets] if kind in ("idc", "folder") else []
    back = there_and_back(sequence, kind, tmp_path, configure(ipcs), lrs)
    assert [subset.lr for subset in back.subsets] == pytest.approx([subset.lr for subset in sequence.subsets])
    assert len(back) == len(ipcs)
    tolerance = {"mtt": 0.0, "datm": 0.0, "idc": 1e-5}.get(kind, 0.5 / 255 / PLAIN.std[0] + 1e-5)  # half a grey level
    for ours, theirs in zip(sequence.subsets, back.subsets, strict=True):
        torch.testing.assert_close(theirs.images, ours.images, rtol=0, atol=tolerance)
        torch.testing.assert_close(theirs.labels, ours.labels, rtol=0, atol=1e-6)
    assert back.metadata["config"] == configure(ipcs).as_dict()


@pytest.mark.parametrize(("kind", "shift"), [("mtt", 3.0), ("datm", 3.0), ("idc", 3.0), ("idc", -3.0)])
def test_a_set_of_our_own_comes_back_however_bright_it_is(tmp_path, generator, kind, shift):
    sequence = make_sequence(generator, soft=kind == "datm")
    bright = [replace(subset, images=subset.images + shift) for subset in sequence.subsets]
    back = there_and_back(SubsetSequence(tuple(bright)), kind, tmp_path, configure(), [0.1] * (kind == "idc"))
    for ours, theirs in zip(bright, back.subsets, strict=True):
        torch.testing.assert_close(theirs.images, ours.images, rtol=0, atol=1e-5)
    (tmp_path / "SHA256SUMS").unlink()  # then they may be anyone's
    with pytest.raises(DataError, match=r"outside \[0, 1\]" if kind == "idc" else "none negative"):
        import_as(configure(), [tmp_path], kind, [0.1])


def test_parquet_keeps_soft_labels(tmp_path, generator):
    sequence = make_sequence(generator, soft=True)
    back = there_and_back(sequence, "parquet", tmp_path, configure())
    for ours, theirs in zip(sequence.subsets, back.subsets, strict=True):
        torch.testing.assert_close(theirs.labels, ours.labels)


def test_whitened_sets_are_exported_in_true_colours(tmp_path, generator):
    images = load_dataset("digits").train.images
    whitening = fit_preprocessing(DIGITS, zca=True)
    labels = torch.arange(10).repeat_interleave(2)
    sequence = SubsetSequence((SyntheticSubset(whitening(images[:20]), labels, 0.01),))
    back = there_and_back(sequence, "parquet", tmp_path / "parquet", configure((2,)), preprocessing=whitening)
    torch.testing.assert_close(back.subsets[0].images, whitening(images[:20]), rtol=0, atol=0.05)
    first = export_sequence(sequence, "folder", tmp_path / "folder", whitening, NAMES)[0]
    with Image.open(first) as picture:
        shown = torch.tensor(list(picture.tobytes()))
    assert (shown - images[0].flatten()).abs().max() <= 1


def test_whitened_sets_are_not_exported_in_the_colours_of_other_images(tmp_path, capsys, monkeypatch, generator):
    """Whitening fitted on other images than the set's own would turn it into other pictures, which nobody would notice."""
    monkeypatch.setattr(datasets, "DATASETS", dict(DATASETS))
    for name in ("own", "other"):
        cats, dogs = torch.randint(256, (2, 12, 8, 8, 3), dtype=torch.uint8, generator=generator).numpy()
        write_class_folders(tmp_path / name, {"cat": cats, "dog": dogs})
    settings = [part for setting in ("ipc=1", "zca=true", "training.epochs=1") for part in ("--set", setting)]
    images, results = ["--images", str(tmp_path / "own")], ["--results", str(tmp_path / "results")]
    assert main(["run", "cifar10-ipc10-random", "--scale", "smoke", *images, *settings, *results]) == 0
    (path,) = (tmp_path / "results" / "distilled").glob("*.safetensors")
    export = ["export", str(path), "--to", "folder", "--out"]
    assert main([*export, str(tmp_path / "exported"), *images]) == 0
    assert main([*export, str(tmp_path / "refused"), "--images", str(tmp_path / "other")]) == 2
    assert "was distilled from other own images" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_the_files_are_those_the_public_codes_load(tmp_path, generator):
    """What `distill.py` of MTT, `evaluation.py` of SeqMatch and of DATM, and `test.py` of IDC do with them."""
    sequence = make_sequence(generator)
    export_sequence(sequence, "mtt", tmp_path / "mtt", PLAIN, NAMES)
    images_best = []
    for name in ["S_1", "S_2"]:  # as SeqMatch's buffer.py puts subsets together
        image = torch.load(tmp_path / "mtt" / name / "images_best.pt", weights_only=True)
        images_best.append(torch.cat([images_best[-1], image]) if images_best else image)
        lr = torch.load(tmp_path / "mtt" / name / "best_lr.pt", weights_only=True)
        assert lr.item() == pytest.approx(0.01 * len(images_best))
    assert torch.equal(images_best[-1], sequence.union()[0])
    export_sequence(sequence, "idc", tmp_path / "idc", PLAIN, NAMES)
    data, target = torch.load(tmp_path / "idc" / "data_com_best.pt", weights_only=True)
    assert (data >= -1e-6).all()
    assert (data <= 1 + 1e-6).all()
    assert torch.equal(target, sequence.union()[1])
    single = make_sequence(generator, (3,), soft=True)
    export_sequence(single, "datm", tmp_path / "datm", PLAIN, NAMES)
    logits = torch.load(tmp_path / "datm" / "labels_best.pt", weights_only=True)
    torch.testing.assert_close(logits.softmax(1), single.subsets[0].labels)
    assert torch.load(tmp_path / "datm" / "lr_best.pt", weights_only=True).item() == pytest.approx(0.01)


def test_multi_formation_is_kept_by_idc_and_taken_apart_by_the_others(tmp_path, generator):
    sequence = make_sequence(generator, (2,), formation=Formation(2))
    export_sequence(sequence, "idc", tmp_path / "idc", PLAIN, NAMES)
    given = ["--preset", "digits-ipc10-idc", "--set", "ipc=2", "--set", "subset_ipcs=[2]", "--out", str(tmp_path / "back")]
    assert main(["import", str(tmp_path / "idc"), "--from", "idc", *given]) == 0
    back = load_sequence(tmp_path / "back")
    assert back.subsets[0].formation == Formation(2)
    assert back.subsets[0].lr == RunConfig.from_preset("digits-ipc10-idc").options.syn_lr
    torch.testing.assert_close(back.union()[0], sequence.union()[0], rtol=0, atol=1e-5)
    back = there_and_back(sequence, "mtt", tmp_path / "mtt", configure((8,)))
    assert [len(subset.images) for subset in back.subsets] == [80]
    images, labels = sequence.union()
    order = torch.sort(labels, stable=True).indices
    assert torch.equal(back.subsets[0].images, images[order])


def test_images_in_another_order_are_sorted_by_class(tmp_path, generator):
    sequence = make_sequence(generator, (2,))
    subset, order = sequence.subsets[0], torch.randperm(20, generator=generator)
    shuffled = SubsetSequence((replace(subset, images=subset.images[order], labels=subset.labels[order]),))
    back = there_and_back(shuffled, "mtt", tmp_path, configure((2,))).subsets[0]
    assert back.labels.tolist() == sorted(subset.labels.tolist())
    for image, label in zip(back.images, back.labels, strict=True):
        (row,) = [row for row in range(20) if torch.equal(subset.images[row], image)]
        assert subset.labels[row] == label


def test_the_subsets_of_seqmatch_may_lie_in_folders_of_any_name(tmp_path, generator):
    sequence = make_sequence(generator)
    export_sequence(sequence, "mtt", tmp_path, PLAIN, NAMES)
    (tmp_path / "SHA256SUMS").unlink()
    folders = [(tmp_path / f"S_{k}").rename(tmp_path / name) for k, name in ((1, "warm"), (2, "late"))]
    back = import_as(configure(), folders, "mtt")
    assert torch.equal(back.union()[0], sequence.union()[0])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_export_is_named(tmp_path, generator, kind):
    sequence = make_sequence(generator, (2,), soft=kind == "datm")
    files = export_sequence(sequence, kind, tmp_path, PLAIN, NAMES)
    content = files[0].read_bytes()
    files[0].write_bytes(flip(content, len(content) // 2))
    with pytest.raises(DataError, match=rf"{re.escape(files[0].name)} does not match .*SHA256SUMS"):
        import_as(configure((2,)), [tmp_path], kind, [0.01])


def test_what_a_layout_cannot_hold_is_refused(tmp_path, generator):
    soft, hard = make_sequence(generator, soft=True), make_sequence(generator)
    for kind, sequence, other in (
        ("mtt", soft, "datm"),
        ("datm", hard, "mtt"),
        ("idc", soft, "parquet"),
        ("folder", soft, "parquet"),
    ):
        with pytest.raises(ConfigError, match=rf"format '{kind}' holds .* use '{other}'"):
            export_sequence(sequence, kind, tmp_path, PLAIN, NAMES)
    targets = SubsetSequence(tuple(replace(subset, labels=subset.labels - 0.1) for subset in soft.subsets))
    for kind in ("mtt", "datm", "idc", "folder"):  # labels as krr learns them
        with pytest.raises(ConfigError, match=rf"format '{kind}' holds .* use 'parquet'"):
            export_sequence(targets, kind, tmp_path, PLAIN, NAMES)
    export_sequence(targets, "parquet", tmp_path / "parquet", PLAIN, NAMES)
    assert torch.equal(import_as(configure(), [tmp_path / "parquet"], "parquet").union()[1], targets.union()[1])
    pixels = SubsetSequence((replace(hard.subsets[0], labels=torch.zeros(20, 8, 8, dtype=torch.int64)),))
    with pytest.raises(ConfigError, match=r"labels of pixels do not fit format 'mtt'"):
        export_sequence(pixels, "mtt", tmp_path, PLAIN, NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["parquet"]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_that_holds_files_is_refused(tmp_path, generator, kind):
    """Those of a sequence, for example, would be read in the place of those of one subset."""
    soft, new = kind == "datm", tmp_path / "new"
    there_and_back(make_sequence(generator, soft=soft), kind, tmp_path, configure(), [0.01])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    single = make_sequence(generator, (3,), soft)
    with pytest.raises(StorageError, match=rf"{tmp_path} is not empty \(it holds '\S+'\); give an empty or a new folder"):
        export_sequence(single, kind, tmp_path, PLAIN, NAMES)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    new.mkdir()
    back = there_and_back(single, kind, new, configure((3,)), [0.01])
    torch.testing.assert_close(back.union()[0], single.union()[0], rtol=0, atol=0.01)


def test_what_does_not_fit_is_told_with_the_remedy(tmp_path, generator):
    export_sequence(make_sequence(generator), "mtt", tmp_path / "mtt", PLAIN, NAMES)
    export_sequence(make_sequence(generator), "folder", tmp_path / "folder", PLAIN, NAMES)

    def read(name, kind, config=None, shape=DIGITS.shape, lrs=()):
        return import_as(config or configure(), [tmp_path / name], kind, lrs, replace(DIGITS, shape=shape))

    with pytest.raises(ConfigError, match=r"subsets of \[2, 1\] images per class.*--set ipc=3 --set subset_ipcs=\[2,1\]"):
        read("mtt", "mtt", configure((5, 5)))
    with pytest.raises(DataError, match=r"subset 1 has images of shape \(1, 8, 8\), but the data set has \(3, 32, 32\)"):
        read("mtt", "mtt", shape=(3, 32, 32))
    with pytest.raises(ConfigError, match=r"holds no step size.*--lr"):
        read("folder", "folder")
    with pytest.raises(ConfigError, match=r"3 step sizes are given for 2 subsets; give --lr once"):
        read("folder", "folder", lrs=[0.1, 0.2, 0.3])
    with pytest.raises(DataError, match=r"subset 2 has a step size of -0.1, which must be positive"):
        read("folder", "folder", lrs=[0.1, -0.1])
    with pytest.raises(StorageError, match=r"images_best.pt does not exist"):
        read("absent", "mtt")
    with pytest.raises(DataError, match=r"not a row of logits an image; if they are classes, import it as mtt"):
        read("mtt", "datm")
    (tmp_path / "mtt" / "SHA256SUMS").unlink()
    (tmp_path / "mtt" / "S_2" / "best_lr.pt").unlink()
    with pytest.raises(ConfigError, match=r"S_2 holds no step size \(best_lr.pt or lr_best.pt\); give it with --lr"):
        read("mtt", "mtt")


@pytest.mark.parametrize("preset", [f"digits-ipc10-{name}" for name in ("mtt", "dm", "krr", "seqmatch_mtt", "random")])
def test_the_remedy_for_another_division_works(tmp_path, generator, capsys, preset):
    export_sequence(make_sequence(generator), "mtt", tmp_path / "mtt", PLAIN, NAMES)
    out = str(tmp_path / "set.safetensors")
    arguments = ["import", str(tmp_path / "mtt"), "--from", "mtt", "--preset", preset, "--out", out]
    error = fails_in_one_line(capsys, *arguments)
    assert main([*arguments, *error.partition("; add ")[2].split()]) == 0


@pytest.mark.parametrize("zca", [False, True])
def test_images_that_do_not_say_how_they_were_preprocessed_are_taken_with_a_notice(
    tmp_path, generator, capsys, zca, monkeypatch
):
    """And no data set is read for them, as whitening would need."""
    monkeypatch.setattr(command_line, "fit_preprocessing", None)
    export_sequence(make_sequence(generator), "mtt", tmp_path / "mtt", PLAIN, NAMES)
    given = [str(tmp_path / "mtt"), "--from", "mtt", "--preset", "digits-ipc10-seqmatch_mtt", "--out", str(tmp_path / "set")]
    settings = ("ipc=3", "subset_ipcs=[2,1]", f"zca={str(zca).lower()}")
    assert main(["import", *given, *(part for setting in settings for part in ("--set", setting))]) == 0
    taken = ("normalised and not ZCA whitened", "ZCA whitened")[zca]
    assert f"notice: the images are taken as {taken}; if they are not, import them with --set zca=" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["images_best.pt", "mine.safetensors"])
def test_a_file_of_the_users_own_is_not_to_be_deleted(tmp_path, generator, name):
    """Only a set of a run is made again after that."""
    if name.endswith(".pt"):
        export_sequence(make_sequence(generator, (2,)), "mtt", tmp_path, PLAIN, NAMES)
    else:
        make_sequence(generator).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    with pytest.raises(StorageError, match=rf"{name} is damaged .*; copy it again; a set .* is read by the command `import`"):
        load_sequence(tmp_path / name)
    (tmp_path / "distilled").mkdir()
    own = (tmp_path / name).rename(tmp_path / "distilled" / "run.safetensors")
    with pytest.raises(StorageError, match="delete it to make it again"):
        load_sequence(own)


@pytest.mark.parametrize(
    ("share", "words"), [(0, "is empty; copy it again"), (0.5, r"is cut off or damaged \(.*\); copy it again")]
)
def test_a_pt_file_that_was_not_copied_whole_is_told_so(tmp_path, generator, share, words):
    path = export_sequence(make_sequence(generator, (2,)), "mtt", tmp_path, PLAIN, NAMES)[0]
    (tmp_path / "SHA256SUMS").unlink()
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(StorageError, match=f"{path.name} {words}"):
        import_as(configure((2,)), [tmp_path], "mtt")


def test_values_beyond_black_and_white_are_counted(generator):
    sequence = make_sequence(generator, (1,))
    assert share_outside(sequence, PLAIN) == 0
    images = sequence.subsets[0].images.clone()
    images[:5] = 99.0
    assert share_outside(SubsetSequence((replace(sequence.subsets[0], images=images),)), PLAIN) == 0.5


def test_from_the_command_line(tmp_path, generator, capsys):
    source = tmp_path / "set.safetensors"
    replace(make_sequence(generator), metadata={"config": configure().as_dict(), "class_names": NAMES}).save(source)
    assert main(["export", str(source), "--to", "parquet", "--out", str(tmp_path / "parquet")]) == 0
    assert "clipped: 0.0 %" in capsys.readouterr().out
    error = fails_in_one_line(capsys, "export", str(source), "--to", "idc", "--out", str(tmp_path / "parquet"))
    assert "parquet is not empty (it holds 'SHA256SUMS'); give an empty or a new folder" in error
    back = tmp_path / "back.safetensors"
    given = ["--from", "parquet", "--preset", "digits-ipc10-seqmatch_mtt", "--scale", "smoke", "--out", str(back)]
    sizes = ["--set", "ipc=3", "--set", "subset_ipcs=[2,1]"]
    assert main(["import", str(tmp_path / "parquet"), *given, *sizes]) == 0
    assert [len(subset.images) for subset in load_sequence(back).subsets] == [20, 10]
    assert main(["evaluate", str(back), "--results", str(tmp_path), "--random"]) == 0
    assert "random real images, convnet: " in capsys.readouterr().out
    error = fails_in_one_line(capsys, "import", str(tmp_path / "parquet"), *given)
    assert "--set ipc=3 --set subset_ipcs=[2,1]" in error


def test_exported_pictures_train_a_torchvision_model_without_this_library(tmp_path, generator):
    """Runs the example of the guide, on a fresh interpreter in which this library cannot be imported."""
    guide = (ROOT / "docs" / "exchange.md").read_text()
    (example,) = re.findall(r"^```python\n(# plain torchvision.*?)^```$", guide, re.M | re.S)
    labels = torch.arange(10).repeat_interleave(2)
    images = torch.rand(20, 3, 32, 32, generator=generator)
    cifar10 = fit_preprocessing(DATASETS["cifar10"], zca=False)
    sequence = SubsetSequence((SyntheticSubset(cifar10(255 * images), labels, 0.01),))
    export_sequence(sequence, "folder", tmp_path / "pictures", cifar10, NAMES)
    prelude = (  # as `import_torchvision` does: where torch is built without CUDA, two operators must be declared
        "import sys; sys.modules['seqmatch_lib'] = None\n"
        "import torch\n"
        "try: import torchvision\n"
        "except RuntimeError:\n"
        "    for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']: del sys.modules[name]\n"
        "    library = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "    for name in ('nms', 'qnms'):\n"
        "        library.define(name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", prelude + example], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    loss = float(re.search(r"loss ([\d.]+)", done.stdout)[1])
    assert loss < 1.0, "twenty random pictures are learned by heart"


def test_parquet_is_read_by_anyone(tmp_path, generator):
    export_sequence(make_sequence(generator), "parquet", tmp_path, PLAIN, NAMES)
    table = pq.read_table(tmp_path / "train-00000-of-00001.parquet")
    assert table.column_names == ["img", "label", "subset"]
    assert table["img"][0].as_py()["bytes"].startswith(b"\x89PNG")
    assert table["subset"].to_pylist() == [1] * 20 + [2] * 10

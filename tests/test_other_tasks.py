"""Labels of pixels and text through the same library: the data, the loss and accuracy of pixels, whole runs."""

import pytest
import torch
import torch.nn.functional as F

from seqmatch_lib.data.builtin import ALPHABET, draw_name, read_canvas_digits, read_digits, read_place_names
from seqmatch_lib.data.datasets import Split, load_dataset
from seqmatch_lib.data.labels import IGNORED, image_classes
from seqmatch_lib.engine.inner_loop import InnerBatch, unroll
from seqmatch_lib.engine.networks import NetworkConfig, flatten_parameters, make_network
from seqmatch_lib.engine.training import measure_accuracy
from seqmatch_lib.errors import ConfigError
from seqmatch_lib.front import evaluate
from seqmatch_lib.runs.config import RunConfig, preset_names
from seqmatch_lib.runs.experiment import record_shared_teachers, run_experiment
from seqmatch_lib.subsets import load_sequence

QUICK = {"training.epochs": 4, "evaluation.num_networks": 2}


def spell(image: torch.Tensor) -> str:
    """The brightest letter at each place, spaces where it is dark."""
    brightest = image[0, : len(ALPHABET)].max(0)
    places = zip(brightest.values.tolist(), brightest.indices.tolist(), strict=True)
    return "".join(ALPHABET[row] if value >= 0.5 else " " for value, row in places).rstrip()


def test_a_canvas_holds_one_digit_whose_ink_is_labelled():
    images, labels, _ = read_canvas_digits()
    digits, classes, _ = read_digits()
    assert images.shape == (1797, 1, 16, 16)
    assert torch.equal(images.flatten(1).long().sum(1), digits.flatten(1).long().sum(1))  # nothing of a digit is cut off
    assert torch.equal(image_classes(labels), classes)
    assert (images[:, 0][labels == IGNORED] < 100).all()
    assert (images[:, 0][labels != IGNORED] >= 100).all()
    corners = {tuple(image[0].nonzero().amin(0).tolist()) for image in images[:200]}
    assert len(corners) > 30  # they stand in many places


def test_names_of_places_are_images_of_their_letters():
    image = draw_name("São Tomé")
    assert spell(image / 255) == "sao tome"
    assert image.sum() == 255 * len("sao tome")
    assert image[0, ALPHABET.index("s"), 0] == 255
    images, labels, languages = read_place_names()
    names = [spell(one / 255) for one in images]
    assert len(names) == len(labels) > 1500
    assert torch.bincount(labels).min() >= 100
    assert "agypten" in [name for name, label in zip(names, labels.tolist(), strict=True) if languages[label] == "German"]
    assert "espana" not in names[: int((labels == 0).sum())]


@pytest.mark.parametrize("name", ["canvas_digits", "place_names"])
def test_they_load_as_data_sets(name):
    dataset = load_dataset(name)
    spec = dataset.spec
    assert (len(dataset.train), len(dataset.test)) == (spec.train_size, spec.test_size)
    pixels = torch.cat([dataset.train.images, dataset.test.images]).double() / 255
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx((spec.mean[0], spec.std[0]), abs=1e-4)
    assert load_dataset(name).fingerprint == dataset.fingerprint
    assert f"{name}-whole" in preset_names(), "the reference of its notebook"


def test_pixels_that_are_ignored_count_neither_as_right_nor_as_wrong():
    labels = torch.tensor([[[1, IGNORED], [0, 2]]])

    class Zero(torch.nn.Module):
        def forward(self, x):
            return F.one_hot(torch.zeros(len(x), 2, 2, dtype=torch.long), 3).permute(0, 3, 1, 2).float()

    assert measure_accuracy(Zero(), Split(torch.zeros(5, 1, 2, 2), labels.repeat(5, 1, 1))) == pytest.approx(100 / 3)


def test_engines_agree_on_labels_of_pixels(generator, uncompiled):
    network = make_network(NetworkConfig(name="fcn", width=4, depth=2), (1, 6, 6), 3, generator).double()
    start = flatten_parameters(network)
    images = torch.randn(4, 1, 6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(3, (4, 6, 6), generator=generator)
    labels[:, :2] = IGNORED
    batches = [InnerBatch(torch.tensor(rows), ()) for rows in ([0, 1, 2], [3, 1])]
    lr = torch.tensor(0.2, dtype=torch.float64)
    gradients = []
    for engine in ("higher", "compiled"):
        reached = unroll(network, start, images, labels, batches, lr, engine)
        gradients.append(torch.autograd.grad(reached.square().sum(), images)[0])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize("dataset", ["canvas_digits", "place_names"])
@pytest.mark.parametrize("method", ["random", "mtt", "seqmatch_mtt"])
def test_whole_runs(tmp_path, dataset, method):
    overrides = QUICK if method == "random" else QUICK | {"mtt.iterations": 3}
    config = RunConfig.from_preset(f"{dataset}-ipc10-{method}", "smoke", overrides=overrides)
    record = run_experiment(config, tmp_path)
    assert 0 <= record.accuracy_last["mean"] <= 100
    sequence = load_sequence(tmp_path / "distilled" / f"{config.run_id}.safetensors")
    classes = load_dataset(dataset).spec.num_classes
    for subset, ipc in zip(sequence.subsets, config.subset_ipcs, strict=True):
        assert torch.bincount(image_classes(subset.labels)).tolist() == [ipc] * classes
        assert subset.labels.shape[1:] == ((16, 16) if dataset == "canvas_digits" else ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.cutmix": 0.5}, "training.cutmix 0.5 does not fit labels of pixels; set training.cutmix=0"),
        ({"training.loss": "mse"}, "training.loss 'mse' does not fit labels of pixels; set training.loss=cross_entropy"),
        ({"mtt.lr_label": 1.0}, "mtt.lr_label 1.0 learns .*, which does not fit labels of pixels; set mtt.lr_label=0"),
        (
            {"evaluation.networks": ["fcn", "convnet"], "network.depth": 3},
            r"network 'convnet' maps 2 images to \(2, 10\), not to \(2, 10, 16, 16\) logits, as labels of pixels need; .*fcn",
        ),
        ({"method": "idc", "intervals": []}, "method 'idc' does not take labels of pixels; use random or whole, or dm, mtt"),
        ({"method": "krr", "intervals": [], "training.loss": "mse"}, "method 'krr' does not take labels of pixels; use"),
    ],
)
def test_what_does_not_fit_labels_of_pixels_is_refused_at_once(tmp_path, changes, message):
    config = RunConfig.from_preset("canvas_digits-ipc10-mtt", "smoke", overrides=QUICK | changes)
    with pytest.raises(ConfigError, match=message):
        run_experiment(config, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (tmp_path / "teachers").exists()


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (run_experiment, {"network.name": "fcn"}),
        (run_experiment, {"evaluation.networks": ["convnet", "fcn"]}),
        (record_shared_teachers, {"network.name": "fcn"}),
    ],
)
def test_a_network_for_labels_of_pixels_does_not_fit_those_of_images(tmp_path, make, changes):
    config = RunConfig.from_preset("digits-ipc10-mtt", "smoke", overrides=QUICK | changes)
    with pytest.raises(ConfigError, match=r"'fcn' maps .*, not to \(2, 10\) logits, as labels of images need; .*convnet"):
        make(config, tmp_path)
    assert not (tmp_path / "teachers").exists()


def test_labels_of_pixels_go_through_dm_and_through_evaluations_that_fit_them(tmp_path):
    changes = {"method": "seqmatch_dm", "intervals": [], "subset_ipcs": [5, 5], "dm.iterations": 2, "dm.batch_real": 8}
    config = RunConfig.from_preset("canvas_digits-ipc10-mtt", "smoke", overrides=QUICK | changes)
    record = run_experiment(config, tmp_path)
    path = tmp_path / "distilled" / f"{config.run_id}.safetensors"
    assert evaluate(path).accuracy["fcn"]["values"] == record.accuracy_last["values"]
    with pytest.raises(ConfigError, match="training.cutmix 0.5 does not fit labels of pixels"):
        evaluate(path, set={"training.cutmix": 0.5})

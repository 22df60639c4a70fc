"""Parameter counts, shapes, determinism and derivatives of the networks."""

import pytest
import torch
from conftest import SEED

from seqmatch_lib.data.datasets import import_torchvision
from seqmatch_lib.engine.networks import (
    NETWORKS,
    InstanceNorm,
    LayerNorm,
    NetworkConfig,
    NormalisedConv,
    check_networks,
    count_parameters,
    draw_parameters,
    flatten_parameters,
    load_parameters,
    make_network,
)
from seqmatch_lib.errors import ConfigError

CIFAR, TINY, FASHION = (3, 32, 32), (3, 64, 64), (1, 28, 28)


def build(name: str, shape: tuple[int, int, int], classes: int, seed: int = 0, **settings) -> torch.nn.Module:
    return make_network(NetworkConfig(name, **settings), shape, classes, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "settings", "shape", "classes", "expected"),
    [
        ("convnet", {"depth": 3}, CIFAR, 10, 320_010),
        ("convnet", {"depth": 4}, TINY, 200, 857_160),
        ("convnet", {"depth": 3}, FASHION, 10, 317_706),
        # by hand, from the public definitions
        ("alexnet", {}, CIFAR, 10, 1_872_202),
        ("vgg11", {}, CIFAR, 10, 9_231_114),
        ("resnet18", {}, CIFAR, 10, 11_173_962),
        ("resnet18_ap", {}, CIFAR, 10, 11_250_762),
    ],
)
def test_parameter_counts(name, settings, shape, classes, expected):
    assert count_parameters(build(name, shape, classes, **settings)) == expected


CLASSIFIERS = [name for name in NETWORKS if name != "fcn"]


def test_a_fully_convolutional_network_has_logits_for_every_pixel():
    network = build("fcn", (1, 16, 16), 10, width=8, depth=2)
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        logits = network(images)
        assert logits.shape == (2, 10, 16, 16)
        head = network[-1]
        by_hand = torch.einsum("bwij,cw->bcij", network[:-1](images), head.weight[:, :, 0, 0]) + head.bias.view(-1, 1, 1)
    torch.testing.assert_close(logits, by_hand)


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize(("shape", "classes"), [(CIFAR, 10), (TINY, 200), (FASHION, 10)])
def test_logits_have_one_column_a_class(name, shape, classes):
    with torch.no_grad():
        logits = build(name, shape, classes)(torch.randn(2, *shape))
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("norm", ["instance", "group", "layer", "batch", "none"])
@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
def test_convnet_variants(norm, pooling):
    network = build("convnet", (3, 8, 8), 4, width=8, depth=2, norm=norm, pooling=pooling)
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_come_from_the_generator_alone(name):
    before = torch.get_rng_state()
    first, again, other = (flatten_parameters(build(name, CIFAR, 10, seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_start_is_distributed_as_pytorch_draws_it():
    network = build("convnet", CIFAR, 10)
    for layer, fan_in in ((network[4], 128 * 9), (network[-1], 128 * 16)):
        bound = fan_in**-0.5  # torch.nn: uniform within it, for weights and biases
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert 0.5 * bound < layer.bias.abs().max() <= bound
        assert abs(layer.weight.std() / (bound / 3**0.5) - 1) < 0.02


def test_instance_norm_normalises_each_channel_of_each_image():
    network = build("convnet", CIFAR, 10)
    out = network[:2](5 + 3 * torch.randn(4, *CIFAR))
    torch.testing.assert_close(out.mean((2, 3)), torch.zeros(4, 128), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.var((2, 3), correction=0), torch.ones(4, 128), atol=1e-2, rtol=0)


def test_compiled_instance_norm_keeps_its_digits_where_the_mean_is_large_and_the_variance_small():
    """What two plain sums would lose: 1 in 10^4 of the values varies, so their squares differ in the eighth digit."""
    generator = torch.Generator().manual_seed(SEED)
    norm = InstanceNorm(4)
    draw_parameters(norm, generator)
    images = 100 + 0.01 * torch.randn(3, 4, 8, 8, generator=generator)
    exact = torch.group_norm(images.double(), 4, eps=norm.eps)
    compiled = torch.compile(norm, fullgraph=True)(images)
    assert (compiled - exact).abs().max() < 1e-3 * exact.abs().max()


def test_the_bias_before_an_instance_norm_changes_nothing():
    network = build("convnet", CIFAR, 10, width=8)
    images = torch.randn(4, *CIFAR, generator=torch.Generator().manual_seed(SEED))
    before = network.double()(images.double())
    for layer in network:
        if isinstance(layer, NormalisedConv):
            torch.nn.init.normal_(layer.bias)
    torch.testing.assert_close(network(images.double()), before, rtol=1e-9, atol=1e-9)
    plain = build("convnet", CIFAR, 10, width=8, norm="layer")
    assert not any(isinstance(layer, NormalisedConv) for layer in plain)  # no other norm takes a bias away


def test_layer_norm_is_that_of_torch():
    images = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    ours = LayerNorm((4, 5)).double()
    torch.nn.init.normal_(ours.weight)
    torch.nn.init.normal_(ours.bias)
    torch.testing.assert_close(ours(images), torch.nn.functional.layer_norm(images, (4, 5), ours.weight, ours.bias))


def renamed(block: torch.nn.Module, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Returns the parameters of a block of ours under the names that torch has for them."""
    state = block.state_dict()
    for ours, theirs in names.items():
        state = {name.replace(ours, theirs): value for name, value in state.items()}
    return state


def test_a_block_of_the_transformer_is_that_of_torch():
    block = build("vit", (1, 8, 8), 3)[0].encoder[0].double()
    layer = torch.nn.TransformerEncoderLayer(192, 3, 384, 0.0, "gelu", batch_first=True, norm_first=True).double()
    names = {"qkv.": "self_attn.in_proj_", "project": "self_attn.out_proj", "expand": "linear1", "contract": "linear2"}
    layer.load_state_dict(renamed(block, names))
    tokens = torch.randn(2, 5, 192, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    torch.testing.assert_close(block(tokens), layer(tokens))


def test_a_block_of_the_resnet_is_that_of_torchvision():
    block = build("resnet18", CIFAR, 10, norm="batch")[5].double()  # the first one that halves
    resnet = import_torchvision().models.resnet18().layer2[0].double()
    resnet.load_state_dict(renamed(block, {"norm": "bn", "shortcut.2": "downsample.1", "shortcut": "downsample"}))
    images = torch.randn(2, 64, 8, 8, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    torch.testing.assert_close(block(images), resnet(images))


def test_the_layers_of_the_vgg_are_those_of_torchvision():
    vgg, ours = import_torchvision().models.vgg, build("vgg11", CIFAR, 10, norm="none")[:-2].double()
    theirs = vgg.make_layers(vgg.cfgs["A"]).double()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(2, *CIFAR, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("resnet")])
def test_gradients_of_gradients_exist(name):
    network = build(name, CIFAR, 3)
    x = torch.randn(2, *CIFAR, requires_grad=True)
    loss = network(x).square().sum()
    gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    (second,) = torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), x)
    assert second.abs().sum() > 0


def test_flat_parameters_are_a_copy_and_load_back():
    network = build("convnet", CIFAR, 10, width=8)
    flat = flatten_parameters(network)
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert not torch.equal(flat, flatten_parameters(network))
    load_parameters(network, flat)
    assert torch.equal(flat, flatten_parameters(network))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "convnett"}, "convnett.*convnet"),
        ({"norm": "istance"}, "istance.*instance"),
        ({"pooling": "mean"}, "mean.*avg"),
        ({"width": 0}, "width 0 must be at least 1"),
        ({"depth": -1}, "depth -1 must be at least 1"),
        ({"width": 6, "norm": "group"}, "width 6 must be a multiple of 4"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**settings)


def test_too_many_poolings_for_the_images():
    with pytest.raises(ConfigError, match="too small for the 4 poolings"):
        build("convnet", (3, 8, 8), 10, depth=4)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_last_module_is_the_linear_classifier(name):
    network = build(name, CIFAR, 10).eval()
    images = torch.randn(2, *CIFAR)
    with torch.no_grad():
        features = network[:-1](images)
        assert features.dim() == 2
        torch.testing.assert_close(features @ network[-1].weight.T + network[-1].bias, network(images))
    torch.autograd.grad(network(images).sum(), list(network.parameters()))  # an error if any takes no part


class Scaled(torch.nn.Linear):
    """A known layer with a parameter more."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = torch.nn.Parameter(torch.empty(1))


class Drawn(torch.nn.PReLU):
    def draw(self, generator):
        self.weight.uniform_(0.1, 0.2, generator=generator)


class Pair(torch.nn.Module):
    def forward(self, x):
        return x, x


def sequential(*layers, classes=3):
    return torch.nn.Sequential(torch.nn.Flatten(), *layers, torch.nn.Linear(16, classes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sequential(torch.nn.PReLU()), r"nothing initialises weight of its module 1 \(PReLU\); .* draw\(generator\)"),
        (
            lambda: sequential(torch.nn.Sequential(Scaled(16, 16))),
            r"nothing initialises bias, scale, weight of its module 1.0 ",
        ),
        (lambda: sequential(torch.nn.BatchNorm1d(16)), r"running_mean, running_var, weight of its module 1 \(BatchNorm1d"),
        (lambda: torch.nn.Linear(16, 3), r"is a Linear; return nn.Sequential\("),
        (lambda: sequential(torch.nn.Linear(9, 16)), r"fails on images of shape \(1, 4, 4\) .*: .*; make it return logits"),
        (lambda: torch.nn.Sequential(sequential(), Pair()), r"fails on images .*: 'tuple' object has no attribute 'shape'"),
        (lambda: sequential(torch.nn.Dropout()), r"draws random numbers \(aten.bernoulli_.* that no seed decides.* dropout"),
        (
            lambda: sequential().requires_grad_(False),
            r"parameters that take no gradient \(1.weight, 1.bias\).*requires_grad on",
        ),
        (lambda: sequential().double(), r"another dtype .*float32 \(1.weight: torch.float64, .*\); make them float32"),
        (lambda: sequential(classes=4), r"maps 2 images to \(2, 4\), not to \(2, 3\) logits, as labels of images need; name "),
    ],
)
def test_a_network_of_ones_own_that_does_not_serve_is_refused_before_training(make, message, monkeypatch):
    """Parameters that nothing initialises would hold whatever was in memory."""
    monkeypatch.setitem(NETWORKS, "own", lambda config, image_shape, num_classes: make())
    with pytest.raises(ConfigError, match=f"network 'own'.*{message}"):
        check_networks([NetworkConfig("own")], (1, 4, 4), 3)


def test_dropout_that_drops_nothing_is_let_through(monkeypatch):
    monkeypatch.setitem(NETWORKS, "own", lambda config, image_shape, num_classes: sequential(torch.nn.Dropout(0.0)))
    check_networks([NetworkConfig("own")], (1, 4, 4), 3)


def test_a_module_can_draw_its_own_parameters(monkeypatch):
    monkeypatch.setitem(NETWORKS, "own", lambda config, image_shape, num_classes: sequential(Drawn()))
    check_networks([NetworkConfig("own")], (1, 4, 4), 3)
    first, again, other = (build("own", (1, 4, 4), 3, seed)[1].weight.item() for seed in (0, 0, 1))
    assert first == again != other
    assert 0.1 <= first <= 0.2

"""Base methods against slow, literal transcriptions of their formulas in float64; how they resume; their part in SeqMatch."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import CLASSES, EAGER, HIGHER, NETWORK, RECIPE, TEACHERS, Impatient, checkpoints, finish_in_parts, make_stage

from seqmatch_lib.data.preprocessing import Normalisation, Whitening
from seqmatch_lib.engine import step_functions
from seqmatch_lib.engine.augment import apply_augmentation, draw_augmentation
from seqmatch_lib.engine.evaluation import train_staged
from seqmatch_lib.engine.networks import NETWORKS, NetworkConfig
from seqmatch_lib.engine.training import LoopTrainer, StackedTrainer, TrainingRecipe
from seqmatch_lib.errors import ConfigError
from seqmatch_lib.methods import BaseConfig, Stage, get_method
from seqmatch_lib.methods.dm import DM, DMConfig
from seqmatch_lib.methods.idc import IDC, METRICS, IDCConfig
from seqmatch_lib.methods.krr import KRR, KRRConfig, margin_loss, regress
from seqmatch_lib.methods.lamb import Lamb
from seqmatch_lib.methods.mtt import MTT, MTTConfig
from seqmatch_lib.methods.teachers import TeacherConfig, record_stage_teachers
from seqmatch_lib.runs.distillation import distill_stages
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.seqmatch import advance
from seqmatch_lib.subsets import SubsetSequence

IDC_CONFIG = IDCConfig(
    iterations=(5,), inner_loop=(2,), fix_iter=2, lr_img=0.05, batch_real=7, batch_syn_max=6, n_data=20, net_batch_size=8,
    **EAGER,
)  # fmt: skip
DM_CONFIG = DMConfig(iterations=5, lr_img=0.5, batch_real=9, fix_iter=2, later_fix_iter=3)
KRR_CONFIG = KRRConfig(
    iterations=8, lr_img=0.02, batch_real=30, num_networks=2, max_online_updates=2, batch_syn=5, net_lr=0.01, **EAGER
)
MTT_CONFIG = MTTConfig(iterations=4, syn_steps=2, expert_epochs=2, lr_img=0.5, lr_lr=1e-4, syn_lr=0.05, lr_label=0.3, **HIGHER)
METHODS = {"idc": IDC(IDC_CONFIG), "dm": DM(DM_CONFIG), "krr": KRR(KRR_CONFIG), "mtt": MTT(MTT_CONFIG)}


def make_double_stage(folder):
    """A first stage in float64, to be used with the `float64` fixture, which makes the networks float64."""
    stage = make_stage(folder)
    return replace(stage, images=stage.images.double(), preprocessing=Normalisation((0.4,), (0.25,)))


def make_later_stage(folder, method):
    """A third stage in float64 with two frozen subsets, which have learned something."""
    first = make_double_stage(folder)
    earlier = distill_stages(method, first, (2, 1), (None, None), checkpoints(folder))
    return replace(first, index=3, ipc=1, frozen=SubsetSequence(tuple(progress.last for progress in earlier)))


def generator_of(stage, iteration):
    return make_generator(stage.seed, "stage", stage.index, "iteration", iteration)


def alike(real, synthetic, strategy, generator):
    """Augments a batch of real and synthetic images by one draw."""
    both = torch.cat([real, synthetic])
    drawn = draw_augmentation(strategy, len(both), both.shape[2:], generator, shared=True)
    return apply_augmentation(both, drawn)[: len(real)], apply_augmentation(both, drawn)[len(real) :]


def note_calls(function, calls):
    """Returns the function, which notes the arguments of each call."""

    def noted(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return noted


def chosen(members, count, generator):
    return members[torch.randperm(len(members), generator=generator)[:count]]


class LiteralIDC:
    """IDC with nn.Module, torch.optim and second derivatives by autograd, as its public code computes them."""

    def __init__(self, stage, config):
        self.stage, self.config = stage, config
        self.momentum = None

    def decode(self, images):
        half = images.shape[-1] // 2
        tiles = [images[:, :, i : i + half, j : j + half] for i in (0, half) for j in (0, half)]
        return torch.cat([F.interpolate(tile, scale_factor=2, mode="bilinear") for tile in tiles])

    def start_network(self, block):
        stage, purpose = self.stage, ("stage", self.stage.index, "matching", block)
        network = stage.make_network(stage.seed, *purpose, "start")
        train_staged([network], stage.frozen, stage.recipe, [make_generator(stage.seed, *purpose, "earlier stages")])
        return network

    def step(self, images, iteration):
        """Returns the loss and the image after one step of SGD with momentum on pixels in [0, 1]."""
        stage, config = self.stage, self.config
        std, mean = 0.25, 0.4
        generator = generator_of(stage, iteration)
        if iteration % config.inner_loop[0] == 0:
            block = iteration // config.inner_loop[0]
            if block % config.fix_iter == 0:
                self.start = self.start_network(block // config.fix_iter)
            self.network = stage.make_network(stage.seed, "any")
            self.network.load_state_dict(self.start.state_dict())
            self.optimizer = torch.optim.SGD(
                self.network.parameters(), config.net_lr, config.net_momentum, weight_decay=config.net_weight_decay
            )
            images = (images * std + mean).clamp(0, 1).sub(mean).div(std)
        pixels = (images * std + mean).detach().requires_grad_()
        total = 0.0
        for label in range(CLASSES):
            parts = []
            for stored in (*(subset.images for subset in stage.frozen.subsets), (pixels - mean) / std):
                ipc = len(stored) // CLASSES
                decoded = self.decode(stored[label * ipc : (label + 1) * ipc])
                if len(decoded) > config.batch_syn_max:
                    decoded = decoded[torch.randperm(len(decoded), generator=generator)[: config.batch_syn_max]]
                parts.append(decoded)
            synthetic = torch.cat(parts)
            rows = chosen((stage.labels == label).nonzero().flatten(), config.batch_real, generator)
            real, synthetic = alike(stage.images[rows], synthetic, config.match_augment, generator)
            gradients = []
            for batch in (real, synthetic):
                loss = F.cross_entropy(self.network(batch), torch.full((len(batch),), label))
                gradients.append(torch.autograd.grad(loss, list(self.network.parameters()), create_graph=True))
            for wanted, reached in zip(*gradients, strict=True):
                if wanted.dim() == 4:  # weights of convolutions alone
                    total = total + METRICS[config.metric](reached, wanted.detach())
        total.backward()
        self.train(generator)
        velocity = pixels.grad if self.momentum is None else config.momentum_img * self.momentum + pixels.grad
        self.momentum = velocity
        moved = pixels.detach() - config.lr_img * stage.ipc / 10 * velocity
        return total.item(), (moved - mean) / std

    def train(self, generator):
        stage, config = self.stage, self.config
        rows = torch.randperm(len(stage.images), generator=generator)[: config.n_data]
        for batch in rows[torch.randperm(config.n_data, generator=generator)].split(config.net_batch_size):
            drawn = draw_augmentation(config.net_augment, len(batch), (6, 6), generator)
            images, labels = apply_augmentation(stage.images[batch], drawn), stage.labels[batch]
            chance, share, row, column = torch.rand(4, generator=generator).tolist()
            order = torch.randperm(len(batch), generator=generator)
            self.optimizer.zero_grad()
            if chance < config.cutmix:
                side = int(6 * (1 - share) ** 0.5) // 2
                inside = torch.zeros(6, 6, dtype=torch.bool)
                for y in range(6):
                    for x in range(6):
                        inside[y, x] = (
                            int(row * 6) - side <= y < int(row * 6) + side
                            and int(column * 6) - side <= x < int(column * 6) + side
                        )
                logits = self.network(torch.where(inside, images[order], images))
                ratio = 1 - inside.double().mean()
                loss = F.cross_entropy(logits, labels) * ratio + F.cross_entropy(logits, labels[order]) * (1 - ratio)
            else:
                loss = F.cross_entropy(self.network(images), labels)
            loss.backward()
            self.optimizer.step()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("later", [False, True])
def test_idc_is_its_literal_transcription(tmp_path, float64, metric, later):
    config = replace(IDC_CONFIG, metric=metric)
    method = IDC(config)
    stage = make_later_stage(tmp_path, method) if later else make_double_stage(tmp_path)
    trainable = method.initialise(stage)
    prepared = method.prepare(stage)
    literal, images = LiteralIDC(stage, config), trainable.images.detach().clone()
    for iteration in range(5):  # crosses the places where the network begins again, and where its start is new
        loss, images = literal.step(images, iteration)
        before = trainable.images.detach().clone()
        advance(method, prepared, trainable, stage)
        assert trainable.losses[-1] == pytest.approx(loss, rel=1e-8)
        torch.testing.assert_close(trainable.images.detach(), images, rtol=1e-8, atol=1e-8)
        assert not torch.allclose(trainable.images, before, atol=1e-6)


def test_distances_of_gradients_by_hand():
    """Of two filters: at a right angle, and opposite to each other."""
    x, y = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 2.0]]]]), torch.tensor([[[[0.0, 1.0]]], [[[0.0, -1.0]]]])
    found = {name: distance(x, y).item() for name, distance in METRICS.items()}
    assert found == {"mse": 1 + 1 + 9, "l1": 1 + 1 + 3, "cosine": pytest.approx(1 + 2, abs=1e-5)}


def test_idc_starts_from_tiles_of_real_images_of_the_class(tmp_path):
    stage = make_stage(tmp_path)
    stage = replace(stage, images=stage.labels.float().view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous())  # shows its class
    for ipc in (2, 8):  # 8 images of 4 tiles need more than the 20 real ones of a class
        trainable = METHODS["idc"].initialise(replace(stage, ipc=ipc))
        assert trainable.optimizers["images"].param_groups[0]["lr"] == pytest.approx(IDC_CONFIG.lr_img * ipc / 10)
        assert torch.equal(trainable.images.mean((1, 2, 3)).detach(), trainable.labels.float())
    varied = METHODS["idc"].initialise(make_stage(tmp_path)).images
    assert len({tile.detach().numpy().tobytes() for image in varied for tile in image.unfold(1, 3, 3).flatten(0, 2)}) > 20


def convnet_features(network, x):
    """The features of a ConvNet of depth 1, written out."""
    conv, norm = network[0], network[1]
    x = F.conv2d(x, conv.weight, conv.bias, padding=1)
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, correction=0)
    x = (x - mean) / (variance + 1e-5).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    x = x.clamp(min=0)
    return x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).flatten(1)


@pytest.mark.parametrize("later", [False, True])
def test_dm_is_its_literal_transcription(tmp_path, float64, later):
    method = METHODS["dm"]
    stage = make_later_stage(tmp_path, method) if later else make_double_stage(tmp_path)
    trainable = method.initialise(stage)
    prepared = method.prepare(stage)
    fix_iter = DM_CONFIG.later_fix_iter if later else DM_CONFIG.fix_iter
    for iteration in range(4):
        generator = generator_of(stage, iteration)
        purpose = ("stage", stage.index, "features", iteration // fix_iter)
        network = stage.make_network(stage.seed, *purpose, "start")
        train_staged([network], stage.frozen, stage.recipe, [make_generator(stage.seed, *purpose, "earlier stages")])
        images = trainable.images.detach().clone().requires_grad_()
        loss = 0.0
        for label in range(CLASSES):
            rows = chosen((stage.labels == label).nonzero().flatten(), DM_CONFIG.batch_real, generator)
            own = [subset.images[subset.labels == label] for subset in stage.frozen.subsets]
            own.append(images[trainable.labels == label])
            real, synthetic = alike(stage.images[rows], torch.cat(own), DM_CONFIG.augment, generator)
            means = [convnet_features(network, batch).mean(0) for batch in (real, synthetic)]
            loss = loss + ((means[0].detach() - means[1]) ** 2).sum()
        (gradient,) = torch.autograd.grad(loss, images)
        advance(method, prepared, trainable, stage)
        assert trainable.losses[-1] == pytest.approx(loss.item(), rel=1e-8)
        torch.testing.assert_close(trainable.images.grad, gradient, rtol=1e-8, atol=1e-10)
        assert gradient.abs().max() > 1e-6


class LiteralKRR:
    """FRePo with an explicit inverse, hand-written LAMB and torch's Adam."""

    def __init__(self, stage, config):
        self.stage, self.config = stage, config
        self.networks, self.optimizers, self.starts = [None, None], [None, None], [0, 0]
        self.updates = [0, config.max_online_updates // 2]
        self.moments = {}
        for index in range(2):
            self.renew(index)

    def renew(self, index):
        stage = self.stage
        purpose = ("stage", stage.index, "pool", index, self.starts[index])
        network = stage.make_network(stage.seed, *purpose, "start")
        train_staged([network], stage.frozen, stage.recipe, [make_generator(stage.seed, *purpose, "earlier stages")])
        self.networks[index] = network
        self.optimizers[index] = torch.optim.Adam(network.parameters(), lr=self.config.net_lr)

    def lamb(self, name, value, gradient, iteration):
        mean, square = self.moments.get(name, (0.0, 0.0))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        self.moments[name] = mean, square
        step = iteration + 1
        direction = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)) ** 0.5 + 1e-6)
        cosine = 0.1 + 0.9 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * iteration / self.config.iterations)).item())
        return value - self.config.lr_img * cosine * value.norm() / direction.norm() * direction

    def step(self, images, labels, iteration):
        stage, config = self.stage, self.config
        generator = generator_of(stage, iteration)
        index = int(torch.randint(2, (), generator=generator))
        rows = torch.randperm(len(stage.images), generator=generator)[: config.batch_real]
        network = self.networks[index]
        images, labels = images.clone().requires_grad_(), labels.clone().requires_grad_()
        x = torch.cat([*(subset.images for subset in stage.frozen.subsets), images])
        y = torch.cat([*(subset.labels for subset in stage.frozen.subsets), labels])
        support, targets = (torch.cat([x, x.flip(3)]), torch.cat([y, y])) if config.flip else (x, y)
        phi, phi_real = convnet_features(network, support), convnet_features(network, stage.images[rows])
        kernel = phi @ phi.T
        ridged = kernel + config.ridge * kernel.trace() / len(kernel) * torch.eye(len(kernel))
        prediction = phi_real @ phi.T @ torch.linalg.inv(ridged) @ targets
        wanted = torch.full((config.batch_real, CLASSES), -1 / CLASSES)
        wanted[range(config.batch_real), stage.labels[rows]] += 1
        ordered = labels.sort(dim=1, descending=True).values
        margin = torch.minimum(ordered[:, 0] - ordered[:, 1], torch.tensor(1 / CLASSES))
        loss = 0.5 * ((prediction - wanted) ** 2).sum() / config.batch_real - margin.mean()
        gradients = torch.autograd.grad(loss, (images, labels))
        if self.updates[index] > config.max_online_updates:
            self.starts[index] += 1
            self.updates[index] = 0
            self.renew(index)
        else:
            batch = torch.randperm(len(x), generator=generator)[: config.batch_syn]
            self.optimizers[index].zero_grad()
            (0.5 * ((network(x[batch].detach()) - y[batch].detach()) ** 2).sum() / len(batch)).backward()
            self.optimizers[index].step()
            self.updates[index] += 1
        moved = [
            self.lamb(name, value.detach(), gradient, iteration)
            for name, value, gradient in zip(("images", "labels"), (images, labels), gradients, strict=True)
        ]
        return loss.item(), moved[0], moved[1] if config.learn_labels else labels.detach()


@pytest.mark.parametrize(
    ("later", "changes"), [(False, {}), (True, {}), (False, {"flip": False, "learn_labels": False})], ids=str
)
def test_krr_is_its_literal_transcription(tmp_path, float64, later, changes):
    config = replace(KRR_CONFIG, **changes)
    method = KRR(config)
    recipe = replace(RECIPE, epochs=5, optimizer="adam", loss="mse", schedule="cosine", weight_decay=0.0)
    stage = make_later_stage(tmp_path, method) if later else make_double_stage(tmp_path)
    stage = replace(stage, recipe=recipe)
    trainable = method.initialise(stage)
    prepared = method.prepare(stage)
    literal = LiteralKRR(stage, config)
    images, labels = trainable.images.detach().clone(), trainable.labels.detach().clone()
    for iteration in range(8):
        loss, images, labels = literal.step(images, labels, iteration)
        advance(method, prepared, trainable, stage)
        assert trainable.losses[-1] == pytest.approx(loss, rel=1e-8)
        torch.testing.assert_close(trainable.images.detach(), images, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(trainable.labels.detach(), labels, rtol=1e-8, atol=1e-8)
    assert sum(literal.starts) > 0  # a network of the pool was replaced on the way
    assert prepared.starts.tolist() == literal.starts


def test_krr_starts_with_centred_labels(tmp_path):
    trainable = METHODS["krr"].initialise(make_stage(tmp_path))
    scale = (10 / CLASSES) ** 0.5
    assert trainable.labels[0].tolist() == pytest.approx([scale * 2 / 3, -scale / 3, -scale / 3])
    assert trainable.labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]


def test_regression_on_the_support_itself_returns_its_targets(generator):
    support = torch.randn(6, 20, generator=generator)
    targets = torch.randn(6, 3, generator=generator)
    torch.testing.assert_close(regress(support, support, targets, 1e-9), targets, atol=1e-4, rtol=1e-4)


def test_regression_is_exact_where_there_are_more_images_than_features(generator):
    """Compared with ridge regression on the 32 features, which needs no kernel; features lie far from zero, as after ReLU."""
    support, queries = (10 + torch.randn(count, 32, generator=generator) for count in (200, 50))
    targets, ridge = torch.randn(200, 3, generator=generator), 1e-6
    wide = support.double()
    penalty = ridge * wide.square().sum() / len(wide) * torch.eye(32, dtype=torch.float64)
    weights = torch.linalg.solve(wide.T @ wide + penalty, wide.T @ targets.double())
    predicted = regress(queries, support, targets, ridge)
    assert predicted.dtype == queries.dtype
    torch.testing.assert_close(predicted.double(), queries.double() @ weights, atol=1e-5, rtol=1e-4)


def test_the_label_margin_stops_growing_at_one_class_share():
    labels = torch.tensor([[0.9, 0.0, 0.0], [0.2, 0.1, 0.0]], requires_grad=True)
    loss = margin_loss(labels)
    assert loss.item() == pytest.approx(-(1 / 3 + 0.1) / 2)
    loss.backward()
    assert labels.grad.tolist() == [[0.0, 0.0, 0.0], [-0.5, 0.5, 0.0]]


def test_lamb_moves_by_its_rate_times_the_norm(generator):
    value = torch.randn(4, 5, generator=generator, requires_grad=True)
    before = value.detach().clone()
    optimizer = Lamb([value], lr=0.01)
    value.grad = torch.randn(4, 5, generator=generator)
    optimizer.step()
    assert (value.detach() - before).norm() == pytest.approx(0.01 * before.norm().item(), rel=1e-4)
    assert ((value.detach() - before) * value.grad <= 0).all()


# --- what every method owes to the strategy


def distil(folder, name, stage=None, ipcs=(2, 1), **scoring):
    stage = stage or make_stage(folder)
    return distill_stages(METHODS[name], stage, ipcs, ((0, 4), (0, 3))[: len(ipcs)], checkpoints(folder), **scoring)


@pytest.mark.parametrize(("name", "starts"), [("idc", 2), ("dm", 5), ("krr", 3), ("mtt", 2)])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, name, starts):
    """Stopped after every iteration, every epoch of a teacher, and every epoch of the networks that S_2 `starts` from."""
    scoring = {"score": lambda sequence: [1.0], "num_selections": 4}  # the first one that is scored is selected
    whole = distil(tmp_path / "whole", name, **scoring)
    stage = replace(make_stage(tmp_path / "parts"), budget=Impatient())
    parts, stops = finish_in_parts(lambda: distil(tmp_path / "parts", name, stage, **scoring))
    teacher_epochs = TEACHERS.num_teachers * (TEACHERS.epochs + TEACHERS.later_epochs)
    expected = sum(METHODS[name].num_iterations(k) for k in (1, 2))
    assert stops == expected + starts * RECIPE.epochs + (teacher_epochs if METHODS[name].uses_teachers else 0)
    for a, b in zip(whole, parts, strict=True):
        one, other = ([SubsetSequence((subset,)).sha256() for subset in (stage.selected, stage.last)] for stage in (a, b))
        assert one == other
        assert a.trainable.losses == b.trainable.losses


def test_a_resumed_pool_is_not_trained_through_the_earlier_subsets_again(tmp_path, monkeypatch):
    sizes, stage, start_networks = [], replace(make_stage(tmp_path), budget=Impatient()), Stage.start_networks

    def counted(self, *arguments):
        networks = start_networks(self, *arguments)
        sizes.append(len(networks))  # not where it is stopped
        return networks

    monkeypatch.setattr(Stage, "start_networks", counted)
    finish_in_parts(lambda: distil(tmp_path, "krr", stage))
    assert sizes.count(KRR_CONFIG.num_networks) == 2  # once a stage; each other call replaces a network that is worn out
    assert sizes.count(1) == len(sizes) - 2 > 0


def test_efforts_by_hand():
    """Two stages of 6 and 3 stored images in three classes; forward passes of one image."""
    dm = METHODS["dm"].effort([6, 3], CLASSES)
    assert dm.passes == 5 * (3 * 9 + 3 * 6) + 5 * (3 * 9 + 3 * 9)
    assert dm.starts == (5 / 2, 5 / 3)
    first = 3 * (3 * 7 + 9 * 6) + 3 * 20  # real images, at most 6 of 8 tiles, training on real images
    second = 3 * (3 * 7 + 9 * (6 + 4)) + 3 * 20
    idc = METHODS["idc"].effort([6, 3], CLASSES)
    assert idc.passes == 5 * (first + second)
    assert idc.starts == (5 / 2 / 2, 5 / 2 / 2)
    krr = METHODS["krr"].effort([6, 3], CLASSES)
    assert krr.passes == 8 * (30 + 3 * 6 * 2 + 3 * 5) + 8 * (30 + 3 * 9 * 2 + 3 * 5)
    mtt = METHODS["mtt"].effort([6, 3], CLASSES)
    assert mtt.passes == 4 * 2 * (6 + 3) * 12


# --- long gradients of MTT


def test_one_factor_shortens_all_gradients_of_an_iteration_that_are_too_long(tmp_path):
    stage = make_stage(tmp_path)

    def gradients(max_grad_norm):
        method = MTT(replace(MTT_CONFIG, max_grad_norm=max_grad_norm))
        trainable = method.initialise(stage)
        loss = method.step(method.prepare(stage), trainable, stage.frozen, make_generator(0))
        return loss, [leaf.grad for leaf in (trainable.images, trainable.labels, trainable.lr)]

    loss, as_they_are = gradients(0.0)
    norm = as_they_are[0].norm().item()
    for max_grad_norm, factor in ((norm / 4, 0.25), (norm * 4, 1.0)):
        same_loss, limited = gradients(max_grad_norm)
        assert same_loss == loss
        for gradient, before in zip(limited, as_they_are, strict=True):
            torch.testing.assert_close(gradient, factor * before, rtol=1e-5 if factor < 1 else 0, atol=0)


# --- soft labels of MTT


def test_soft_labels_begin_with_a_teachers_logits_and_are_learned(tmp_path):
    method, stage = METHODS["mtt"], make_stage(tmp_path)
    trainable = method.initialise(stage)
    network = stage.make_network(0, "any")
    torch.nn.utils.vector_to_parameters(record_stage_teachers(stage).segment(0, 0, 4)[1], network.parameters())
    torch.testing.assert_close(trainable.labels, network(trainable.images))
    (progress,) = distil(tmp_path, "mtt", stage, ipcs=(2,))
    labels = progress.last.labels
    torch.testing.assert_close(labels.sum(1), torch.ones(6))
    assert not torch.allclose(labels, trainable.targets().detach(), atol=1e-4)
    early = MTT(replace(MTT_CONFIG, label_epoch=1)).initialise(stage)
    assert not torch.allclose(early.labels, trainable.labels)
    with pytest.raises(ConfigError, match="mtt.label_epoch 9 exceeds the 4 epochs recorded in stage 1"):
        MTT(replace(MTT_CONFIG, label_epoch=9)).initialise(stage)


@pytest.mark.parametrize("engine", ["higher", "compiled"])
def test_the_gradient_of_soft_labels_equals_finite_differences(tmp_path, float64, uncompiled, engine):
    stage = make_double_stage(tmp_path)
    method = MTT(replace(MTT_CONFIG, engine=engine))
    prepared = method.prepare(stage)

    def loss_of(labels):
        trainable = method.initialise(stage)
        with torch.no_grad():
            trainable.lr.data = trainable.lr.data.double()
            trainable.labels.copy_(labels)
        loss = method.step(prepared, trainable, SubsetSequence(), make_generator(0, "step"))
        return loss.item(), trainable.labels.grad

    start = method.initialise(stage).labels.detach()
    _, gradient = loss_of(start)
    for row, column in ((0, 0), (3, 1), (5, 2)):
        sides = []
        for shift in (1e-6, -1e-6):
            moved = start.clone()
            moved[row, column] += shift
            sides.append(loss_of(moved)[0])
        assert gradient[row, column].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-8)


# --- settings


@pytest.mark.parametrize("name", ["mtt", "idc", "krr"])
def test_the_precision_that_is_asked_for_is_the_one_that_is_used(tmp_path, monkeypatch, uncompiled, name):
    monkeypatch.setattr(step_functions, "_CACHE", {})
    method, stage = METHODS[name], make_stage(tmp_path)
    method = type(method)(replace(method.config, engine="compiled", precision="bfloat16"))
    method.step(method.prepare(stage), method.initialise(stage), stage.frozen, make_generator(0))
    assert {precision for _, precision, *_ in step_functions._CACHE} == {"bfloat16"}


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (IDCConfig, {"iterations": ()}, r"idc.iterations \[\] must hold numbers of at least 1"),
        (IDCConfig, {"inner_loop": (0,)}, r"idc.inner_loop \[0\]"),
        (IDCConfig, {"metric": "l2"}, "idc.metric 'l2' is unknown; use one of mse, l1, cosine"),
        (IDCConfig, {"start": "noise"}, "idc.start 'noise'"),
        (IDCConfig, {"factor": 0}, "factor 0 must be at least 1"),
        (IDCConfig, {"cutmix": 2.0}, "idc.cutmix 2.0"),
        (IDCConfig, {"match_augment": "colour"}, "augmentation 'colour'"),
        (IDCConfig, {"engine": "higher"}, "engine 'higher' is unknown; use one of eager, compiled"),
        (DMConfig, {"later_fix_iter": 0}, "dm.later_fix_iter 0"),
        (DMConfig, {"momentum_img": 1.0}, "dm.momentum_img 1.0"),
        (BaseConfig, {"syn_lr": float("nan")}, "syn_lr nan must be positive"),
        (BaseConfig, {"momentum_img": -0.1}, r"momentum_img -0.1 must lie in \[0, 1\)"),
        (KRRConfig, {"num_networks": 0}, "krr.num_networks 0"),
        (KRRConfig, {"ridge": 0.0}, "krr.ridge 0.0 must be positive"),
        (MTTConfig, {"iterations": 0}, "mtt.iterations 0 must be at least 1"),
        (MTTConfig, {"lr_img": 0.0}, "mtt.lr_img 0.0 must be positive"),
        (MTTConfig, {"syn_steps": -1}, "mtt.syn_steps -1"),
        (MTTConfig, {"batch_syn": -1}, "mtt.batch_syn -1 must not be negative"),
        (MTTConfig, {"engine": "jit"}, "engine 'jit' is unknown; use one of higher, compiled"),
        (MTTConfig, {"augment": "color_blur"}, "blur"),
        (MTTConfig, {"lr_label": -1.0}, "mtt.lr_label -1.0 must not be negative"),
        (MTTConfig, {"label_epoch": -2}, "mtt.label_epoch -2"),
        (MTTConfig, {"max_grad_norm": -0.1}, "mtt.max_grad_norm -0.1 must not be negative; 0 is no bound"),
    ],
)
def test_settings_out_of_range_are_named(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


def test_the_last_number_of_iterations_is_for_all_later_stages():
    method = IDC(replace(IDC_CONFIG, iterations=(5, 6)))
    assert [method.num_iterations(index) for index in (1, 2, 3)] == [5, 6, 6]


def test_what_does_not_go_together_is_named(tmp_path):
    stage = make_stage(tmp_path)
    whitened = replace(stage, preprocessing=Whitening(torch.randint(256, (20, 3, 4, 4), dtype=torch.uint8)))
    with pytest.raises(ConfigError, match="idc keeps pixels within .* ZCA .* set zca=false"):
        METHODS["idc"].prepare(whitened)
    with pytest.raises(ConfigError, match="training.loss 'cross_entropy' does not fit the labels of krr"):
        METHODS["krr"].check((1,), (), TeacherConfig(), TrainingRecipe())
    assert get_method("idc") is IDC


def attention(features):
    """PyTorch's own, over pixels; its gradient has no derivative."""
    rows = features.flatten(2).transpose(1, 2)[:, None].contiguous()  # (images, heads, pixels, channels)
    return F.scaled_dot_product_attention(rows, rows, rows)


class Applied(torch.nn.Module):
    """A function of features, as a module."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


REFUSED = {  # operations whose second derivatives PyTorch lacks, or has wrong in forward mode
    "attention": (attention, "which PyTorch cannot .*; write that operation out"),
    "glu": (lambda x: F.glu(torch.cat([x, x], 1), 1), "which PyTorch cannot .*glu_jvp"),
    "layer norm": (lambda x: F.layer_norm(x, x.shape[1:]), r"forward mode does that wrong \(relative error .*; use norms of"),
    "instance norm": (F.instance_norm, r"forward mode does that wrong \(relative error .*; use norms of"),
    "batch norm": (lambda x: F.batch_norm(x, None, None, training=True), "forward mode does that wrong"),
}


def stage_with(operation, folder, monkeypatch):
    """Returns a stage whose networks have one of these operations after a convolution."""

    def make(config, image_shape, num_classes):
        features = torch.nn.Conv2d(image_shape[0], 4, 3, padding=1), Applied(REFUSED[operation][0]), torch.nn.Flatten()
        return torch.nn.Sequential(*features, torch.nn.Linear(4 * image_shape[1] * image_shape[2], num_classes))

    monkeypatch.setitem(NETWORKS, "own", make)
    return replace(make_stage(folder), network=NetworkConfig("own"))


@pytest.mark.parametrize("operation", REFUSED)
@pytest.mark.parametrize("name", ["mtt", "idc", "dm", "krr"])
def test_networks_without_right_second_derivatives_are_refused_before_teachers(name, operation, tmp_path, monkeypatch):
    stage = stage_with(operation, tmp_path, monkeypatch)
    method = MTT(replace(METHODS["mtt"].config, engine="compiled")) if name == "mtt" else METHODS[name]
    arguments = method, stage, (1,), ((0, 4) if name == "mtt" else None,), checkpoints(tmp_path)
    if name in ("dm", "krr"):
        assert all(progress.last.images.isfinite().all() for progress in distill_stages(*arguments))
        return
    with pytest.raises(ConfigError, match=f"{name} differentiates network 'own' twice, .*{REFUSED[operation][1]}"):
        distill_stages(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("operation", "refused"), [("attention", True), ("glu", False), ("layer norm", False)])
def test_engine_higher_needs_no_forward_mode(operation, refused, tmp_path, monkeypatch):
    stage = stage_with(operation, tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match="which PyTorch cannot") if refused else nullcontext():
        distill_stages(METHODS["mtt"], stage, (1,), ((0, 4),), checkpoints(tmp_path))


@pytest.mark.parametrize("intervals", [(None,), (None, None)])
@pytest.mark.parametrize(
    ("name", "engine", "obstacle"),
    [
        ("mtt", "eager", "files of teachers do not hold; take one without, as with network.norm=instance"),
        ("idc", "eager", "idc does not train; take one without, as with network.norm=instance"),
        ("krr", "eager", "krr does not train; take one without, as with network.norm=instance"),
        ("dm", "compiled", "'compiled' does not train; set training.engine=eager and training.precision=float32, or take"),
        ("dm", "eager", None),
    ],
)
def test_running_statistics_are_refused_before_anything_is_trained(name, engine, obstacle, intervals, tmp_path, monkeypatch):
    stage, trained = make_stage(tmp_path), []
    stage = replace(stage, network=replace(NETWORK, norm="batch"), recipe=replace(stage.recipe, engine=engine))
    for trainer in (LoopTrainer, StackedTrainer):
        monkeypatch.setattr(trainer, "epoch", note_calls(trainer.epoch, trained))
    intervals = ((0, 4), (0, 3))[: len(intervals)] if name == "mtt" else intervals
    arguments = METHODS[name], stage, (1,) * len(intervals), intervals, checkpoints(tmp_path)
    if obstacle is None:
        assert all(progress.last.images.isfinite().all() for progress in distill_stages(*arguments))
        return
    with pytest.raises(ConfigError, match=f"network 'convnet' with norm 'batch' has running statistics, which .*{obstacle}"):
        distill_stages(*arguments)
    assert not trained
    assert not list(tmp_path.iterdir())

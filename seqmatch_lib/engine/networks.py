"""The networks of the field: ConvNet, the cross-architecture set (AlexNet, VGG-11, ResNet-18) and a small ViT.

Source: the variants of the public MTT code (`networks.py`) for 32x32 images: no biases and no pooling in the stem of ResNet,
one linear layer as head, instance norm. `resnet18_ap` replaces each strided convolution by a convolution and an average
pooling. Other image sizes work too: the size of the head follows from that of the images.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from seqmatch_lib.errors import ConfigError, NotRegisteredError, SeqMatchError, first_line, require

NORMS = ("instance", "group", "layer", "batch", "none")
POOLINGS = ("avg", "max", "none")
REGISTER_NETWORK = "enter one of your own in NETWORKS first"
GROUPS = 4  # of norm "group", as in the public code
_DRAWN = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)  # whose parameters `draw_parameters` fills
_DRAWN_NAMES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@dataclass(frozen=True)
class NetworkConfig:
    """An architecture, independent of the data set.

    Args:
        name: one of `NETWORKS`.
        width: channels of every block of "convnet" and "fcn"; other networks have their published widths.
        depth: blocks of "convnet" and "fcn"; other networks have their published depths.
        norm: one of `NORMS`; "batch" is for evaluation and for dm only, because trajectories hold no running statistics.
        pooling: one of `POOLINGS`, 2x2 after each block of "convnet".
    """

    name: str = "convnet"
    width: int = 128
    depth: int = 3
    norm: str = "instance"
    pooling: str = "avg"

    def __post_init__(self) -> None:
        problem = f"network name {self.name!r} is unknown; use one of {', '.join(NETWORKS)}"
        require(self.name in NETWORKS, f"{problem}; {REGISTER_NETWORK}", NotRegisteredError)
        require(self.norm in NORMS, f"network norm {self.norm!r} is unknown; use one of {', '.join(NORMS)}")
        require(self.pooling in POOLINGS, f"network pooling {self.pooling!r} is unknown; use one of {', '.join(POOLINGS)}")
        require(self.width >= 1, f"network width {self.width} must be at least 1")
        require(self.width % GROUPS == 0 or self.norm != "group", f"network width {self.width} must be a multiple of {GROUPS}")
        require(self.depth >= 1, f"network depth {self.depth} must be at least 1")


def make_network(
    config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int, generator: torch.Generator
) -> nn.Sequential:
    """Builds a network with freshly drawn parameters.

    Args:
        config: the architecture.
        image_shape: (C, H, W) of the input.
        num_classes: number of logits.
        generator: a CPU generator, the only source of randomness; torch's global generator is not used.

    Returns:
        A module on the CPU that maps (batch, C, H, W) to (batch, num_classes), or for "fcn" to (batch, num_classes, H, W).
        The last layer is the linear classifier, so `network[:-1]` maps to the features.

    Raises:
        ConfigError: the images are too small for the number of poolings.
    """
    network = _lay_out(config, image_shape, num_classes).to_empty(device="cpu")
    draw_parameters(network, generator)
    # networks of equal architecture share compiled code
    network.architecture = (NETWORKS[config.name], config, image_shape, num_classes)
    return network


def check_networks(
    configs: Iterable[NetworkConfig], image_shape: tuple[int, int, int], num_classes: int, of_pixels: bool = False
) -> None:
    """Raises ConfigError for any that `make_network` refuses, or that does not map images to logits: before one is trained.

    `of_pixels`: whether labels, and so logits, are of the pixels of an image instead of the image.
    """
    expected = (2, num_classes, *image_shape[1:]) if of_pixels else (2, num_classes)
    what, example = ("pixels", "fcn") if of_pixels else ("images", "convnet")
    remedy = f"name one that does in network.name or evaluation.networks, such as {example}"
    for config in configs:
        network = _lay_out(config, image_shape, num_classes)
        others = [f"{name}: {value.dtype}" for name, value in network.named_parameters() if value.dtype != torch.float32]
        problem = f"has parameters of another dtype than the images, torch.float32 ({', '.join(others)})"
        require(not others, f"network {config.name!r} {problem}; make them float32, as network.float() does")
        draws = OperationLog(lambda operation: torch.Tag.nondeterministic_seeded in operation.tags)
        try:
            with draws:
                shape = tuple(network(torch.empty(2, *image_shape, device="meta")).shape)
        except SeqMatchError:
            raise
        except Exception as error:  # whatever a network of one's own does
            problem = f"fails on images of shape {image_shape} on torch's meta device, without values: {first_line(error)}"
            raise ConfigError(f"network {config.name!r} {problem}; make it return logits for them") from error
        fixed = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
        problem = f"has parameters that take no gradient ({', '.join(fixed)}), and all are trained here"
        require(not fixed, f"network {config.name!r} {problem}; leave their requires_grad on")
        problem = f"maps 2 images to {shape}, not to {expected} logits, as labels of {what} need"
        require(shape == expected, f"network {config.name!r} {problem}; {remedy}")
        found = ", ".join(str(operation) for operation, _ in draws.found)
        problem = f"draws random numbers ({found}) that no seed decides, so equal runs would differ"
        require(not draws.found, f"network {config.name!r} {problem}; leave out dropout and the like")


class OperationLog(TorchDispatchMode):
    """Notes the operations of torch that are `wanted`, with their arguments, while they are computed."""

    def __init__(self, wanted: Callable[[Any], bool]) -> None:
        super().__init__()
        self.wanted = wanted
        self.found: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: tuple = (), named: dict | None = None) -> Any:
        if self.wanted(operation):
            self.found.append((operation, arguments))
        return operation(*arguments, **named or {})


def has_running_statistics(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> bool:
    """Whether networks of this architecture hold more than their parameters: the statistics of norm "batch"."""
    return next(_lay_out(config, image_shape, num_classes).buffers(), None) is not None


def _lay_out(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Returns a network without parameter values; raises ConfigError for parameters that nothing would initialise."""
    with torch.device("meta"):
        network = NETWORKS[config.name](config, image_shape, num_classes)
    kind = type(network).__name__
    require(isinstance(network, nn.Sequential), f"network {config.name!r} is a {kind}; return nn.Sequential(features, head)")
    for name, module in network.named_modules():
        own = {key for key, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
        problem = f"nothing initialises {', '.join(sorted(own))} of its module {name} ({type(module).__name__})"
        drawn = hasattr(module, "draw") or own <= (_DRAWN_NAMES if isinstance(module, _DRAWN) else set())
        require(drawn, f"network {config.name!r}: {problem}; give the module a method draw(generator) that fills them")
    return network


@torch.no_grad()
def draw_parameters(network: nn.Module, generator: torch.Generator) -> None:
    """Draws a network's parameters in place from PyTorch's default distributions.

    Weights and biases of convolutions and linear layers are uniform within ±1 / sqrt(fan in). Weights of norms are one, their
    biases zero. A module with a method `draw` fills its own. `make_network` refuses parameters that nothing fills.
    """
    for module in network.modules():
        if hasattr(module, "draw"):
            module.draw(generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters(recurse=False):
                parameter.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d):
            module.reset_parameters()


def count_parameters(network: nn.Module) -> int:
    """Returns the number of trainable parameters, P."""
    return sum(parameter.numel() for parameter in network.parameters())


def flatten_parameters(network: nn.Module) -> torch.Tensor:
    """Returns a copy of all parameters as one detached (P,) vector, in the order of `network.parameters()`."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])


@torch.no_grad()
def load_parameters(network: nn.Module, flat: torch.Tensor) -> None:
    """Copies a (P,) vector into the network's parameters, in the order of `network.parameters()`."""
    sizes = [parameter.numel() for parameter in network.parameters()]
    for parameter, values in zip(network.parameters(), flat.split(sizes), strict=True):
        parameter.copy_(values.view_as(parameter))


class InstanceNorm(nn.GroupNorm):
    """Group norm with one channel in each group, as in the public code: affine, no running statistics.

    A compiler cannot fuse torch's group norm with its neighbours. For the compiler the norm is therefore written out in
    operations that can be fused: sums, and one multiply-add for each pixel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, H, W) to the same shape and dtype; statistics of bfloat16 images are computed in float32."""
        if not torch.compiler.is_compiling():
            # `super().forward` does the same, but rejects a single image of one pixel, for which the result is the bias
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        full = x.float() if x.dtype == torch.bfloat16 else x
        # Mean and variance come from two sums, computed in one pass. Subtracting the mean first keeps the sums accurate where
        # the mean is large and the variance small. This shift does not change the result, so it needs no gradient.
        full = full - full.mean((2, 3), keepdim=True).detach()
        mean = full.mean((2, 3), keepdim=True)
        variance = full.square().mean((2, 3), keepdim=True) - mean.square()
        scale = self.weight.view(-1, 1, 1) * torch.rsqrt(variance + self.eps)
        return (full * scale + (self.bias.view(-1, 1, 1) - mean * scale)).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm, written out in single operations.

    Torch's own layer norm cannot be differentiated twice here: the derivative of its forward mode takes mean and variance for
    constants.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (…, `*normalized_shape`) to the same shape and dtype; statistics of bfloat16 values are computed in float32."""
        full = x.float() if x.dtype == torch.bfloat16 else x
        dims = tuple(range(-len(self.normalized_shape), 0))
        centred = full - full.mean(dims, keepdim=True)
        scaled = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + self.eps)
        return (scaled * self.weight + self.bias).to(x.dtype)


class NormalisedConv(nn.Conv2d):
    """A convolution before an `InstanceNorm`, which subtracts the convolution's bias again.

    Compiled code therefore leaves out the bias, and saves the pass over all pixels for its gradient, which is zero.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, H, W) to (B, out_channels, H', W')."""
        if not torch.compiler.is_compiling():
            return super().forward(x)
        return F.conv2d(x, self.weight, None, self.stride, self.padding)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm with an error that names the remedy for batches that it cannot normalise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, H, W) to the same shape."""
        problem = "norm 'batch' cannot normalise a batch of one image that the poolings have reduced to one pixel"
        remedy = "use norm 'instance', or a batch size that leaves more than one image for the last batch"
        require(not self.training or x.numel() > x.shape[1], f"{problem}; {remedy}")
        return super().forward(x)


def _block(norm: str | None, channels: int, width: int, kernel: int, padding: int, size: tuple[int, int]) -> list[nn.Module]:
    """A convolution with an output of `size`, its norm unless that is None, and ReLU."""
    convolution = NormalisedConv if norm == "instance" else nn.Conv2d
    norms = [] if norm is None else [_norm(norm, width, size)]
    return [convolution(channels, width, kernel, padding=padding), *norms, nn.ReLU()]


def _norm(kind: str, channels: int, size: tuple[int, int]) -> nn.Module:
    if kind == "instance":
        return InstanceNorm(channels)
    if kind == "group":
        return nn.GroupNorm(GROUPS, channels)
    if kind == "layer":
        return LayerNorm((channels, *size))
    return BatchNorm(channels) if kind == "batch" else nn.Identity()


def _first_layer(image_shape: tuple[int, int, int], kernel: int) -> tuple[int, tuple[int, int]]:
    """Padding and output size of the first convolution, which pads 28x28 images to 32x32, as in the public code."""
    return (kernel // 2 + 2, (32, 32)) if image_shape[1:] == (28, 28) else (kernel // 2, image_shape[1:])


def _halve(size: tuple[int, int], name: str, poolings: int) -> tuple[int, int]:
    """Size after a 2x2 pooling, one of the `poolings` of a network called `name`."""
    size = (size[0] // 2, size[1] // 2)
    others = "lower the network depth, use pooling 'none'" if name == "convnet" else "use 'resnet18'"
    needs = f"needs {2**poolings}x{2**poolings} pixels; {others}, or larger images"
    require(min(size) >= 1, f"the images are too small for the {poolings} poolings of {name!r}, which {needs}")
    return size


def _plain(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    blocks: list[tuple[int, int, bool]],
    norm: str | None,
    pooling: type[nn.Module] = nn.MaxPool2d,
) -> nn.Sequential:
    """Blocks of convolution, norm and ReLU, given by width, kernel size and whether a pooling follows; then a linear layer."""
    layers: list[nn.Module] = []
    channels = image_shape[0]
    first_padding, size = _first_layer(image_shape, kernel=blocks[0][1])
    poolings = sum(pools for _, _, pools in blocks)
    for width, kernel, pools in blocks:
        layers += _block(norm, channels, width, kernel, kernel // 2 if layers else first_padding, size)
        channels = width
        if pools:
            layers.append(pooling(2))
            size = _halve(size, name, poolings)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size[0] * size[1], num_classes))


def _convnet(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    blocks = [(config.width, 3, config.pooling != "none")] * config.depth
    pooling = nn.AvgPool2d if config.pooling == "avg" else nn.MaxPool2d
    return _plain("convnet", image_shape, num_classes, blocks, config.norm, pooling)


def _alexnet(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    blocks = [(128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True)]
    return _plain("alexnet", image_shape, num_classes, blocks, norm=None)


def _vgg11(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    widths = [(64, True), (128, True), (256, False), (256, True), (512, False), (512, True), (512, False), (512, True)]
    return _plain("vgg11", image_shape, num_classes, [(width, 3, pools) for width, pools in widths], config.norm)


def _fcn(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """A fully convolutional network for labels of pixels: the ConvNet without pooling, with a 1x1 convolution at the end."""
    layers: list[nn.Module] = []
    channels = image_shape[0]
    for _ in range(config.depth):
        layers += _block(config.norm, channels, config.width, 3, 1, image_shape[1:])
        channels = config.width
    return nn.Sequential(*layers, nn.Conv2d(channels, num_classes, 1))


def _shrink(size: tuple[int, int], pools: bool) -> tuple[int, int]:
    """Size after a residual block that halves: a pooling leaves out the last row of an odd number, a stride keeps it."""
    return _halve(size, "resnet18_ap", 3) if pools else ((size[0] + 1) // 2, (size[1] + 1) // 2)


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `halves` the image by average pooling if `pools`, else by a stride."""

    def __init__(self, channels: int, width: int, halves: bool, pools: bool, norm: str, size: tuple[int, int]) -> None:
        super().__init__()
        stride = 2 if halves and not pools else 1
        out = _shrink(size, pools) if halves else size
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = _norm(norm, width, size if pools else out)
        self.shrink = nn.AvgPool2d(2) if halves and pools else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, width, out)
        self.shortcut: nn.Module = nn.Identity()
        if halves or channels != width:
            conv = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, self.shrink, _norm(norm, width, out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.shrink(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


def _resnet18(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Four groups of two residual blocks; the head of "resnet18" averages over the image."""
    pools = config.name == "resnet18_ap"
    padding, size = _first_layer(image_shape, kernel=3)
    stem = nn.Conv2d(image_shape[0], 64, 3, padding=padding, bias=False)
    layers: list[nn.Module] = [stem, _norm(config.norm, 64, size), nn.ReLU()]
    channels = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            halves = block == 0 and width > 64
            layers.append(_ResidualBlock(channels, width, halves, pools, config.norm, size))
            channels, size = width, (_shrink(size, pools) if halves else size)
    if not pools:
        layers.append(nn.AdaptiveAvgPool2d(1))
        size = (1, 1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size[0] * size[1], num_classes))


class _Embedding(nn.Module):
    """A learned tensor that is added to the tokens or placed before them."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(shape))

    def draw(self, generator: torch.Generator) -> None:
        self.value.normal_(0.0, 0.02, generator=generator)


class _TransformerBlock(nn.Module):
    """Pre-norm attention and a two-layer perceptron; the attention is written out so that it can be differentiated twice."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(-1)
        x = x + self.project((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class _ViTFeatures(nn.Module):
    """The class token after a small vision transformer: at most 8 patches a side, 6 blocks of width 192 with 3 heads."""

    width, heads, blocks, patches_per_side = 192, 3, 6, 8

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        patch = math.ceil(min(height, width) / self.patches_per_side)
        problem = f"vit cuts images into {patch}x{patch} patches, but {height}x{width} is not a multiple of that"
        require(height % patch == 0 and width % patch == 0, f"{problem}; resize the images")
        self.patches = nn.Conv2d(channels, self.width, patch, stride=patch)
        self.token = _Embedding(1, 1, self.width)
        self.position = _Embedding(1, 1 + (height // patch) * (width // patch), self.width)
        self.encoder = nn.Sequential(*(_TransformerBlock(self.width, self.heads) for _ in range(self.blocks)))
        self.norm = LayerNorm(self.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.value.expand(len(x), -1, -1), tokens], dim=1) + self.position.value
        return self.norm(self.encoder(tokens))[:, 0]


def _vit(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return nn.Sequential(_ViTFeatures(image_shape), nn.Linear(_ViTFeatures.width, num_classes))


NETWORKS: dict[str, Callable[[NetworkConfig, tuple[int, int, int], int], nn.Sequential]] = {
    "convnet": _convnet,
    "alexnet": _alexnet,
    "vgg11": _vgg11,
    "resnet18": _resnet18,
    "resnet18_ap": _resnet18,
    "vit": _vit,
    "fcn": _fcn,
}

"""Differentiable Siamese augmentation (DSA): draw the parameters, then apply a pure function of images and parameters.

A strategy is a text of operations. One operation is drawn from each group joined by "_"; groups joined by "+" are applied in
turn. The public code of MTT and DM (`DiffAugment`, `aug_mode = "S"`) uses strategies such as "color_crop_flip", the public IDC
code (`DiffAug`) such as "flip+color+crop_scale+cutout".

Source: Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021; parameter ranges of
this public code.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from seqmatch_lib.errors import require

DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"
OPERATIONS = tuple(DSA_STRATEGY.split("_"))

CROP_RATIO = 0.125  # shift by up to this fraction of the side
CUTOUT_RATIO = 0.5  # side of the erased square, as a fraction of the image's side
FLIP_PROBABILITY = 0.5
SCALE_RATIO = 1.2  # zoom factors lie in [1 / 1.2, 1.2]
ROTATE_DEGREES = 15.0


@dataclass(frozen=True)
class Operation:
    """One drawn operation.

    Args:
        name: one of `OPERATIONS`.
        values: (parameters, batch) float32; `_draw_parameters` says what each row means.
    """

    name: str
    values: torch.Tensor


Augmentation = tuple[Operation, ...]  # in the order of application


def check_strategy(strategy: str) -> None:
    """Raises ConfigError unless the strategy is "none", or names of `OPERATIONS` joined by "_" and "+"."""
    unknown = set(strategy.replace("+", "_").split("_")) - set(OPERATIONS)
    remedy = f"use 'none' or any of {DSA_STRATEGY!r}, joined by '_' (one of them is drawn) or '+' (applied in turn)"
    fits = strategy == "none" or not unknown
    require(fits, f"augmentation {strategy!r} has unknown operations {sorted(unknown)}; {remedy}")


def draw_augmentation(
    strategy: str,
    batch: int,
    image_size: tuple[int, int],
    generator: torch.Generator,
    shared: bool = False,
    device: torch.device | str = "cpu",
) -> Augmentation:
    """Draws one operation of each group of the strategy, and its parameters.

    Args:
        strategy: "none", or operations as described above; those of a group are equally likely.
        batch: number of images.
        image_size: (height, width) in pixels.
        generator: a CPU generator, the only source of randomness.
        shared: whether all images of the batch get the same parameters.
        device: of the result.
    """
    check_strategy(strategy)
    if strategy == "none":
        return ()
    operations = []
    for group in strategy.split("+"):
        names = group.split("_")
        name = names[int(torch.randint(len(names), (), generator=generator))]
        u = torch.rand(3, 1 if shared else batch, generator=generator).expand(3, batch)
        values = _draw_parameters(name, u, *image_size)
        operations.append(Operation(name, values.to(device, non_blocking=True)))
    return tuple(operations)


def apply_augmentation(images: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Applies a drawn augmentation to normalised images (batch, C, H, W) of any floating dtype, differentiably.

    Geometric operations fill with zero.
    """
    for operation in augmentation:
        values = operation.values.to(images.dtype)[:, :, None, None, None]  # (parameters, batch, 1, 1, 1)
        images = _APPLY[operation.name](images, *values)
    return images


def augment_alike(batches: Sequence[torch.Tensor], strategy: str, generator: torch.Generator) -> list[torch.Tensor]:
    """Applies one draw to all images of several (B, C, H, W) batches, such as real and synthetic ones; B may differ."""
    images = torch.cat(list(batches))
    augmentation = draw_augmentation(strategy, len(images), images.shape[2:], generator, shared=True, device=images.device)
    return list(apply_augmentation(images, augmentation).split([len(batch) for batch in batches]))


def _draw_parameters(name: str, u: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Returns the (parameters, batch) parameters of an operation from (3, batch) numbers `u` that are uniform in [0, 1)."""
    if name == "color":  # brightness shift in [-0.5, 0.5), saturation factor in [0, 2), contrast factor in [0.5, 1.5)
        return torch.stack([u[0] - 0.5, 2.0 * u[1], u[2] + 0.5])
    if name == "crop":  # whole-pixel shifts down and right, each uniform in -limit ... +limit
        limits = torch.tensor([[_rounded(side * CROP_RATIO)] for side in (height, width)])
        return (u[:2] * (2 * limits + 1)).floor() - limits
    if name == "cutout":  # row and column of the square's middle, anywhere in the image: a part of the square may lie outside
        positions = torch.tensor([[side + 1 - _rounded(side * CUTOUT_RATIO) % 2] for side in (height, width)])
        return (u[:2] * positions).floor()
    if name == "flip":  # 1 for images to mirror, else 0
        return (u[:1] < FLIP_PROBABILITY).float()
    if name == "scale":  # sampling factors along x and y in [1 / 1.2, 1.2); a factor below 1 enlarges
        return u[:2] * (SCALE_RATIO - 1 / SCALE_RATIO) + 1 / SCALE_RATIO
    return (u[:1] - 0.5) * 2 * math.radians(ROTATE_DEGREES)  # angle in radians, within 15 degrees to either side


def _rounded(value: float) -> int:
    return int(value + 0.5)


def _color(x: torch.Tensor, brightness: torch.Tensor, saturation: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
    x = x + brightness
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * saturation + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * contrast + mean


def _crop(x: torch.Tensor, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    batch, _, height, width = x.shape
    pad_h, pad_w = _rounded(height * CROP_RATIO), _rounded(width * CROP_RATIO)
    padded = F.pad(x, (pad_w, pad_w, pad_h, pad_h))
    rows = torch.arange(height, device=x.device) + (down.view(batch, 1).long() + pad_h)
    columns = torch.arange(width, device=x.device) + (right.view(batch, 1).long() + pad_w)
    image = torch.arange(batch, device=x.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _cutout(x: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    inside = []
    for middle, side, shape in ((row, x.shape[2], (1, 1, -1, 1)), (column, x.shape[3], (1, 1, 1, -1))):
        size = _rounded(side * CUTOUT_RATIO)
        offset = torch.arange(side, device=x.device).view(shape) - (middle - size // 2)
        inside.append((offset >= 0) & (offset < size))
    return x * ~(inside[0] & inside[1])


def _flip(x: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    return torch.where(mirrored > 0.5, x.flip(3), x)


def _scale(x: torch.Tensor, factor_x: torch.Tensor, factor_y: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros_like(factor_x)
    return _sample(x, [factor_x, zero, zero, factor_y])


def _rotate(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    # the grid runs from -1 to 1 along each side, so its units differ where the sides do
    ratio = max(x.shape[2] - 1, 1) / max(x.shape[3] - 1, 1)
    return _sample(x, [angle.cos(), -angle.sin() * ratio, angle.sin() / ratio, angle.cos()])


def _sample(x: torch.Tensor, matrix: list[torch.Tensor]) -> torch.Tensor:
    """Bilinear sampling on the grid of a 2x2 matrix per image, zero outside the image."""
    theta = F.pad(torch.stack([entry.flatten() for entry in matrix], dim=1).view(-1, 2, 2), (0, 1))
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=True), align_corners=True)


_APPLY = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}

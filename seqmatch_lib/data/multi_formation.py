"""Multi-formation: one stored image holds several training images, as tiles that are enlarged to full size.

Source: Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization" (IDC), ICML 2022, section 4.2, and
`Synthesizer.decode` of its public code.
"""

from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F

from seqmatch_lib.errors import require

DECODINGS = ("single", "multi", "bound")


@dataclass(frozen=True)
class Formation:
    """How stored images become training images.

    Args:
        factor: tiles a side, at least 1; 1 leaves images as they are.
        decode: "single": factor² tiles an image; "multi": the tiles of all factors from 1 to `factor`; "bound": as many
            images as the bound allows by `factor`, the next by `factor - 1`, …, the rest as they are.
    """

    factor: int = 1
    decode: str = "single"

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"factor {self.factor} must be at least 1")
        require(self.decode in DECODINGS, f"decode {self.decode!r} is unknown; use one of {', '.join(DECODINGS)}")

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, bound: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the training images in stored images; differentiable.

        Args:
            images: (N, C, H, W).
            labels: (N,) or (N, classes).
            bound: most images that "bound" may return, at least N; the others ignore it.

        Returns:
            (M, C, H, W) and their labels: all first tiles, then all second ones, ….
        """
        if self.factor == 1:
            return images, labels
        factors = range(1, self.factor + 1) if self.decode == "multi" else (self.factor,)
        parts = [images] * len(factors), [labels] * len(factors)
        if self.decode == "bound":
            factors, sizes = self._share_out(len(images), bound)
            parts = images.split(sizes), labels.split(sizes)
        decoded = [enlarge_tiles(part, factor) for part, factor in zip(parts[0], factors, strict=True)]
        repeated = [torch.cat([part] * factor**2) for part, factor in zip(parts[1], factors, strict=True)]
        return torch.cat(decoded), torch.cat(repeated)

    def _share_out(self, count: int, bound: int) -> tuple[list[int], list[int]]:
        """Returns the factors that "bound" uses, and how many of `count` images each gets."""
        require(bound >= count, f"a bound of {bound} images is less than the {count} stored ones; raise batch_syn_max")
        factors, sizes = [], []
        left, room = count, bound
        for factor in range(self.factor, 0, -1):
            # every image not enlarged by this factor still needs room for itself
            size = left if factor == 1 else min((room - left) // factor**2, left)
            factors.append(factor)
            sizes.append(size)
            left, room = left - size, room - size * factor**2
            if left == 0:
                break
        return factors, sizes


AS_STORED = Formation()


def enlarge_tiles(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Cuts images into factor x factor tiles and enlarges each to the whole image's size, bilinearly.

    A side that is no multiple of `factor` is first filled up at its end: with zero, the mean colour of normalised images,
    where the public code takes mid-grey.

    Args:
        images: (N, C, H, W).
        factor: at least 1.

    Returns:
        (factor² N, C, H, W): the upper left tiles of all images, then those to the right of them, row by row.
    """
    if factor == 1:
        return images
    height, width = images.shape[2:]
    rows, columns = ceil(height / factor), ceil(width / factor)
    padded = F.pad(images, (0, factor * columns - width, 0, factor * rows - height))
    tiles = [
        padded[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] for i in range(factor) for j in range(factor)
    ]
    return F.interpolate(torch.cat(tiles), size=(height, width), mode="bilinear")


def store_tiles(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Puts factor² images, made small, into one: the start of a set that multi-formation reads ("mix" in the public code).

    Args:
        images: (N, factor², C, H, W).
        factor: at least 1.

    Returns:
        (N, C, H, W): tile t of a stored image is its image t, by nearest pixels.
    """
    height, width = images.shape[3:]
    stored = images.new_empty(len(images), *images.shape[2:])
    tops, lefts = _edges(height, factor), _edges(width, factor)
    for index in range(factor**2):
        top, bottom = tops[index // factor : index // factor + 2]
        left, right = lefts[index % factor : index % factor + 2]
        stored[:, :, top:bottom, left:right] = F.interpolate(images[:, index], size=(bottom - top, right - left))
    return stored


def _edges(side: int, parts: int) -> list[int]:
    """Returns where the parts of a side begin, and its end; the first parts are longer by one if they do not fit."""
    short, longer = divmod(side, parts)
    return [part * short + min(part, longer) for part in range(parts + 1)]

"""Multi-formation: one stored image holds several training images, as tiles that are enlarged to full size.

Source: Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization" (IDC), ICML 2022, section 4.2, and
`Synthesizer.decode` of its public code.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from seqmatch_lib.errors import require

DECODINGS = ("single", "multi")


@dataclass(frozen=True)
class Formation:
    """How stored images become training images.

    Args:
        factor: tiles per side, at least 1; 1 leaves images as they are.
        decode: "single": factor² tiles per image; "multi": the tiles of all factors from 1 to `factor`. The public code also
            has "bound", which is not implemented here.
    """

    factor: int = 1
    decode: str = "single"

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"factor {self.factor} must be at least 1")
        require(self.decode in DECODINGS, f"decode {self.decode!r} is unknown; use one of {', '.join(DECODINGS)}")

    @property
    def tiles(self) -> int:
        """Training images in a stored one."""
        return sum(factor**2 for factor in self._factors)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the training images in stored images; differentiable.

        Args:
            images: (N, C, H, W).
            labels: (N,) or (N, classes).

        Returns:
            (M, C, H, W) and their labels: all first tiles, then all second ones, ….
        """
        if self.factor == 1:
            return images, labels
        decoded = [enlarge_tiles(images, factor) for factor in self._factors]
        return torch.cat(decoded), torch.cat([labels] * self.tiles)

    @property
    def _factors(self) -> range:
        return range(1 if self.decode == "multi" else self.factor, self.factor + 1)


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
    padded = F.pad(images, (0, -width % factor, 0, -height % factor))
    return F.interpolate(torch.cat(_tiles(padded, factor)), size=(height, width), mode="bilinear")


def store_tiles(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Puts factor² images, made small, into one: the start of a set that multi-formation reads ("mix" in the public code).

    Args:
        images: (N, factor², C, H, W).
        factor: at least 1.

    Returns:
        (N, C, H, W): tile t of a stored image is its image t, by nearest pixels.
    """
    stored = images.new_empty(len(images), *images.shape[2:])
    for index, tile in enumerate(_tiles(stored, factor)):
        tile.copy_(F.interpolate(images[:, index], size=tile.shape[2:]))
    return stored


def _tiles(images: torch.Tensor, factor: int) -> list[torch.Tensor]:
    """Returns views of factor x factor tiles, row by row; the first are longer by one if a side is no multiple."""
    return [tile for row in images.tensor_split(factor, dim=2) for tile in row.tensor_split(factor, dim=3)]

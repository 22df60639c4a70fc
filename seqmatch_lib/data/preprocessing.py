"""From uint8 pixels to what networks see, and back: per-channel normalisation, or ZCA whitening."""

from dataclasses import dataclass
from typing import Any

import torch

from seqmatch_lib.errors import DataError, require

ZCA_EPSILON = 0.1  # added to the variances of the principal components, as in the public MTT code


@dataclass(frozen=True)
class Normalisation:
    """(x / 255 - mean) / std, channel by channel.

    Args:
        mean: one value a channel, of pixels in [0, 1].
        std: one positive value a channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        finite = all(abs(mean) < float("inf") for mean in self.mean)
        require(finite, f"mean {list(self.mean)} must be finite in every channel", DataError)
        if not all(0 < std < float("inf") for std in self.std):
            raise DataError(f"std {list(self.std)} must be positive in every channel; leave a channel that never changes at 1")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) pixels from 0 to 255, uint8 or float, to normalised float32 ones."""
        return (images.float() / 255 - _per_channel(self.mean)) / _per_channel(self.std)

    def inverse(self, images: torch.Tensor) -> torch.Tensor:
        """Maps normalised images back to pixels, where real ones lie in [0, 1]; nothing is clipped."""
        return images.cpu() * _per_channel(self.std) + _per_channel(self.mean)

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what black and white, 0 and 1, become: two (1, C, 1, 1) tensors."""
        mean, std = _per_channel(self.mean), _per_channel(self.std)
        return -mean / std, (1 - mean) / std

    def describe(self) -> dict[str, Any]:
        """Returns JSON values for records."""
        return {"kind": "normalisation", "mean": list(self.mean), "std": list(self.std)}


class Whitening:
    """ZCA whitening x -> (x - mean) T with T = U (S + eps)^(-1/2) U', for the covariance U S U' of the training images.

    Args:
        images: (N, C, H, W) uint8, the whole training set; N at least 2.

    Source: kornia's ZCAWhitening with eps 0.1 on pixels in [0, 1] and no other normalisation, as in the public code.
    """

    def __init__(self, images: torch.Tensor) -> None:
        from kornia.enhance import ZCAWhitening

        require(len(images) >= 2, f"ZCA whitening needs at least 2 training images, not {len(images)}", DataError)
        self._zca = ZCAWhitening(eps=ZCA_EPSILON, compute_inv=True)
        self._zca.fit(images.float() / 255)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) pixels from 0 to 255, uint8 or float, to whitened float32 ones."""
        return torch.cat([self._zca(part.float() / 255) for part in images.split(10_000)])

    def inverse(self, images: torch.Tensor) -> torch.Tensor:
        """Maps whitened images back to pixels, where real ones lie in [0, 1]; nothing is clipped."""
        return self._zca.inverse_transform(images.cpu())

    def describe(self) -> dict[str, Any]:
        """Returns JSON values for records; the matrix follows from the data's fingerprint."""
        return {"kind": "zca", "eps": ZCA_EPSILON}


Preprocessing = Normalisation | Whitening


def _per_channel(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)

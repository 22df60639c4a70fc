"""Images with their labels: one number for each image, or one for each pixel, some of which are ignored."""

from dataclasses import dataclass

import torch

IGNORED = -100  # label of pixels that count neither in a loss nor in an accuracy, as torch's cross-entropy has it


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    Args:
        images: (N, C, H, W), uint8 as read, or float32 after preprocessing.
        labels: (N,) int64, or (N, H, W) of pixels.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: torch.Tensor) -> "Split":
        """Returns the chosen rows."""
        return Split(self.images[rows], self.labels[rows])


def image_classes(labels: torch.Tensor) -> torch.Tensor:
    """Returns the class of each image.

    Args:
        labels: (N,) classes, or (N, H, W) classes of pixels, where every image shows one class beside `IGNORED`.

    Returns:
        (N,) int64.
    """
    return labels if labels.dim() == 1 else labels.flatten(1).amax(1)


def rows_by_class(labels: torch.Tensor, num_classes: int) -> list[torch.Tensor]:
    """Returns, for each class, the indices of its images."""
    classes = image_classes(labels)
    return [(classes == label).nonzero().flatten() for label in range(num_classes)]

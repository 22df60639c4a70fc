"""The pictures of a distilled set on one sheet, a PNG file.

Whitened images can be looked at only by undoing the whitening, which takes the real data set. The sheet is looked at without.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from seqmatch_lib.errors import StorageError
from seqmatch_lib.store.files import write_atomically


def write_sheet(path: Path, subsets: Sequence[torch.Tensor], num_classes: int) -> None:
    """Writes the pictures of all subsets, a row for each class; S_1 is on the left.

    Args:
        path: of the PNG file.
        subsets: of each subset, (classes * ipc, C, H, W) pixels, sorted by class; they are clipped to [0, 1].
        num_classes: number of classes.
    """
    by_class = torch.cat([pixels.unflatten(0, (num_classes, -1)) for pixels in subsets], dim=1)  # (classes, images, C, H, W)
    sheet = by_class.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (classes * H, images * W, C)
    picture = as_picture(sheet.clamp(0, 1).mul(255).round().byte().numpy())
    write_atomically(path, lambda temporary: picture.save(temporary, "PNG", optimize=True))


def as_picture(pixels: np.ndarray) -> Image.Image:
    """Returns (H, W, C) uint8 pixels as a picture, in grey if C is 1."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def read_sheet(path: Path, ipcs: Sequence[int], num_classes: int, shape: tuple[int, int, int]) -> list[torch.Tensor]:
    """Returns what `write_sheet` wrote, to the nearest of 256 brightnesses.

    Args:
        path: of the PNG file.
        ipcs: images per class of each subset.
        num_classes: number of classes.
        shape: (C, H, W) of an image.

    Raises:
        StorageError: the file is damaged, or of another set.
    """
    channels, height, width = shape
    try:
        with Image.open(path) as picture:
            sheet = torch.from_numpy(np.array(picture))
    except (OSError, SyntaxError) as error:
        raise StorageError(f"{path} is damaged; delete it: the pictures are then made from the data set") from error
    sheet = sheet if sheet.dim() == 3 else sheet.unsqueeze(2)
    size = (num_classes * height, sum(ipcs) * width, channels)
    if sheet.shape != size:
        raise StorageError(f"{path} has the size {tuple(sheet.shape)}, not {size}, so it is of another set; delete it")
    by_class = (sheet / 255).unflatten(1, (-1, width)).unflatten(0, (-1, height)).permute(0, 2, 4, 1, 3)
    return [part.flatten(0, 1) for part in by_class.split(list(ipcs), dim=1)]

"""Data that ships inside dependencies: handwritten digits, digits on a canvas with labels of pixels, names of places."""

import unicodedata
from collections import Counter

import numpy as np
import torch

from seqmatch_lib.data.labels import IGNORED
from seqmatch_lib.seeds import make_generator

CANVAS = 16  # side of the canvas, in pixels
OF_PIXELS = ("canvas_digits",)  # data sets with a label for each pixel
INK = 100  # pixels at least so bright, of 255, belong to the digit
LANGUAGES = {"de": "German", "es": "Spanish", "fi": "Finnish", "fr": "French", "hu": "Hungarian", "it": "Italian",
             "pl": "Polish", "tr": "Turkish"}  # fmt: skip
ALPHABET = "abcdefghijklmnopqrstuvwxyz '-."  # rows of a name's image; the two left over stay dark
NAME_SHAPE = (32, 16)  # letters by places


def read_digits() -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Returns scikit-learn's 1,797 handwritten digits of 8x8 pixels with 17 grey levels: images, labels, class names."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8))[:, None]
    return images, torch.from_numpy(digits.target).long(), tuple("0123456789")


def read_canvas_digits() -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Returns the digits, each somewhere on a larger dark canvas, with the class of every inked pixel.

    Returns:
        (N, 1, 16, 16) uint8 images; (N, 16, 16) int64 labels, `IGNORED` where there is no ink; class names.
    """
    digits, classes, names = read_digits()
    generator = make_generator(0, "places on the canvas")
    places = torch.randint(CANVAS - digits.shape[2] + 1, (len(digits), 2), generator=generator)
    images = torch.zeros(len(digits), 1, CANVAS, CANVAS, dtype=torch.uint8)
    for image, digit, (row, column) in zip(images, digits, places.tolist(), strict=True):
        image[:, row : row + digit.shape[1], column : column + digit.shape[2]] = digit
    labels = torch.where(images[:, 0] >= INK, classes[:, None, None], IGNORED)
    return images, labels, names


def read_place_names() -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Returns names of countries and cities in eight languages, from the CLDR data of babel, as images of their letters.

    A name that two of the languages share is left out, so that its language can be told from its spelling.

    Returns:
        (N, 1, 32, 16) uint8 images, 255 where the letter of the row stands at the place of the column; (N,) int64
        languages; their names.
    """
    names = [_names_of(code) for code in LANGUAGES]
    languages_with = Counter(name for own in names for name in own)
    pairs = [(name, label) for label, own in enumerate(names) for name in sorted(own) if languages_with[name] == 1]
    images = torch.stack([draw_name(name) for name, _ in pairs])
    return images, torch.tensor([label for _, label in pairs]), tuple(LANGUAGES.values())


def draw_name(name: str) -> torch.Tensor:
    """Returns the (1, 32, 16) uint8 image of a name's first 16 letters, without accents."""
    image = torch.zeros(1, *NAME_SHAPE, dtype=torch.uint8)
    for place, letter in enumerate(_plain(name)[: NAME_SHAPE[1]]):
        image[0, ALPHABET.index(letter), place] = 255
    return image


def read_name(image: torch.Tensor) -> str:
    """Returns the letters of an image of `draw_name`."""
    return "".join(ALPHABET[int(column.argmax())] for column in image[0].T if column.any())


def _names_of(code: str) -> set[str]:
    from babel import Locale

    locale = Locale.parse(code)
    cities = [zone["city"] for zone in locale.time_zones.values() if "city" in zone]
    return {_plain(name) for name in [*locale.territories.values(), *cities] if len(_plain(name)) >= 4}


def _plain(name: str) -> str:
    """Returns a name in lower-case letters of the alphabet."""
    folded = unicodedata.normalize("NFD", name.lower().replace("ı", "i").replace("ł", "l").replace("ß", "ss"))
    return "".join(letter for letter in folded if letter in ALPHABET)

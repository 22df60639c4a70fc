"""Random numbers: every draw has its own generator, which is seeded from the user's seed and the purpose of the draw."""

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Returns a 63-bit seed for a user's seed and a purpose, for example `"stage", 2, "iteration", 417`.

    The result does not depend on earlier draws, so a resumed run repeats the same draws without a saved generator state.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Returns a generator for one purpose; it is on the CPU, so that draws do not depend on the device."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))

"""Randomness as an explicit argument: every draw has a generator of its own, named by what it is for."""

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Maps a user's seed and a purpose to an independent 63-bit seed.

    Because the seed depends on the purpose alone (for example `"stage", 2, "iteration", 417`) and not on how
    many numbers were drawn before, a resumed run needs no saved generator state to repeat the same draws.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Returns a CPU generator for one purpose; draws are made on the CPU so that they do not depend on the device."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))

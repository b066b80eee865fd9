"""Independent random streams by name, so that nothing depends on call order or workers."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def derive(seed: int, *path: str | int) -> int:
    """Return a 64-bit seed that depends on `seed` and every part of `path`.

    The same arguments give the same seed on every machine and in every release;
    different paths give unrelated seeds (a keyed BLAKE2b hash).
    """
    text = json.dumps([seed, *path])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """Return a NumPy generator (Philox) for the stream called `path`."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *path)))

"""WeightsDigest: one digest of a whole set of tensors, computed as they stream by."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

SAMPLED_ABOVE_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_N_BLOCKS = SAMPLED_ABOVE_BYTES // _BLOCK_BYTES


class WeightsDigest:
    """Digest of names, dtypes, shapes and bytes; the order of `add` does not matter.

    A tensor of at most 64 MiB is hashed whole. Of a larger one only 64 evenly spaced blocks
    of 1 MiB are, the first and the last bytes among them, so that a change elsewhere can go
    unseen: enough to tell two merges apart, not a proof of integrity.
    """

    def __init__(self) -> None:
        """Start with no tensors."""
        self._entries: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in one tensor, of any dtype, shape and device; it is not kept.

        Raises:
            ValueError: The name was added before.
        """
        if name in self._entries:
            raise ValueError(f"tensor {name} is added to the digest twice")
        content = hashlib.blake2b(digest_size=16)
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        for start, stop in _blocks(flat.numel()):
            content.update(flat[start:stop].cpu().numpy().data)
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._entries[name] = f"{dtype}{list(tensor.shape)}:{content.hexdigest()}"

    def hexdigest(self) -> str:
        """Return the digest of everything added so far, 32 hex digits."""
        total = hashlib.blake2b(digest_size=16)
        for name in sorted(self._entries):
            total.update(f"{name}:{self._entries[name]}\n".encode())
        return total.hexdigest()


def _blocks(n_bytes: int) -> list[tuple[int, int]]:
    """Return the byte ranges to hash."""
    if n_bytes <= SAMPLED_ABOVE_BYTES:
        return [(0, n_bytes)] if n_bytes else []
    last = n_bytes - _BLOCK_BYTES
    starts = [last * block // (_N_BLOCKS - 1) for block in range(_N_BLOCKS)]
    return [(start, start + _BLOCK_BYTES) for start in starts]

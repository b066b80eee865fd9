"""WeightsDigest: one digest of a whole set of tensors, computed as they stream by."""

from __future__ import annotations

import torch
import xxhash
from torch import Tensor


class WeightsDigest:
    """Digest of names, dtypes, shapes and bytes; the order of `add` does not matter.

    XXH3-128, which runs at the speed of memory: it tells two merges apart and finds damage, but is
    no defence against someone who forges weights.
    """

    def __init__(self) -> None:
        """Start with no tensors."""
        self._entries: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in one tensor, of any dtype, shape and device; it replaces an earlier one."""
        self.add_content(name, content_of(tensor))

    def add_content(self, name: str, content: str) -> None:
        """Take in one tensor of which `content_of` is known."""
        self._entries[name] = content

    def hexdigest(self) -> str:
        """Return the digest of everything taken in so far, 32 hex digits."""
        total = xxhash.xxh3_128()
        for name in sorted(self._entries):
            total.update(f"{name}:{self._entries[name]}\n".encode())
        digest: str = total.hexdigest()
        return digest


def content_of(tensor: Tensor) -> str:
    """Return dtype, shape and digest of the bytes of a tensor, as one text."""
    content = xxhash.xxh3_128()
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if flat.numel():
        content.update(flat.cpu().numpy().data)
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype}{list(tensor.shape)}:{content.hexdigest()}"

"""Memory for large tensors of a merge to disk, apart from the heap."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

_LEAST_BYTES = 1 << 20  # a map costs page faults; smaller holes are filled by something


def empty_apart(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor, its content undefined, in a map of its own if it is large and on the CPU.

    The map goes back to the system when the tensor is dropped. On the heap small things that stay
    settle between merged tensors and passing numbers, and what is freed there does not serve
    the next tensor: a merge of a large model then holds gigabytes of holes.
    """
    n_bytes = prod(shape) * dtype.itemsize
    if device.type != "cpu" or n_bytes < _LEAST_BYTES:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    room = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(room, dtype=dtype).reshape(tuple(shape))

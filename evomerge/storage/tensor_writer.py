"""ShardedWriter: stream tensors into a folder of safetensors shards.

Written by hand rather than with safetensors.torch, which copies a shard and refuses
tensors that share storage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import torch
from torch import Tensor

from evomerge.errors import ConfigError
from evomerge.storage.model_folder import INDEX_FILE, SINGLE_FILE
from evomerge.storage.safetensors_file import MAX_TENSORS, TORCH_DTYPES, is_tensor_name

_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_PT: Mapping[str, str] = MappingProxyType({"format": "pt"})


def encode_header(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[bytes, list[str]]:
    """Return the first bytes of a safetensors file, and the order of the tensors behind them."""
    # Widest dtype first keeps every tensor aligned without padding.
    names = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, names


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a CPU tensor, a view where it is contiguous."""
    flat = tensor.reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


class ShardedWriter:
    """Writes `model.safetensors`, or shards and their index, as tensors arrive.

    At most one shard is held in memory. Files get their final names in `close`, the index
    last, so a folder that has either name is complete. As a context manager it closes on
    success and removes what it wrote on an exception.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_shard_bytes: int = 5_000_000_000,
        metadata: Mapping[str, str] = _PT,
    ) -> None:
        """Create `folder`.

        Args:
            folder: New or empty.
            max_shard_bytes: A shard exceeds this only when it is a single tensor.
            metadata: Strings for every shard's header; transformers wants format "pt".

        Raises:
            ConfigError: `folder` holds something already, or is a file.
            ValueError: `max_shard_bytes` is not positive.
        """
        if max_shard_bytes <= 0:
            raise ValueError(f"max_shard_bytes is {max_shard_bytes}, expected a positive number")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"{folder}: already exists and is not an empty folder. "
                "Choose another output folder, or delete this one."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max_shard_bytes = max_shard_bytes
        self._metadata = dict(metadata)
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[tuple[Path, list[str]]] = []
        self._names: set[str] = set()
        self._n_bytes = 0
        self._is_closed = False

    @property
    def n_bytes(self) -> int:
        """Bytes of tensor data added so far."""
        return self._n_bytes

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor; do not change it before `close`, since it is not copied.

        Raises:
            ValueError: The name is malformed or was added before, the dtype cannot be
                stored, or the writer is closed.
        """
        if self._is_closed:
            raise ValueError(f"{self._folder}: the writer is closed; {name} comes too late")
        if not is_tensor_name(name):
            raise ValueError(f"{name!r:.300} is not a tensor name")
        if name in self._names:
            raise ValueError(f"{self._folder}: tensor {name} is added twice")
        if tensor.dtype not in _DTYPE_NAMES:
            raise ValueError(f"{name}: safetensors cannot store {tensor.dtype}")
        is_full = self._pending_bytes + tensor.nbytes > self._max_shard_bytes
        if self._pending and (is_full or len(self._pending) >= MAX_TENSORS):
            self._flush()
        self._names.add(name)
        self._pending[name] = tensor.detach().cpu().contiguous()
        self._pending_bytes += tensor.nbytes
        self._n_bytes += tensor.nbytes

    def close(self) -> list[Path]:
        """Write the last shard, give all files their final names, and return their paths.

        Raises:
            ValueError: No tensor was added.
        """
        if self._is_closed:
            return []
        if not self._names:
            raise ValueError(f"{self._folder}: no tensor was added")
        if self._pending:
            self._flush()
        self._is_closed = True
        if len(self._shards) == 1:
            return [self._publish(self._shards[0][0], SINGLE_FILE)]
        paths: list[Path] = []
        weight_map: dict[str, str] = {}
        for number, (partial, names) in enumerate(self._shards, start=1):
            shard = f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"
            paths.append(self._publish(partial, shard))
            weight_map.update(dict.fromkeys(names, shard))
        index = {
            "metadata": {"total_size": self._n_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        partial = self._folder / f"{INDEX_FILE}.partial"
        with partial.open("xb") as file:
            file.write(json.dumps(index, indent=2).encode())
            file.flush()
            os.fsync(file.fileno())
        return [*paths, self._publish(partial, INDEX_FILE)]

    def discard(self) -> None:
        """Remove the unfinished shards; the folder stays."""
        self._is_closed = True
        self._pending.clear()
        for partial in self._folder.glob("*.partial"):
            partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _flush(self) -> None:
        """Write the pending tensors as one shard under a temporary name."""
        partial = self._folder / f"model-{len(self._shards) + 1:05d}.safetensors.partial"
        header, names = encode_header(self._pending, self._metadata)
        with partial.open("xb") as file:
            file.write(header)
            for name in names:
                file.write(raw_bytes(self._pending[name]))
            file.flush()
            os.fsync(file.fileno())
        self._shards.append((partial, names))
        self._pending.clear()
        self._pending_bytes = 0

    def _publish(self, partial: Path, name: str) -> Path:
        target = self._folder / name
        partial.rename(target)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return target

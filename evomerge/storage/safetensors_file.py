"""SafetensorsFile: one .safetensors file, checked strictly and then read through mmap.

The header is checked in pure Python before any library sees the file: the safetensors
package accepts header bombs, duplicate keys and arbitrary tensor names.

Layout: 8 bytes little-endian header length n, n bytes of JSON, then the data section.
"""

from __future__ import annotations

import mmap
import os
import re
import warnings
from collections.abc import Mapping
from functools import cache, cached_property
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import xxhash
from torch import Tensor

from evomerge.core.model_space import FLOAT_DTYPES, TensorSpec
from evomerge.errors import SourceError, nearest
from evomerge.storage.untrusted_files import open_regular, parse_json_object

MAX_HEADER_BYTES = 16_000_000
MAX_TENSORS = 20_000
MAX_RANK = 8
MAX_DIMENSION = 2**40

TORCH_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "U16": torch.uint16,
        "I16": torch.int16,
        "U32": torch.uint32,
        "I32": torch.int32,
        "U64": torch.uint64,
        "I64": torch.int64,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F32": torch.float32,
        "F64": torch.float64,
        "C64": torch.complex64,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E8M0": torch.float8_e8m0fnu,
    }
)
"""Safetensors dtype -> torch dtype of every dtype that can be read."""

_NAME = re.compile(r"[A-Za-z0-9._/:-]{1,256}")
_AGAIN = "Download the file again, or save the model again."
_CHUNK_BYTES = 8 << 20


def is_tensor_name(name: str) -> bool:
    """Return whether `name` is one we accept in a model file: no spaces, controls or `..`."""
    return _NAME.fullmatch(name) is not None and ".." not in name and not name.startswith("/")


class SafetensorsFile:
    """One checked .safetensors file.

    Tensors are zero-copy views of a read-only map: never write to them, and do not truncate
    the file while it is open (the operating system would kill the process).
    """

    def __init__(self, path: Path, *, shown_as: Path | None = None) -> None:
        """Open and check `path`; no tensor data is read.

        Args:
            path: A regular file; links are refused, so resolve them first.
            shown_as: The path to name in errors, when `path` is a resolved one.

        Raises:
            SourceError: The file is missing, truncated, malformed or outside the limits.
        """
        self.path = shown_as or path
        with open_regular(path, shown_as=self.path) as file:
            status = os.fstat(file.fileno())
            self.n_bytes = status.st_size
            self.mtime_ns = status.st_mtime_ns
            length = _header_length(file.read(8), self.n_bytes, self.path)
            header = file.read(length)
            if len(header) != length:
                raise SourceError(f"{self.path}: the header is cut short. {_AGAIN}")
            self._start = 8 + length
            entries = _parse_header(header, self.n_bytes - self._start, self.path)
            self._map = mmap.mmap(file.fileno(), self.n_bytes, access=mmap.ACCESS_READ)
        self._begins = {spec.name: begin for spec, begin in entries}
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {spec.name: spec for spec, _ in entries}
        )
        _spend_read_only_warning()

    def read(self, name: str) -> Tensor:
        """Return tensor `name` in its stored dtype and shape, a view of the file.

        Raises:
            SourceError: There is no such tensor, or a BOOL byte is neither 0 nor 1.
        """
        view = self._views.get(name)
        return self._whole(self._spec(name)) if view is None else view

    @cached_property
    def _views(self) -> Mapping[str, Tensor]:
        """Views of whole tensors: a search reads the same ones for every candidate.

        All are made at once. Made one by one between merged tensors, they would lie scattered over
        the heap and keep what is freed there from being used again, gigabytes in a large model.
        """
        specs = self.specs.values()
        return {
            spec.name: self._whole(spec)
            for spec in specs
            if self._is_aligned(spec) and spec.dtype != "BOOL"
        }

    def _whole(self, spec: TensorSpec) -> Tensor:
        return self.read_range(spec.name, 0, spec.n_elements).reshape(spec.shape)

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor, (stop - start,), a view.

        Raises:
            SourceError: There is no such tensor, or a BOOL byte is neither 0 nor 1.
            ValueError: The range does not lie inside the tensor.
        """
        spec = self._spec(name)
        if not 0 <= start <= stop <= spec.n_elements:
            raise ValueError(
                f"{name}: range [{start}, {stop}) is outside its {spec.n_elements} elements"
            )
        dtype = TORCH_DTYPES[spec.dtype]
        if start == stop:
            return torch.empty(0, dtype=dtype)
        offset = self._start + self._begins[name] + start * dtype.itemsize
        n_bytes = (stop - start) * dtype.itemsize
        if dtype == torch.bool:
            raw = torch.frombuffer(self._map, dtype=torch.uint8, count=n_bytes, offset=offset)
            if int(raw.max()) > 1:
                raise SourceError(
                    f"{self.path}: BOOL tensor {name} holds bytes other than 0 and 1. {_AGAIN}"
                )
        if not self._is_aligned(spec):
            # Old writers do not pad the header; kernels expect aligned tensors.
            copied = bytearray(self._map[offset : offset + n_bytes])
            return torch.frombuffer(copied, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=stop - start, offset=offset)

    def offset(self, name: str) -> int:
        """Return where in the file the first byte of tensor `name` is.

        Raises:
            SourceError: There is no such tensor.
        """
        return self._start + self._begins[self._spec(name).name]

    def digest(self, name: str) -> str:
        """Return the content digest of one tensor, reading it in chunks.

        Returns:
            32 hex digits: XXH3-128 of dtype, shape and bytes. It runs at the speed of memory and
            tells files apart; it is no proof against someone who forges weights.

        Raises:
            SourceError: There is no such tensor, or a float element is NaN or infinite.
        """
        spec = self._spec(name)
        hasher = xxhash.xxh3_128(f"{spec.dtype}{list(spec.shape)}".encode())
        step = _CHUNK_BYTES // TORCH_DTYPES[spec.dtype].itemsize
        for start in range(0, spec.n_elements, step):
            chunk = self.read_range(name, start, min(start + step, spec.n_elements))
            if spec.dtype in FLOAT_DTYPES and not _is_finite(chunk):
                bad = start + int((~torch.isfinite(chunk)).nonzero()[0])
                raise SourceError(
                    f"{self.path}: tensor {name} holds {chunk[bad - start].item()} at element "
                    f"{bad} of {spec.n_elements}. Merging would spread it; use another checkpoint."
                )
            hasher.update(chunk.view(torch.uint8).numpy().data)
        digest: str = hasher.hexdigest()
        return digest

    def _is_aligned(self, spec: TensorSpec) -> bool:
        """Return whether views of a tensor begin where its dtype demands."""
        return (self._start + self._begins[spec.name]) % TORCH_DTYPES[spec.dtype].itemsize == 0

    def _spec(self, name: str) -> TensorSpec:
        if name not in self.specs:
            raise SourceError(
                f"{self.path}: has no tensor {name!r}.{nearest(name, self.specs)} "
                "Check that all models are of one architecture."
            )
        return self.specs[name]


@cache
def _spend_read_only_warning() -> None:
    # torch warns once per process that a read-only buffer must not be written to. That is
    # our contract; spending the warning here leaves every other warning filter alone.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.frombuffer(b"\0", dtype=torch.uint8)


def _is_finite(flat: Tensor) -> bool:
    # aminmax hands NaN on and is 10-60 times as fast as isfinite().all() on a CPU.
    low, high = torch.aminmax(flat)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _header_length(prefix: bytes, n_bytes: int, path: Path) -> int:
    if len(prefix) < 8:
        raise SourceError(f"{path}: only {n_bytes} bytes, not a safetensors file. {_AGAIN}")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise SourceError(
            f"{path}: header of {length:,} bytes, at most {MAX_HEADER_BYTES:,} are accepted; "
            f"not a safetensors file, or a hostile one. {_AGAIN}"
        )
    if 8 + length > n_bytes:
        raise SourceError(
            f"{path}: header of {length} bytes in a file of {n_bytes}: the file is cut short. "
            f"{_AGAIN}"
        )
    return length


def _parse_header(header: bytes, n_data: int, path: Path) -> list[tuple[TensorSpec, int]]:
    """Return every tensor with the offset of its first byte in the data section, in order."""
    entries = parse_json_object(header, where=f"{path}: header")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise SourceError(f"{path}: header: __metadata__ must map strings to strings. {_AGAIN}")
    if len(entries) > MAX_TENSORS:
        raise SourceError(
            f"{path}: {len(entries):,} tensors, at most {MAX_TENSORS:,} are accepted per file. "
            "Save the model in more shards."
        )
    if not entries:
        raise SourceError(f"{path}: holds no tensors. {_AGAIN}")
    parsed = [_parse_entry(name, entry, path) for name, entry in entries.items()]
    parsed.sort(key=lambda item: (item[1], item[2]))
    cursor = 0
    for spec, begin, end in parsed:
        if begin != cursor:
            kind = "overlaps the tensor before it" if begin < cursor else "leaves a hole before it"
            raise SourceError(
                f"{path}: tensor {spec.name} begins at byte {begin}, expected {cursor}: "
                f"it {kind}. {_AGAIN}"
            )
        cursor = end
    if cursor != n_data:
        kind = "the file is cut short" if cursor > n_data else "there are trailing bytes"
        raise SourceError(
            f"{path}: tensors take {cursor} bytes, the data section has {n_data}: {kind}. {_AGAIN}"
        )
    return [(spec, begin) for spec, begin, _ in parsed]


def _parse_entry(name: str, entry: Any, path: Path) -> tuple[TensorSpec, int, int]:
    """Return spec, first byte and end byte of one header entry."""
    where = f"{path}: tensor {name!r:.300}"
    if not is_tensor_name(name):
        raise SourceError(
            f"{where}: a name may have 1 to 256 letters, digits and . _ / : - but no '..'. "
            "Rename it."
        )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise SourceError(f"{where}: needs exactly dtype, shape and data_offsets. {_AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in TORCH_DTYPES:
        raise SourceError(
            f"{where}: dtype {dtype!r:.40} is not supported. "
            f"Save it as one of {', '.join(TORCH_DTYPES)}."
        )
    if not _is_counts(shape) or len(shape) > MAX_RANK or any(n >= MAX_DIMENSION for n in shape):
        raise SourceError(
            f"{where}: shape {shape!r:.100} must be at most {MAX_RANK} integers below 2**40. "
            f"{_AGAIN}"
        )
    if prod(n for n in shape if n) >= 2**62:
        # An empty tensor passes the size test below, but its strides would overflow.
        raise SourceError(f"{where}: shape {shape} is too large to address. {_AGAIN}")
    if not _is_counts(offsets) or len(offsets) != 2:
        raise SourceError(f"{where}: data_offsets {offsets!r:.100} must be two integers. {_AGAIN}")
    begin, end = offsets
    expected = prod(shape) * TORCH_DTYPES[dtype].itemsize
    if end - begin != expected:
        raise SourceError(
            f"{where}: {dtype} {shape} takes {expected} bytes, data_offsets {offsets} cover "
            f"{end - begin}. {_AGAIN}"
        )
    return TensorSpec(name, dtype, tuple(shape)), begin, end


def _is_counts(value: Any) -> bool:
    # bool is an int in Python, and JSON `true` is not a dimension.
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)

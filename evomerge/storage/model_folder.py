"""ModelFolder: a Hugging Face model folder, or one .safetensors file, as a tensor source.

Satisfies `evomerge.merging.source.TensorSource`. Nothing is executed or unpickled.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from evomerge.core.model_space import FLOAT_DTYPES, SourceHeader, TensorSpec
from evomerge.errors import SourceError, nearest
from evomerge.storage.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile, is_tensor_name
from evomerge.storage.token_tensors import tied_names
from evomerge.storage.untrusted_files import contained_file, read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"

_SHARD_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_QUANTISED_KEYS = ("quantization_config", "compression_config")
_CODE_KEYS = ("auto_map", "custom_pipelines")
_KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation")
# bitsandbytes, GPTQ, AWQ and compressed-tensors companions of packed weights.
_PACKED_NAME = re.compile(
    r".*\.(?:qweight|qzeros|SCB|absmax|quant_map|quant_state\..+|nested_absmax|weight_packed"
    r"|weight_scale|weight_scale_inv|weight_zero_point|weight_format)"
)


class ModelFolder:
    """One model on disk, read lazily through memory maps.

    Attributes:
        id: Name of the source in recipes.
        path: The folder or file as it was given.
        config: Parsed config.json; {} for a bare .safetensors file.
        specs: Tensor name -> spec, over all shards.
    """

    def __init__(self, id: str, path: Path, *, trust_remote_code: bool = False) -> None:
        """Open the model and check everything but the tensors' content.

        Args:
            id: Name of the source in recipes.
            path: A folder with config.json and safetensors weights, or one .safetensors file.
            trust_remote_code: Accept a config whose `auto_map` names code of its own.

        Raises:
            SourceError: A file is missing, malformed, unsafe, quantised or pickled.
        """
        self.id = id
        self.path = path
        self._json_files: list[Path] = []
        if path.is_dir():
            self.config: dict[str, Any] = self._read_config(trust_remote_code)
            self._files = self._open_weights()
        elif path.suffix == ".safetensors" and path.exists():
            self.config = {}
            self._files = {path.name: SafetensorsFile(path.resolve(), shown_as=path)}
        elif path.suffix in _PICKLES:
            raise SourceError(_pickled(path, [path.name]))
        else:
            raise SourceError(
                f"{path}: is neither a model folder nor a .safetensors file. "
                "Check the path of this model."
            )
        self._owners = {name: file for file in self._files.values() for name in file.specs}
        self.specs: Mapping[str, TensorSpec] = {
            name: file.specs[name] for name, file in self._owners.items()
        }
        self._digests: dict[str, str] | None = None
        self._digest: str | None = None
        for spec in self.specs.values():
            _refuse_packed(spec, self._owners[spec.name].path)

    @property
    def architecture(self) -> str:
        """`architectures[0]` of config.json, "" when unknown."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""

    @property
    def digest(self) -> str:
        """Content digest: 32 hex digits over every tensor's name, dtype, shape and bytes."""
        if self._digest is None:
            self._digest = combined_digest(self.specs, self.fingerprint())
        return self._digest

    @cached_property
    def tied(self) -> dict[str, str]:
        """Name of a head that is the token embedding -> name of that embedding."""
        return tied_names(self.specs, self.config, self.architecture, self._is_same)

    def fingerprint(self) -> Mapping[str, str]:
        """Return tensor name -> 32-hex-digit content digest; reads all data, once.

        Raises:
            SourceError: A float tensor holds NaN or infinity.
        """
        if self._digests is None:
            self._digests = {name: file.digest(name) for name, file in self._owners.items()}
        return self._digests

    def restore_fingerprint(self, digests: Mapping[str, str]) -> None:
        """Accept digests that an earlier `fingerprint` of unchanged files returned.

        The caller vouches for the files by comparing `stat_signature`.

        Raises:
            SourceError: The names are not those of this model's tensors.
        """
        if set(digests) != set(self.specs):
            raise SourceError(
                f"{self.path}: the kept digests name other tensors than the files hold. "
                "Delete the kept digests and run again."
            )
        self._digests, self._digest = dict(digests), None

    def stat_signature(self) -> list[list[str | int]]:
        """Return [file name, size in bytes, mtime in nanoseconds] of every file, by name.

        Sizes and times of weights are those at opening. Equal signatures mean that hashing
        again can be skipped.
        """
        rows: list[list[str | int]] = [
            [name, file.n_bytes, file.mtime_ns] for name, file in self._files.items()
        ]
        for file_path in self._json_files:
            status = file_path.stat()
            rows.append([file_path.name, status.st_size, status.st_mtime_ns])
        return sorted(rows, key=lambda row: str(row[0]))

    def header(self) -> SourceHeader:
        """Return names, shapes, dtypes, digests and tying; hashes the files on first use.

        Raises:
            SourceError: A float tensor holds NaN or infinity.
        """
        return SourceHeader(self.id, self.architecture, self.specs, self.fingerprint(), self.tied)

    def read(self, name: str) -> Tensor:
        """Return one tensor in its stored dtype, a view; a tied name reads what it shares.

        Raises:
            SourceError: There is no such tensor.
        """
        stored = name if name in self.specs else self._stored_name(name)
        return self._owners[stored].read(stored)

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor, (stop - start,), a view.

        Raises:
            SourceError: There is no such tensor.
            ValueError: The range does not lie inside the tensor.
        """
        stored = self._stored_name(name)
        return self._owners[stored].read_range(stored, start, stop)

    def exact_delta(self, name: str) -> None:
        """Return None: a full checkpoint knows no task vector."""
        del name

    def factors(self, name: str) -> None:
        """Return None: a full checkpoint knows no low-rank product."""
        del name

    def _stored_name(self, name: str) -> str:
        if name in self.specs:
            return name
        stored = self.tied.get(name)
        if stored is None:
            raise SourceError(
                f"{self.path}: has no tensor {name!r}.{nearest(name, self.specs)} "
                "Check that all models are of one architecture."
            )
        return stored

    def _is_same(self, one: str, other: str) -> bool:
        a, b = self.specs[one], self.specs[other]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        if self._digests is not None:
            return self._digests[one] == self._digests[other]
        return self._owners[one].digest(one) == self._owners[other].digest(other)

    def _read_config(self, trust_remote_code: bool) -> dict[str, Any]:
        if not (self.path / CONFIG_FILE).exists():
            raise SourceError(
                f"{self.path}: has no {CONFIG_FILE}. Point at the folder that holds it, "
                "or at one .safetensors file."
            )
        config = read_json_object(self._json_file(CONFIG_FILE))
        _refuse_unsafe(config, self.path / CONFIG_FILE, trust_remote_code)
        return config

    def _json_file(self, name: str) -> Path:
        contained_file(self.path, name)
        self._json_files.append(self.path / name)
        return self.path / name

    def _open_weights(self) -> dict[str, SafetensorsFile]:
        if (self.path / SINGLE_FILE).exists():
            return {SINGLE_FILE: self._open(SINGLE_FILE)}
        if not (self.path / INDEX_FILE).exists():
            raise SourceError(_no_weights(self.path))
        where = self.path / INDEX_FILE
        index = read_json_object(self._json_file(INDEX_FILE), max_bytes=MAX_HEADER_BYTES)
        weight_map = _weight_map(index, where)
        files = {name: self._open(name) for name in sorted(set(weight_map.values()))}
        _check_index(weight_map, files, where)
        return files

    def _open(self, name: str) -> SafetensorsFile:
        return SafetensorsFile(contained_file(self.path, name), shown_as=self.path / name)


def combined_digest(specs: Mapping[str, TensorSpec], digests: Mapping[str, str]) -> str:
    """Return one digest of a model, 32 hex digits, from its tensors' specs and digests."""
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(digests):
        spec = specs[name]
        hasher.update(f"{name}:{spec.dtype}{list(spec.shape)}:{digests[name]}\n".encode())
    return hasher.hexdigest()


def _pickled(path: Path, names: Sequence[str]) -> str:
    return (
        f"{path}: only pickled weights ({', '.join(names[:3])}), which can run code when loaded. "
        "Convert them to safetensors: load the model with transformers where you trust it and "
        "call save_pretrained."
    )


def _no_weights(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        return _pickled(folder, pickles)
    others = [name for name in names if name.endswith(".safetensors")]
    hint = f" Found {', '.join(others[:3])}: give the path of that file." if others else ""
    return f"{folder}: has neither {SINGLE_FILE} nor {INDEX_FILE}. Check the path.{hint}"


def _weight_map(index: Mapping[str, Any], where: Path) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(
            f"{where}: weight_map must map tensor names to shards. Download the model again."
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard) or ".." in shard:
            raise SourceError(
                f"{where}: weight_map[{name!r:.100}] is {shard!r:.100}; a shard must be a "
                ".safetensors file in the same folder. Download the model again."
            )
        if not is_tensor_name(name):
            raise SourceError(
                f"{where}: weight_map names a tensor {name!r:.300}; a name may have 1 to 256 "
                "letters, digits and . _ / : - but no '..'. Rename it."
            )
    return weight_map


def _check_index(
    weight_map: Mapping[str, str], files: Mapping[str, SafetensorsFile], where: Path
) -> None:
    """Refuse shards and an index that disagree on which tensor is where."""
    remedy = "Download the model again, or save it again."
    owners: dict[str, str] = {}
    for shard, file in files.items():
        for name in file.specs:
            if name in owners:
                raise SourceError(
                    f"{where}: tensor {name} is in two shards, {owners[name]} and {shard}. {remedy}"
                )
            owners[name] = shard
    for name, shard in weight_map.items():
        if owners.get(name) != shard:
            found = f"it is in {owners[name]}" if name in owners else "no shard has it"
            raise SourceError(f"{where}: tensor {name} should be in {shard}, but {found}. {remedy}")
    for name, shard in owners.items():
        if name not in weight_map:
            raise SourceError(
                f"{where}: shard {shard} holds tensor {name}, which the index leaves out. {remedy}"
            )


def _refuse_unsafe(config: Mapping[str, Any], where: Path, trust_remote_code: bool) -> None:
    """Refuse a config, or a part of it, that is quantised or loads code."""
    pending: list[Any] = [config]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending.extend(part)
        if not isinstance(part, dict):
            continue
        pending.extend(part.values())
        for key in sorted(part.keys() & {*_QUANTISED_KEYS}):
            if part[key]:
                raise SourceError(
                    f"{where}: {key} is set: packed quantised weights cannot be merged. "
                    "Use the unquantised checkpoint, or dequantise it first."
                )
        for key in sorted(part.keys() & {*_CODE_KEYS}):
            if part[key] and not trust_remote_code:
                raise SourceError(
                    f"{where}: {key} makes transformers run code from this folder. Read that "
                    "code, then set trust_remote_code, or remove the key."
                )
        for key in _KERNEL_KEYS:
            if "/" in str(part.get(key, "")):
                raise SourceError(
                    f"{where}: {key} is {str(part[key])!r:.100}, which downloads and runs a "
                    "kernel. Remove the key."
                )


def _refuse_packed(spec: TensorSpec, where: Path) -> None:
    # An integer matrix called "weight" is codes of a quantiser; masks and ids are not.
    is_codes = spec.name.endswith(".weight") and len(spec.shape) >= 2
    is_integer = spec.dtype not in (*FLOAT_DTYPES, "C64")
    if (
        spec.dtype.startswith("F8_")
        or (is_codes and is_integer)
        or _PACKED_NAME.fullmatch(spec.name)
    ):
        raise SourceError(
            f"{where}: tensor {spec.name} ({spec.dtype}) is packed quantised data, which cannot "
            "be merged. Use the unquantised checkpoint, or dequantise it first."
        )

"""DerivedCache: results that depend only on the sources, in files that processes share.

``<root>/<kind>/<key>/<item>.safetensors``, where the key is a hash of all that the results
depend on (``key.json`` beside them says what that is) and an item is mostly one tensor's name.
An item is written under a temporary name, fsynced and renamed, so it is there whole or not at
all. ``used`` is touched when an entry is opened, and locked (shared) while a process uses it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast
from urllib.parse import quote

import torch
from torch import Tensor

from evomerge.core.recipe import canonical_json
from evomerge.errors import ConfigError, PreflightError, SourceError
from evomerge.storage.atomic import sync_folder, write_atomically
from evomerge.storage.named_path import named_path
from evomerge.storage.safetensors_file import TORCH_DTYPES, SafetensorsFile, is_tensor_name
from evomerge.storage.tensor_writer import encode_header, raw_bytes

_KIND = re.compile(r"[a-z][a-z0-9_-]{0,40}")
_CHECKSUM = "_checksum"  # a tensor of every item
_SUFFIX = ".safetensors"
_LONGEST_NAME = 180
_STALE_SECONDS = 3600.0  # a temporary file this old belongs to a process that was killed
# Above _WHOLE bytes a checksum looks at the first _PAGE bytes of every _STRIDE: enough to see the
# holes and stale blocks that a crash leaves, without reading gigabytes of codes.
_WHOLE, _PAGE, _STRIDE = 1 << 20, 1 << 12, 1 << 17
_WRITES_PER_SCAN = 64  # other processes write too, so the size is looked up now and then


def default_cache_root() -> Path:
    """Return $EVOMERGE_CACHE, else evomerge's folder in the user's cache folder."""
    given = os.environ.get("EVOMERGE_CACHE")
    if given:
        return named_path(given)
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "evomerge"


class DerivedCache:
    """A `merging.cache.TensorCache` in a folder."""

    def __init__(self, root: Path, *, budget_bytes: int | None = None) -> None:
        """Use the folder `root`, which need not exist yet.

        Args:
            root: The folder; any number of processes may use it at once.
            budget_bytes: Most bytes of all entries together, None for no limit. Before a write
                the entries that were not used for longest are removed until the rest fits, but
                none that was used through this object or that a process uses.

        Raises:
            ConfigError: The budget is not positive.
        """
        if budget_bytes is not None and budget_bytes <= 0:
            raise ConfigError(f"the cache's budget is {budget_bytes} bytes, must be positive")
        self.root = root
        self.budget_bytes = budget_bytes
        self.claimed: set[Path] = set()  # entries that were used through this object
        self._n_bytes = 0
        self._n_writes = 0

    def entry(self, kind: str, parts: Mapping[str, object]) -> FolderEntry:
        """Return the entry of `kind` that depends on `parts`; nothing is written yet.

        Raises:
            ValueError: `kind` is not a short lower-case word, or `parts` is not JSON.
        """
        if not _KIND.fullmatch(kind):
            raise ValueError(f"{kind!r:.100} is not a kind: a lower-case word is expected")
        body = canonical_json({"kind": kind, **parts})
        key = hashlib.blake2b(body.encode(), digest_size=16).hexdigest()
        return FolderEntry(self, self.root / kind / key, body)

    def free_bytes(self) -> int:
        """Return the free bytes of the disk that the folder is on, 0 where nobody can say."""
        root = self.root.absolute()
        try:
            place = next(path for path in (root, *root.parents) if path.is_dir())
            return shutil.disk_usage(place).free
        except OSError:
            return 0

    def make_room(self, entry: FolderEntry, n_new: int) -> None:
        """Remove entries until `n_new` more bytes in `entry` fit the budget.

        Raises:
            ConfigError: They cannot fit: the entry itself, or all entries in use, are too large.
        """
        if self.budget_bytes is None:
            return
        is_due = self._n_writes % _WRITES_PER_SCAN == 0
        if is_due or self._n_bytes + n_new > self.budget_bytes:
            self._n_bytes = self._evict(entry.folder, n_new)
        self._n_bytes += n_new
        self._n_writes += 1

    def fit_budget(self) -> None:
        """Remove entries until all fit the budget, also where nothing has been written.

        Raises:
            ConfigError: The entries in use do not fit.
        """
        if self.budget_bytes is not None:
            self._n_bytes = self._evict(None, 0)

    def remove(self, folder: Path) -> bool:
        """Remove an entry's folder unless a process uses it; return whether it is gone."""
        return _remove(folder)

    def _evict(self, kept: Path | None, n_new: int) -> int:
        """Remove the least recently used entries but `kept`; return the bytes that are left."""
        assert self.budget_bytes is not None
        target = self.budget_bytes - n_new
        sizes = {folder: _folder_bytes(folder) for folder in self.root.glob("*/*")}
        total = sum(sizes.values())
        for folder in sorted(sizes, key=_last_use):
            if total <= target:
                break
            if folder != kept and folder not in self.claimed and _remove(folder):
                total -= sizes.pop(folder)
        if total > target:
            own = ""
            if kept is not None:
                has = sizes.get(kept, 0)
                own = f", {kept.parent.name} alone takes {has:,} and wants {n_new:,} more"
            raise ConfigError(
                f"{self.root}: the cache needs more than its budget of {self.budget_bytes:,} "
                f"bytes: all entries in use take {total:,}{own}. Give a larger --budget, or "
                "another folder as runtime.cache."
            )
        return total


class FolderEntry:
    """One entry of a `DerivedCache`: a folder with one file per item."""

    _close_file = staticmethod(os.close)  # modules may be gone when the last entries are

    def __init__(self, cache: DerivedCache, folder: Path, key: str) -> None:
        """Args: cache: the owner; folder: of this entry; key: canonical JSON of its parts."""
        self.folder = folder
        self._cache = cache
        self._key = key
        self._lock: int | None = None

    def read(self, item: str) -> dict[str, Tensor] | None:
        """Return the tensors of `item` as views of a private map, None if absent or damaged."""
        path = self._path(item)
        if not path.is_file():
            return None
        self._claim()
        try:
            return _read_tensors(path)
        except (SourceError, OSError, RuntimeError):
            return None  # removed just now, torn or altered: it is computed and written again

    def write(self, item: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of `item`; when two processes do, the last one's file stays.

        Raises:
            ConfigError: The entry does not fit the cache's budget.
            PreflightError: The disk is full, or the folder cannot be written.
            ValueError: A tensor's name is one that safetensors files may not hold.
        """
        refused = [name for name in tensors if not is_tensor_name(name) or name == _CHECKSUM]
        if refused:
            raise ValueError(f"{item!r:.100}: {refused[0]!r:.100} cannot name a tensor of an item")
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        whole[_CHECKSUM] = torch.tensor(_checksum(whole))
        header, names = encode_header(whole, {})
        n_bytes = len(header) + sum(tensor.nbytes for tensor in whole.values())
        path = self._path(item)
        temporary = self.folder / f".{secrets.token_hex(8)}.tmp"
        try:
            self._prepare()
            self._cache.make_room(self, n_bytes)
            with temporary.open("xb") as file:
                file.write(header)
                for name in names:
                    file.write(raw_bytes(whole[name]))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(self.folder)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise PreflightError(
                f"{self.folder}: cannot write {item!r:.200}: {error.strerror or error}. Free some "
                "space, or set runtime.cache (or EVOMERGE_CACHE) to a folder that can be written."
            ) from None

    def close(self) -> None:
        """Give up the claim that protects the entry from removal; tensors that were read stay."""
        if self._lock is not None:
            self._close_file(self._lock)
            self._lock = None

    def remove(self) -> bool:
        """Remove the entry unless another one has a claim on it; return whether it is gone."""
        self.close()
        self._cache.claimed.discard(self.folder)
        return self._cache.remove(self.folder)

    def __del__(self) -> None:
        """Give up the claim with the object."""
        self.close()

    def _path(self, item: str) -> Path:
        name = quote(item, safe="", errors="surrogatepass")
        if len(name) > _LONGEST_NAME:
            digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
            name = f"{name[: _LONGEST_NAME // 2]}%-{digest}"  # `quote` never writes "%-"
        return self.folder / f"{name}{_SUFFIX}"

    def _prepare(self) -> None:
        """Create the folder and claim it; clear away what killed processes left."""
        if self._lock is not None and (self.folder / "key.json").exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim()
        if not (self.folder / "key.json").exists():
            text = json.dumps(json.loads(self._key), indent=1)
            write_atomically(self.folder / "key.json", text.encode())
        for left in self.folder.glob(".*.tmp"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                    left.unlink()

    def _claim(self) -> None:
        """Hold a shared lock on `used` and touch it; a read-only cache is used without."""
        self._cache.claimed.add(self.folder)
        if self._lock is not None:
            return
        stamp = self.folder / "used"
        with suppress(OSError):
            while True:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = os.open(stamp, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(lock, fcntl.LOCK_SH)
                if _is_at(lock, stamp):
                    self._lock = lock
                    os.utime(stamp)
                    return
                os.close(lock)  # the entry was removed between the two calls


def is_entry(folder: Path) -> bool:
    """Return whether a folder looks like an entry of a cache: `<kind>/<32 hex digits>`."""
    is_named = _KIND.fullmatch(folder.parent.name) and re.fullmatch(r"[0-9a-f]{32}", folder.name)
    return bool(is_named) and folder.is_dir() and not folder.is_symlink()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return an item's tensors; SourceError when the file is damaged."""
    file = SafetensorsFile(path)
    expected = int(file.read(_CHECKSUM))
    names = [name for name in file.specs if name != _CHECKSUM]
    if _checksum({name: file.read(name) for name in names}) != expected:
        raise SourceError(f"{path}: its checksum does not match")
    # Mapped again without a file descriptor: a model has more tensors than a process may have
    # open files. The map is private (copy on write), its pages are shared while nobody writes.
    storage = cast(
        torch.UntypedStorage, torch.UntypedStorage.from_file(str(path), False, file.n_bytes)
    )
    mapped: dict[str, Tensor] = {}
    for name in names:
        spec = file.specs[name]
        dtype = TORCH_DTYPES[spec.dtype]
        offset, extra = divmod(file.offset(name), dtype.itemsize)
        if extra:
            raise SourceError(f"{path}: {name} is not aligned")
        flat = torch.empty(0, dtype=dtype).set_(storage, offset, (spec.n_elements,), (1,))
        mapped[name] = flat.reshape(spec.shape)
    return mapped


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """Return a CRC-32 of names, dtypes, shapes and bytes (of large tensors: of some pages)."""
    total = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), total)
        if not tensor.numel():
            continue
        data = raw_bytes(tensor)
        step = len(data) if len(data) <= _WHOLE else _STRIDE
        size = len(data) if len(data) <= _WHOLE else _PAGE
        for start in range(0, len(data), step):
            total = zlib.crc32(data[start : start + size], total)
        total = zlib.crc32(data[-_PAGE:], total)
    return total


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _folder_bytes(folder: Path) -> int:
    total = 0
    with suppress(OSError):  # removed by another process while we look
        for file in folder.iterdir():
            with suppress(OSError):
                total += file.stat().st_size
    return total


def _last_use(folder: Path) -> float:
    try:
        return (folder / "used").stat().st_mtime
    except OSError:
        return 0.0


def _remove(folder: Path) -> bool:
    """Remove an entry unless a process uses it; return whether it is gone."""
    try:
        lock = os.open(folder / "used", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return not folder.exists()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True

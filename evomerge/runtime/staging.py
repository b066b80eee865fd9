"""Copies of model folders on a node's own disk, made once and shared by all its workers.

``<root>/<key>/files/…`` holds a copy, ``<root>/<key>/manifest.json`` the checksum of every file and
its state when that was last seen to be right. The key stands for the content: digests that the run
knows, and the small files themselves. ``copy.lock`` is locked while a process copies or removes,
``<key>.use`` (shared) for as long as one reads. Locks belong to processes, so a killed one frees
them; a copy gets its name when it is whole and on the disk.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from evomerge.errors import SourceError, first_line
from evomerge.storage.atomic import sync_folder, write_atomically
from evomerge.storage.untrusted_files import contained_file

MANIFEST = "manifest.json"
_CHUNK = 8 << 20
_SMALL = 32 << 20  # files up to this size are part of the key with their content
# What transformers and the run read of a model folder.
_READ = (".safetensors", ".json", ".txt", ".model", ".jinja", ".py", ".tiktoken")
# Names of ours in a folder that may hold other things as well, which are never touched.
_COPY = re.compile("[0-9a-f]{32}")
_LEFT = re.compile(r"\.(copy|damaged|gone)\.[0-9a-f]+")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, eq=False)
class Staged:
    """Where to read a model.

    Attributes:
        path: The copy, or the model itself where there is none.
        note: Why there is none; "" where there is.
    """

    path: Path
    note: str = ""


class Staging:
    """A folder of copies with a budget."""

    def __init__(self, root: Path, max_bytes: int | None = None) -> None:
        """Args: root: on a local disk; max_bytes: of all copies together, None for no limit."""
        self.root = root
        self.max_bytes = max_bytes
        self._uses: list[int] = []  # locks of what this process reads, held until it ends

    def stage(self, model: Path, digests: Sequence[str]) -> Staged:
        """Return a copy of a model folder (or file) that stays as long as this process lives.

        Args:
            model: A folder with safetensors files, or one such file.
            digests: Content digests that the run has of it; part of the key.

        Raises:
            SourceError: A file of the model cannot be read, or changed while it was copied.
        """
        folder = model if model.is_dir() else model.parent
        files = _files_of(model)
        key = _key(files, digests)
        inside = Path() if model.is_dir() else Path(model.name)
        copy = self.root / key / "files"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            use = self._use(key)
            if not _is_whole(self.root / key, files) and not self._make(key, files):
                os.close(use)
                return Staged(
                    model,
                    f"{model}: read from where it is: beside what is in use it does not fit into "
                    f"{self.root} (runtime.staging.max_bytes: {self.max_bytes:,})",
                )
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise SourceError(f"{folder}: cannot be staged: {first_line(error)}") from error
            return Staged(model, f"{model}: read from where it is: {self.root}: {error.strerror}")
        self._uses.append(use)
        return Staged(copy / inside)

    def _make(self, key: str, files: dict[str, Path]) -> bool:
        """Copy, unless another process did so meanwhile; return whether there is a copy."""
        with _locked(self.root / "copy.lock"):
            if _is_whole(self.root / key, files):
                return True
            if not self._has_room(key, sum(path.stat().st_size for path in files.values())):
                return False
            self._copy(key, files)
        return True

    def _use(self, key: str) -> int:
        """Return a shared lock that protects a copy from eviction; its time is that of last use."""
        use = os.open(self.root / f"{key}.use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(use, fcntl.LOCK_SH)
        os.utime(use)
        return use

    def _copy(self, key: str, files: dict[str, Path]) -> None:
        temporary = self.root / f".copy.{secrets.token_hex(4)}"
        try:
            (temporary / "files").mkdir(parents=True)
            sums = {
                name: _copied(source, temporary / "files" / name) for name, source in files.items()
            }
            for name in files:
                if _checksum(temporary / "files" / name) != sums[name]:
                    raise OSError(errno.EIO, f"{temporary / 'files' / name} reads back otherwise")
            manifest = {
                name: {"checksum": sums[name], "state": _state(temporary / "files" / name)}
                for name in files
            }
            write_atomically(temporary / MANIFEST, json.dumps(manifest).encode())
            sync_folder(temporary / "files")
            if (self.root / key).exists():  # damaged; who maps it keeps what it has mapped
                (self.root / key).rename(self.root / f".damaged.{secrets.token_hex(4)}")
            temporary.rename(self.root / key)
            sync_folder(self.root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _has_room(self, key: str, n_new: int) -> bool:
        """Remove copies that nobody uses, the least recently used first, until there is room."""
        found = list(self.root.iterdir())
        for left in found:
            if _LEFT.fullmatch(left.name):  # of processes that were killed: we have their lock
                shutil.rmtree(left, ignore_errors=True)
        if self.max_bytes is None:
            return True
        sizes = {
            path.name: sum(file.stat().st_size for file in (path / "files").iterdir())
            for path in found
            if _COPY.fullmatch(path.name) and (path / MANIFEST).is_file() and path.name != key
        }
        for name in sorted(sizes, key=lambda name: _last_use(self.root / f"{name}.use")):
            if sum(sizes.values()) + n_new <= self.max_bytes:
                break
            if self._evict(name):
                del sizes[name]
        return sum(sizes.values()) + n_new <= self.max_bytes

    def _evict(self, key: str) -> bool:
        """Remove a copy unless a process uses it; return whether it is gone."""
        use = os.open(self.root / f"{key}.use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = self.root / f".gone.{key}"
            (self.root / key).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        except BlockingIOError:
            return False
        finally:
            os.close(use)
        return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; waits for it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _files_of(model: Path) -> dict[str, Path]:
    """Return name -> real path of the files that are copied."""
    if not model.is_dir():
        return {model.name: contained_file(model.parent, model.name)}
    names = sorted(path.name for path in model.iterdir() if path.suffix in _READ)
    return {name: contained_file(model, name) for name in names if (model / name).is_file()}


def _key(files: dict[str, Path], digests: Sequence[str]) -> str:
    found = hashlib.blake2b(json.dumps(sorted(digests)).encode(), digest_size=16)
    for name, path in files.items():
        size = path.stat().st_size
        content = path.read_bytes() if size <= _SMALL and path.suffix != ".safetensors" else b""
        found.update(f"\n{name} {size} ".encode() + content)
    return found.hexdigest()


def _copied(source: Path, target: Path) -> str:
    """Copy a file with its times; return the checksum of what was read."""
    hasher = xxhash.xxh3_128()
    with source.open("rb") as reader, target.open("xb") as writer:
        before = os.fstat(reader.fileno())
        while chunk := reader.read(_CHUNK):
            hasher.update(chunk)
            writer.write(chunk)
        after = source.stat()
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            raise SourceError(f"{source}: was changed while it was copied. Put the file back")
        writer.flush()
        os.fsync(writer.fileno())
        os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # it is read back next
    # A run recognises files by size and time: those of the copy are the source's.
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    target.chmod(0o444)
    return str(hasher.hexdigest())


def _checksum(path: Path) -> str:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return str(hasher.hexdigest())


def _state(path: Path) -> list[int]:
    """Return what changes whenever a file is written to, whoever sets its times back."""
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _is_whole(entry: Path, files: dict[str, Path]) -> bool:
    """Return whether a copy is right: untouched since it was, or of the right checksums."""
    try:
        manifest: dict[str, Any] = json.loads((entry / MANIFEST).read_bytes())
        if set(manifest) != set(files):
            return False
        copies = {name: entry / "files" / name for name in manifest}
        for name, copy in copies.items():
            source = files[name].stat()
            if copy.stat().st_mtime_ns != source.st_mtime_ns:
                # Saved again, or put back after a change that was copied: its time would vouch
                # for what the copy holds.
                if _checksum(files[name]) != manifest[name]["checksum"]:
                    return False
                os.utime(copy, ns=(source.st_atime_ns, source.st_mtime_ns))
        touched = [name for name in copies if manifest[name]["state"] != _state(copies[name])]
        if any(_checksum(copies[name]) != manifest[name]["checksum"] for name in touched):
            return False
        if touched:
            for name in touched:
                manifest[name]["state"] = _state(copies[name])
            with suppress(OSError):
                write_atomically(entry / MANIFEST, json.dumps(manifest).encode())
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

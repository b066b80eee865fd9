"""The folder on this machine in which a run of an object store is worked on.

It may be deleted whenever nobody drives the run from it. Beside it lie a lock for those that
change it from outside, a name that no other such folder has, and a note of what it had in common
with the store when they were last compared.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from evomerge.errors import JournalError, RunError
from evomerge.storage.atomic import write_atomically
from evomerge.storage.segments import START, Segment

JOURNAL, SCORES = "journal.jsonl", "scores.f32"
_OF_ONE_MACHINE = ("lock", "lease.json")
# Kept as segments, or of one machine only.
_NOT_COPIED = (JOURNAL, "journal.jsonl.cut", SCORES, *_OF_ONE_MACHINE, "lease-probe")
_FOLDERS = ("arrived", "exports", "trackers")  # a run's own: no file can have these names
# Beside the folder; hidden, as no run's name is.
_LOCK, _PLACE, _NOTE = ".pull.lock", ".place", ".copied.json"
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}|arrived/[0-9]{8}\.json")


@dataclass(frozen=True)
class Position:
    """How much of a run is in its segments.

    Attributes:
        segments: Their number.
        last: Digest of the last one.
        journal: Bytes of journal.jsonl.
        scores: Bytes of scores.f32.
    """

    segments: int = 0
    last: str = START
    journal: int = 0
    scores: int = 0

    def after(self, segment: Segment) -> Position:
        """Return the position behind the next segment."""
        return Position(
            self.segments + 1,
            segment.digest,
            self.journal + len(segment.journal),
            self.scores + len(segment.scores),
        )

    def is_continued_by(self, segment: Segment) -> bool:
        """Return whether a segment begins where this ends."""
        begin = (segment.after, segment.journal_at, segment.scores_at)
        return begin == (self.last, self.journal, self.scores)


@dataclass
class Copied:
    """What the working folder had in common with the store when it was last compared.

    Attributes:
        position: Of journal and scores.
        digest: Of the bytes of journal and scores up to there.
        files: Name -> ETag in the store, and mtime (ns) and size here.
    """

    position: Position = field(default_factory=Position)
    digest: str = ""
    files: dict[str, tuple[str, int, int]] = field(default_factory=dict)


class WorkingFolder:
    """A run folder for a URL, and what is noted beside it."""

    def __init__(self, root: Path, url: str) -> None:
        """Make nothing yet.

        Args:
            root: Folder of this machine's working folders.
            url: Of the run; folders of different URLs never meet.
        """
        self.url = url
        key = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
        self.home = root.expanduser().absolute() / key
        self.path = self.home / url.rpartition("/")[2]

    def make(self) -> None:
        """Create the folder where there is none."""
        for name in ("arrived", "exports"):
            (self.path / name).mkdir(parents=True, exist_ok=True)

    def set_aside(self) -> None:
        """Move what is in the working folder out of the way; nothing is overwritten or deleted."""
        # A driver holds the lock that lies there.
        old = [path for path in self.path.glob("*") if path.name not in _OF_ONE_MACHINE]
        if any(path.is_file() for path in old):
            number = 1
            while (target := self.home / f"aside-{number}").exists():
                number += 1
            target.mkdir()
            for path in old:
                path.rename(target / path.name)
        self.save(Copied())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let one process at a time change the working folder from outside."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.home / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise RunError(
                f"{self.home}: cannot hold the working folder of {self.url}: "
                f"{error.strerror or error}. Name another place in EVOMERGE_RUNS"
            ) from None

    def place(self) -> str:
        """Return a name of this working folder that no other has."""
        path = self.home / _PLACE
        self.home.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_atomically(path, secrets.token_hex(8).encode(), durable=False)
        return f"{socket.gethostname()}-{path.read_text(encoding='ascii')}"

    def copied(self) -> Copied:
        """Return what is noted of the last comparison; nothing where the note is unreadable."""
        try:
            body = json.loads((self.home / _NOTE).read_bytes())
            files = {str(k): (str(v[0]), int(v[1]), int(v[2])) for k, v in body["files"].items()}
            return Copied(Position(**body["position"]), str(body["digest"]), files)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return Copied()

    def save(self, copied: Copied) -> None:
        """Note what folder and store have in common."""
        write_atomically(self.home / _NOTE, json.dumps(asdict(copied)).encode())

    def digest(self, position: Position) -> str:
        """Return the digest of the folder's journal and scores up to a position."""
        digest = hashlib.blake2b(digest_size=16)
        for name, n_bytes in ((JOURNAL, position.journal), (SCORES, position.scores)):
            path = self.path / name
            if n_bytes and path.is_file():
                with path.open("rb") as file:
                    digest.update(file.read(n_bytes))
        return digest.hexdigest()


def belongs_in_store(name: str) -> bool:
    """Return whether a file is kept in a store under its own name; no other name is trusted."""
    return name not in (*_NOT_COPIED, *_FOLDERS) and _FILE.fullmatch(name) is not None


def local_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return name -> mtime (ns) and size of those files of a folder that belong in a store."""
    paths = [*folder.iterdir(), *(folder / "arrived").glob("*.json")]
    found = {}
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if belongs_in_store(name):
            try:
                if path.is_file() and not path.is_symlink():
                    found[name] = stamp(path)
            except FileNotFoundError:
                continue  # a parked result whose turn came
    return found


def stamp(path: Path) -> tuple[int, int]:
    """Return mtime (ns) and size of a file."""
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size


def tail(path: Path, start: int) -> bytes:
    """Return a file from a byte on; nothing where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise JournalError(f"{path}: cannot be read: {error.strerror}") from None


def write_tail(path: Path, start: int, data: bytes) -> None:
    """Write `data` at a byte of a file and end it there."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with os.fdopen(handle, "r+b") as file:
        file.seek(start)
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())

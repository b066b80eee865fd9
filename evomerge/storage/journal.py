"""Append-only JSONL journal with a hash chain.

Each line is ``{"chain": C, "event": E}`` with C = BLAKE2b(previous C + canonical JSON of E).
One write per event reaches the operating system before anything acts on the event, so a
killed process loses nothing; fsync follows within `FSYNC_SECONDS`, so a power cut loses at
most that. A torn last line is cut off on opening; any other damage is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.core.recipe import canonical_json
from evomerge.errors import JournalError

FSYNC_SECONDS = 0.05
# A power cut may leave events durable whose scores are not: those of the last moments. More
# than this many missing is no power cut.
MAX_UNBACKED = 2000
GENESIS = "0" * 32


def chain_hash(previous: str, body: str) -> str:
    """Return the 32-hex-digit link of an event whose canonical JSON is `body`."""
    return hashlib.blake2b((previous + body).encode(), digest_size=16).hexdigest()


def encode_line(chain: str, event: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return the new chain value and the line for `event`."""
    body = canonical_json(event)
    link = chain_hash(chain, body)
    return link, f'{{"chain":"{link}","event":{body}}}\n'.encode()


def read_journal(path: Path) -> tuple[list[dict[str, Any]], str, int]:
    """Read and verify a journal.

    Returns:
        The events, the last chain value, and the length in bytes of the valid part; what
        follows it is a torn last line.

    Raises:
        JournalError: A line before the last is damaged, or any line was altered.
    """
    events: list[dict[str, Any]] = []
    chain, valid = GENESIS, 0
    for number, start, line in _lines(path):
        is_whole = line.endswith(b"\n")
        try:
            record = json.loads(line)
            event, link = record["event"], record["chain"]
            body = canonical_json(event)
        except (ValueError, KeyError, TypeError):
            if _is_last(path, start + len(line)):
                break  # torn by a crash in mid-write
            raise JournalError(_damage(path, number, start, "is not a journal record")) from None
        if not is_whole:
            break
        if link != chain_hash(chain, body):
            raise JournalError(_damage(path, number, start, "does not continue the hash chain"))
        events.append(event)
        chain, valid = link, start + len(line)
    return events, chain, valid


def _is_told(event: Mapping[str, Any]) -> bool:
    return event.get("kind") == "told" and "error" not in event


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    try:
        with path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, start=1):
                yield number, start, line
                start += len(line)
    except OSError as error:
        raise JournalError(f"{path}: cannot be read: {error.strerror}") from None


def _is_last(path: Path, end: int) -> bool:
    return end >= path.stat().st_size


def _damage(path: Path, number: int, start: int, what: str) -> str:
    return (
        f"{path}: line {number} (byte {start}) {what}; the file was altered or its disk is "
        "damaged. Restore it from a backup, or save what is whole: "
        f"evomerge repair {path.parent} --out NEW"
    )


class JournalWriter:
    """The single writer of one journal file."""

    def __init__(
        self,
        path: Path,
        *,
        check: Callable[[list[dict[str, Any]], Path], None] = lambda _events, _path: None,
        sync_first: Callable[[], None] = lambda: None,
        is_backed: Callable[[Mapping[str, Any]], bool] = lambda _: True,
    ) -> None:
        """Open for appending, after cutting off a torn end.

        Attributes set here: `events` (what was there), `sealed` (bytes cut off).

        Args:
            path: The journal file.
            check: Raises unless the events that are there can be continued; nothing is written
                before.
            sync_first: Called before each fsync of the journal, to make durable what its
                events point at.
            is_backed: Whether what an event points at is really there; after a power cut the
                last events may be durable and their scores not. The journal is cut before
                the first such event; what is cut is kept in ``journal.jsonl.cut``.

        Raises:
            JournalError: The journal is damaged, or too much of what it points at is missing.
        """
        self.path = path
        self._sync_first = sync_first
        if path.exists():
            self.events, self._chain, valid = read_journal(path)
            check(self.events, path)
            self.events, self._chain, valid = self._backed(valid, is_backed)
            self.sealed = path.stat().st_size - valid
        else:
            self.events, self._chain, valid, self.sealed = [], GENESIS, 0, 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if self.sealed:
            with path.open("rb") as file, path.with_name(path.name + ".cut").open("ab") as cut:
                file.seek(valid)
                cut.write(file.read())
            os.ftruncate(self._file, valid)
        os.lseek(self._file, valid, os.SEEK_SET)
        self._dirty = threading.Event()
        self._closed = threading.Event()
        self._failure: OSError | None = None
        self._syncer = threading.Thread(target=self._sync_often, name="journal-fsync", daemon=True)
        self._syncer.start()

    def _backed(
        self, valid: int, is_backed: Callable[[Mapping[str, Any]], bool]
    ) -> tuple[list[dict[str, Any]], str, int]:
        """Return events, chain and length up to the first event without its scores."""
        first = next((i for i, e in enumerate(self.events) if not is_backed(e)), None)
        if first is None:
            return self.events, self._chain, valid
        missing = sum(not is_backed(event) for event in self.events[first:])
        if missing > MAX_UNBACKED or missing == sum(map(_is_told, self.events)):
            raise JournalError(
                f"{self.path}: the scores of {missing} results are missing. Restore scores.f32 "
                "from a backup; nothing was changed."
            )
        chain, length = GENESIS, 0
        for event in self.events[:first]:
            chain, line = encode_line(chain, event)
            length += len(line)
        return self.events[:first], chain, length

    def append(self, event: Mapping[str, Any]) -> None:
        """Append one event with a single write.

        Raises:
            JournalError: The disk is full, or an earlier write or fsync failed. The journal
                then ends at its last whole event.
        """
        if self._failure is not None:
            raise JournalError(
                f"{self.path}: fsync failed: {self._failure}; nothing more is written"
            )
        link, line = encode_line(self._chain, event)
        start = os.lseek(self._file, 0, os.SEEK_CUR)
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError("short write, the disk is probably full")
        except OSError as error:
            os.ftruncate(self._file, start)
            os.lseek(self._file, start, os.SEEK_SET)
            raise JournalError(
                f"{self.path}: cannot append: {error}. Free some space and resume the run."
            ) from None
        self._chain = link
        self._dirty.set()

    def sync(self) -> None:
        """Force everything appended so far to the disk."""
        self._dirty.clear()
        self._sync_first()
        os.fsync(self._file)

    def _sync_often(self) -> None:
        while not self._closed.is_set():
            self._dirty.wait()
            if self._closed.wait(FSYNC_SECONDS):
                return
            try:
                self.sync()
            except OSError as error:
                self._failure = error
                return

    def close(self) -> None:
        """Sync and close; the writer cannot be used afterwards.

        Raises:
            JournalError: This fsync, or an earlier one, failed.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        self._dirty.set()
        self._syncer.join()
        try:
            if self._failure is None:
                self.sync()
        except OSError as error:
            self._failure = error
        finally:
            os.close(self._file)
        if self._failure is not None:
            raise JournalError(
                f"{self.path}: fsync failed: {self._failure}; the last results may not outlive a "
                "power cut. Mend the disk and resume the run"
            )

"""A run in an object store, and the working folder on this machine that ordinary code works in.

The objects are ``segments/`` (journal and scores, see `segments`), ``lease.json``, and the other
files of a run folder under their own names. What is in the store is the run; the working folder
holds a copy, may be deleted whenever nobody drives the run from it, and is made again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from evomerge.errors import RunError
from evomerge.storage import segments
from evomerge.storage.atomic import write_atomically
from evomerge.storage.lease_probe import is_driven
from evomerge.storage.object_store import ObjectStore
from evomerge.storage.remote_lease import RemoteLease, is_fresh
from evomerge.storage.segments import (
    START,
    Segment,
    damage,
    decode_segment,
    is_sound,
    read_segment,
)
from evomerge.storage.working_folder import (
    JOURNAL,
    SCORES,
    Copied,
    Position,
    WorkingFolder,
    belongs_in_store,
    stamp,
    tail,
    write_tail,
)

CONFIG = "config.yaml"
_READERS = 16


class RemoteRun:
    """One run in an object store."""

    def __init__(self, store: ObjectStore, root: Path) -> None:
        """Ask nothing of the store yet.

        Args:
            store: The run's objects.
            root: Folder of this machine's working folders.
        """
        self.store = store
        self.folder = WorkingFolder(root, store.url)
        self.path = self.folder.path

    @property
    def url(self) -> str:
        """Where the run is."""
        return self.store.url

    def pull(self, *, for_driver: bool = False, with_journal: bool = True) -> Position:
        """Bring the working folder up to what is in the store.

        While a driver works in it nothing is done: it is then ahead of the store.

        Args:
            for_driver: The caller is that driver.
            with_journal: Also journal and scores.

        Raises:
            JournalError: A segment is missing, torn or altered; names it.
            RunError: The store cannot be reached.
        """
        with self.folder.alone():
            if not for_driver and is_driven(self.path):
                return self.folder.copied().position
            names = self.store.names()
            if CONFIG not in names:
                self.folder.set_aside()
                return Position()
            copied = self.folder.copied()
            if with_journal:
                copied = self._pull_journal(_numbers(names, self.url), copied)
            self._pull_files(names, copied)
            self.folder.save(copied)
            return copied.position

    def create(self, files: Mapping[str, bytes]) -> None:
        """Put the first files of a new run into the store, config.yaml last; then pull it.

        What an earlier call left that was cut off is written over, or refused where this run has
        no such file; of two at the same time one ends in an error.

        Raises:
            RunError: There is a run already, or the store cannot be reached.
            RunLockedError: Another process is creating it.
        """
        journal, scores = files.get(JOURNAL, b""), files.get(SCORES, b"")
        with self.folder.alone():
            self._refuse_run(journal, scores)  # first: the lease may be of a driver on this machine
            lease = RemoteLease(self.store, self.folder.place())
            try:
                is_begun = self._refuse_run(journal, scores)
                self._refuse_others(files)
                for name, data in files.items():
                    if name != CONFIG and belongs_in_store(name):
                        self._put_first(name, data, lease)
                if journal and not is_begun:
                    first = Segment(0, lease.driver, START, 0, journal, 0, scores)
                    if self.store.create(first.name, first.encode()) is None:
                        raise self._is_taken()
                if self.store.create(CONFIG, files[CONFIG]) is None:
                    raise self._is_taken()
            finally:
                lease.renew(released=True)
        self.pull()

    def _put_first(self, name: str, data: bytes, lease: RemoteLease) -> None:
        """Write a file of a new run, but never over one that another process wrote meanwhile."""
        left = self.store.get(name)
        lease.renew()  # after the look: who wrote what was there had no lease any more
        if left is None:
            written = self.store.create(name, data)
        else:
            written = self.store.replace(name, data, left.version)
        if written is None:
            raise self._is_taken()

    def _refuse_run(self, journal: bytes, scores: bytes) -> bool:
        """Raise RunError if there is a run; return whether a call cut off wrote its results."""
        names = self.store.names()
        if CONFIG in names:
            raise self._is_taken()
        numbers = _segment_numbers(names)
        if not numbers:
            return False
        data = self._read([0])[0] if numbers == [0] else None
        there = None if data is None else read_segment(data)
        if data is None or there is None or not is_sound(there, data):
            is_same = False
        else:
            is_same = bool(journal) and (there.journal, there.scores) == (journal, scores)
        if not is_same:
            raise RunError(
                f"{self.url}: holds a journal and no {CONFIG}; restore that object, or choose "
                "another URL"
            )
        return True

    def _refuse_others(self, files: Mapping[str, bytes]) -> None:
        """Raise RunError for a file of another creation, which this run would take for its own."""
        for name in self.store.names():
            if belongs_in_store(name) and name not in files:
                raise RunError(
                    f"{self.url}/{name}: was left by the creation of another run, which was cut "
                    "off; remove that object, or choose another URL"
                )

    def _is_taken(self) -> RunError:
        return RunError(f"{self.url}: exists; choose another URL")

    def is_driven(self) -> bool:
        """Return whether a driver, here or elsewhere, is writing the run; only reads."""
        return is_driven(self.path) or is_fresh(self.store, self.folder.place())

    def put_file(self, name: str) -> None:
        """Put one file of the working folder into the store."""
        self.store.put(name, (self.path / name).read_bytes())

    def rescue(self) -> Path:
        """Return a folder with whatever can be read of a damaged run, for `salvage`.

        Bytes of segments that are gone are missing in the journal and zeros in the scores.

        Raises:
            RunError: There is no run, or the store cannot be reached.
        """
        target = self.folder.home / "rescue" / self.path.name
        with self.folder.alone():
            names = self.store.names()
            if CONFIG not in names:
                raise RunError(f"{self.url}: there is no such run")
            shutil.rmtree(target, ignore_errors=True)
            (target / "arrived").mkdir(parents=True)
            (target / "exports").mkdir()
            for name in _files(names):
                found = self.store.get(name)
                if found is not None:
                    (target / name).write_bytes(found.data)
            numbers = sorted(_segment_numbers(names))
            read = (read_segment(data) for data in self._read(numbers) if data is not None)
            known = [item for item in read if item is not None]
            (target / JOURNAL).write_bytes(b"".join(item.journal for item in known))
            with (target / SCORES).open("wb") as scores:
                for item in known:
                    scores.seek(item.scores_at)
                    scores.write(item.scores)
        return target

    # ------------------------------------------------------------------ journal

    def _pull_journal(self, n_segments: int, copied: Copied) -> Copied:
        """Write what is new of journal and scores; where the folder does not agree, begin anew."""
        known = copied.position
        if not self._agrees(copied, n_segments):
            known = Position()
        new = self._follow(known, n_segments)
        position = known
        for segment in new:
            position = position.after(segment)
        journal = b"".join(segment.journal for segment in new)
        scores = b"".join(segment.scores for segment in new)
        here = tail(self.path / JOURNAL, known.journal)
        whole = here[: here.rfind(b"\n") + 1]  # a driver was killed in the middle of a line
        rows = tail(self.path / SCORES, known.scores)
        if not (whole.startswith(journal) and rows.startswith(scores)):
            if not journal.startswith(whole):
                # Results that never reached the store, and others did: both are kept.
                self.folder.set_aside()
                return self._pull_journal(n_segments, Copied())
            self.folder.make()
            write_tail(self.path / SCORES, known.scores, scores)  # first: rows before their lines
            write_tail(self.path / JOURNAL, known.journal, journal)
        self.folder.make()
        return Copied(position, self.folder.digest(position), copied.files)

    def _agrees(self, copied: Copied, n_segments: int) -> bool:
        """Return whether what was copied then is still in the folder, and in the store."""
        then = copied.position
        if not then.segments:
            return True
        if then.segments > n_segments or self.folder.digest(then) != copied.digest:
            return False
        data = self._read([then.segments - 1])[0]
        there = None if data is None else read_segment(data)
        return there is not None and there.digest == then.last

    def _follow(self, known: Position, n_segments: int) -> list[Segment]:
        """Return the segments behind a position, verified."""
        numbers = range(known.segments, n_segments)
        found = []
        position = known
        for number, data in zip(numbers, self._read(numbers), strict=True):
            if data is None:
                raise damage(self.url, number, "is missing")
            segment = decode_segment(data, number, self.url)
            if not position.is_continued_by(segment):
                raise damage(self.url, number, "does not continue the one before")
            position = position.after(segment)
            found.append(segment)
        return found

    def _read(self, numbers: Sequence[int] | range) -> list[bytes | None]:
        def data(number: int) -> bytes | None:
            found = self.store.get(segments.segment_name(number))
            return None if found is None else found.data

        with ThreadPoolExecutor(_READERS) as readers:
            return list(readers.map(data, numbers))

    # -------------------------------------------------------------------- files

    def _pull_files(self, names: Mapping[str, str], copied: Copied) -> None:
        """Fetch the files that are another version in the store than when they were fetched."""
        self.folder.make()
        for name in _files(names):
            path = self.path / name
            if name in copied.files and copied.files[name][0] == names[name] and path.is_file():
                continue
            found = self.store.get(name)
            if found is None:
                continue  # replaced just now: the next pull has it
            write_atomically(path, found.data, durable=False)
            copied.files[name] = (names[name], *stamp(path))


def _files(names: Iterable[str]) -> list[str]:
    # config.yaml last: a folder with it is a whole run.
    wanted = [n for n in names if belongs_in_store(n)]
    return sorted(wanted, key=lambda name: (name == CONFIG, name))


def _segment_numbers(names: Iterable[str]) -> list[int]:
    prefix = f"{segments.FOLDER}/"
    texts = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return [int(text) for text in texts if re.fullmatch(r"[0-9]{8}", text)]


def _numbers(names: Iterable[str], url: str) -> int:
    """Return how many segments there are.

    Raises:
        JournalError: One is missing before the last.
    """
    numbers = sorted(_segment_numbers(names))
    for wanted, number in enumerate(numbers):
        if number != wanted:
            raise damage(url, wanted, "is missing")
    return len(numbers)

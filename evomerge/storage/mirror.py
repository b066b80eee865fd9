"""Keep a run in an object store up to date while a driver writes its working folder.

A thread puts what is new of journal and scores into the store as the next segment, every
`GROUP_SECONDS`; a driver whose results are not there after `MAX_LAG_SECONDS` waits. So a machine
that vanishes takes at most the results of that time with it, as a power cut does on a disk.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from evomerge.errors import RunError, RunLockedError
from evomerge.storage.lease import LEASE_SECONDS, Lease
from evomerge.storage.remote_lease import RemoteLease
from evomerge.storage.remote_run import RemoteRun
from evomerge.storage.score_log import ScoreLog
from evomerge.storage.segments import Segment
from evomerge.storage.working_folder import JOURNAL, SCORES, Copied, local_files

GROUP_SECONDS = 0.05
MAX_LAG_SECONDS = 1.0
FILES_SECONDS = 1.0
# events.log grows with every result and is put as a whole.
_SELDOM = {"events.log": 30.0}
_CLAIMS = 5


class Mirror:
    """The right to write a run in an object store, for as long as it can be written there."""

    def __init__(self, run: RemoteRun) -> None:
        """Take the lease of working folder and store, and bring the folder up to date.

        Raises:
            RunLockedError: Another driver holds one of them.
            JournalError: A segment is missing, torn or altered; names it.
            RunError: The store cannot be reached.
        """
        self._run = run
        self._failure: RunError | None = None
        self._was_raised = False
        self._behind_since: float | None = None
        self._width = 0
        self._put_at: dict[str, float] = {}
        self._versions: dict[str, dict[str, str]] = {}
        self._lease_in_use = threading.Lock()
        run.path.mkdir(parents=True, exist_ok=True)
        self._local = Lease(run.path)
        try:
            self._lease = RemoteLease(run.store, run.folder.place())
            self._claim()
        except BaseException:
            self._local.release()
            raise
        self._files = self._run.folder.copied().files
        self.epoch = self._lease.epoch
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._push_often, "mirror"), (self._renew_often, "mirror-lease"))
        ]
        for thread in self._threads:
            thread.start()

    def _claim(self) -> None:
        """Write an empty segment: whoever held the lease before finds its next number taken."""
        for _ in range(_CLAIMS):
            self._position = self._run.pull(for_driver=True)
            if self._put_segment(b"", b""):
                return
        raise RunLockedError(f"{self._run.url}: another driver goes on writing; try again later")

    def check(self) -> None:
        """Return when what was written is in the store, but for the last moment.

        Raises:
            RunLockedError: Another driver has taken the run over.
            RunError: The store cannot be written.
        """
        while self._failure is None:
            since = self._behind_since
            if since is None or time.monotonic() - since < MAX_LAG_SECONDS:
                self._local.check()
                return
            time.sleep(GROUP_SECONDS / 5)
        self._was_raised = True
        raise self._failure

    def release(self) -> None:
        """Put the rest into the store and give the lease back.

        Raises:
            RunError: What was written last is not in the store, and no `check` said so.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join()
        try:
            if self._failure is None:
                self._push()
                self._put_files(all_of_them=True)
                self._renew(released=True)
                self._note()
            elif not self._was_raised:
                raise self._failure
        finally:
            self._local.release()

    # ------------------------------------------------------------------- threads

    def _push_often(self) -> None:
        files_at = time.monotonic()
        try:
            while not self._stop.wait(GROUP_SECONDS):
                self._push()
                if time.monotonic() - files_at > FILES_SECONDS:
                    self._put_files()
                    files_at = time.monotonic()
        except RunError as error:
            self._failure = error
        except Exception as error:  # whatever it is: a driver must not go on without its mirror
            self._failure = RunError(
                f"{self._run.path}: cannot be copied to {self._run.url}: "
                f"{type(error).__name__}: {error}. Nothing that was told is lost; resume the run"
            )

    def _renew_often(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 3):
            try:
                self._renew()
            except RunLockedError as error:
                self._failure = error
                return
            except RunError:
                continue  # the store may be away for a moment; segments are safe without a lease

    def _renew(self, *, released: bool = False) -> None:
        with self._lease_in_use:
            self._lease.renew(released=released)

    # ------------------------------------------------------------------- writing

    def _push(self) -> None:
        """Put the lines that are new, and the rows that they tell of, as the next segment."""
        path = self._run.path / JOURNAL
        if not path.exists() or path.stat().st_size <= self._position.journal:
            self._behind_since = None
            return
        if self._behind_since is None:
            self._behind_since = time.monotonic()
        with path.open("rb") as file:
            file.seek(self._position.journal)
            data = file.read()
            lines = data[: data.rfind(b"\n") + 1]
            if not lines:
                return
            if not self._width:
                file.seek(0)
                self._width = _row_bytes(file.readline())
        n_bytes = self._width * sum(map(_has_row, lines.splitlines()))
        rows = b""
        if n_bytes:
            with (self._run.path / SCORES).open("rb") as file:
                file.seek(self._position.scores)
                rows = file.read(n_bytes)
        if len(rows) != n_bytes:
            raise RunError(f"{self._run.path / SCORES}: is shorter than the journal says")
        if not self._put_segment(lines, rows):
            raise RunLockedError(
                f"{self._run.url}: another driver has written the next segment, so it has taken "
                "this run over; this driver stops"
            )
        self._behind_since = None

    def _put_segment(self, journal: bytes, scores: bytes) -> bool:
        """Write the next segment; return False if another driver has."""
        at = self._position
        segment = Segment(
            at.segments, self._lease.driver, at.last, at.journal, journal, at.scores, scores
        )
        if self._run.store.create(segment.name, segment.encode()) is None:
            return False
        self._position = at.after(segment)
        return True

    def _put_files(self, *, all_of_them: bool = False) -> None:
        """Put the other files that changed, and remove parked results that are gone."""
        now = local_files(self._run.path)
        for name, facts in now.items():
            pause = 0.0 if all_of_them else _SELDOM.get(name, 0.0)
            is_known = name in self._files and self._files[name][1:] == facts
            if is_known or time.monotonic() - self._put_at.get(name, 0.0) < pause:
                continue
            try:
                data = (self._run.path / name).read_bytes()
            except FileNotFoundError:
                continue  # a parked result whose turn came
            self._files[name] = (self._put_file(name, data), *facts)
            self._put_at[name] = time.monotonic()
        # The rest of a run is never deleted: it is gone only where somebody cleared the folder.
        gone = set(self._files) - set(now)
        for name in filter(lambda name: name.startswith("arrived/"), gone):
            self._run.store.delete(name)
            del self._files[name]
            self._versions.pop(name, None)

    def _put_file(self, name: str, data: bytes) -> str:
        """Write one file over what this driver wrote last; return its ETag."""
        store, before = self._run.store, self._versions.get(name)
        version = None if before is None else store.replace(name, data, before)
        if version is None:
            self._renew()  # whoever may write the run may write over what is there
            version = store.put(name, data)
        self._versions[name] = version
        return version.get("e_tag", "")

    def _note(self) -> None:
        """Note for the next pull that all of this is in the store."""
        folder = self._run.folder
        folder.save(Copied(self._position, folder.digest(self._position), self._files))


def _row_bytes(header: bytes) -> int:
    """Return the bytes of a row of scores, as the journal's first line says."""
    event = json.loads(header)["event"]
    return ScoreLog.of(Path(SCORES), {"tasks": {}, **event}).row_bytes


def _has_row(line: bytes) -> bool:
    event = json.loads(line)["event"]
    return event.get("kind") == "told" and "error" not in event

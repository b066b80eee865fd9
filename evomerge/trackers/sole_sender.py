"""One sender per run and tracker: two at a time would send every result twice."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evomerge.errors import RunError
from evomerge.trackers.places import tracker_folder
from evomerge.trackers.tracker import Tracker, trackers

_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def sole_sender(
    run: Path, tracker: Tracker, wait: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Keep all others from sending a run to a tracker with the same settings.

    A kernel lock in ``trackers/``, which ends with its process. A run folder that cannot be written
    to has none: there, nobody searches.

    Args:
        run: Run folder.
        tracker: Whose settings count.
        wait: Called while another one sends; whether to try again.

    Raises:
        RunError: Another process sends, and `wait` says no.
    """
    name = trackers.name_of(type(tracker))
    try:
        path = tracker_folder(run) / f".{name}-{_digest(tracker)}.lock"
        while (lock := _locked(path)) is None:
            if not wait():
                raise RunError(
                    f"tracker {name!r}: another process is sending {run.name} there: a search that "
                    "follows it, or `evomerge track`. It sends everything; try again when it ended"
                )
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise RunError(f"{run}: tracker {name!r} cannot be locked: {error.strerror}") from None
        yield
        return
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # still locked, see `_locked`
        os.close(lock)
        with suppress(OSError):  # what the tracker keeps is there
            path.parent.rmdir()


def _digest(tracker: Tracker) -> str:
    settings = {
        item.name: str(getattr(tracker, item.name))
        for item in dataclasses.fields(tracker)  # type: ignore[arg-type]
        if item.init
    }
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def _locked(path: Path) -> int | None:
    """Return a locked descriptor of a file, None where another process holds the lock."""
    while True:
        try:
            path.parent.mkdir(exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(path, flags, 0o644)
        except FileNotFoundError:  # the one before removed the folder just now
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Else the one before removed the file after it was opened here: another one counts.
            if os.fstat(lock).st_ino == os.stat(path).st_ino:
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:
            pass
        os.close(lock)

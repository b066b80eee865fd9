"""Single-writer lease on a run folder: a kernel lock on one host, an epoch across hosts.

`flock` on ``lock`` refuses a second driver on the same host at once and is released by the
kernel when its holder dies, however it dies. ``lease.json`` names host, process and epoch for
drivers on other hosts sharing the folder: it is fresh while its modification time is younger
than `LEASE_SECONDS`. Taking over raises the epoch; the old driver notices before its next
write and stops.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

from evomerge.errors import RunError, RunLockedError
from evomerge.storage.atomic import write_atomically

LEASE_SECONDS = 30.0


class Lease:
    """The right to write one run folder."""

    def __init__(self, folder: Path) -> None:
        """Take the lease.

        Raises:
            RunLockedError: Another driver holds it; the message names host and process.
            RunError: The file system has no locks.
        """
        self.folder = folder
        self.path = folder / "lease.json"
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            if not isinstance(error, BlockingIOError):
                raise RunError(
                    f"{folder / 'lock'}: cannot be locked: {error.strerror}. Put the run on a file "
                    "system that has locks"
                ) from None
            raise RunLockedError(
                f"{folder}: {self._holder()} is running this search. Follow it with `evomerge "
                f"status`, or stop it with Ctrl-C before this."
            ) from None
        epoch = 1
        if self.path.exists():
            body = self._read()
            last = body.get("epoch")
            epoch = 1 + (last if isinstance(last, int) else 0)
            elsewhere = body.get("host") not in (None, socket.gethostname())
            # abs: a clock that was set back must not keep a dead driver's lease fresh for hours.
            if elsewhere and abs(time.time() - self.path.stat().st_mtime) < LEASE_SECONDS:
                os.close(self._lock)
                raise RunLockedError(
                    f"{folder}: {self._holder()} is running this search. If it is dead, wait "
                    f"{LEASE_SECONDS:.0f} seconds and try again."
                )
        self.epoch = epoch
        self._mine = json.dumps(
            {"epoch": epoch, "host": socket.gethostname(), "pid": os.getpid()}
        ).encode()
        write_atomically(self.path, self._mine)
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewer.start()

    def check(self) -> None:
        """Raise RunLockedError if another driver has taken the run over."""
        try:
            current = self.path.read_bytes()
        except OSError as error:
            raise RunLockedError(f"{self.path}: the lease is gone: {error.strerror}") from None
        if current != self._mine:
            raise RunLockedError(
                f"{self.folder}: {self._holder()} has taken this run over; this driver stops"
            )

    def release(self) -> None:
        """Give the lease back; lease.json stays so that epochs keep rising."""
        self._stop.set()
        self._renewer.join()
        os.close(self._lock)

    def _renew(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 3):
            try:
                if self.path.read_bytes() == self._mine:
                    os.utime(self.path)
            except OSError:
                continue  # a network file system may be away for a moment

    def _read(self) -> dict[str, object]:
        try:
            body = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        return body if isinstance(body, dict) else {}

    def _holder(self) -> str:
        body = self._read()
        return f"process {body.get('pid', '?')} on {body.get('host', 'this host')}"

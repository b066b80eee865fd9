"""Look whether a driver holds a run's lease, without taking it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from evomerge.storage.lease import LEASE_SECONDS


@dataclass(frozen=True)
class Holder:
    """Who took a run's lease last.

    Attributes:
        host: Name of the machine.
        pid: Process there.
    """

    host: str
    pid: int

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine."""
        return self.host == socket.gethostname()


def lease_holder(folder: Path) -> Holder | None:
    """Return who took the lease of the run in `folder` last, alive or not; None if unreadable."""
    try:
        body = json.loads((folder / "lease.json").read_bytes())
        host, pid = body["host"], body["pid"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_sound = isinstance(host, str) and type(pid) is int and pid > 0
    return Holder(host, pid) if is_sound else None


def is_driven(folder: Path) -> bool:
    """Return whether a driver, on this host or another, is writing the run in `folder`.

    Only reads: a shared lock is tried and given back at once.
    """
    return _is_locked(folder / "lock") or _is_fresh_elsewhere(folder / "lease.json")


def _is_locked(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: the lease is all there is
        return False
    finally:
        os.close(lock)
    return False


def _is_fresh_elsewhere(path: Path) -> bool:
    try:
        body = json.loads(path.read_bytes())
        age = abs(time.time() - path.stat().st_mtime)
    except (OSError, ValueError):
        return False
    host = body.get("host") if isinstance(body, dict) else None
    return host not in (None, socket.gethostname()) and age < LEASE_SECONDS

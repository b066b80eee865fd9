"""Single-writer lease on a run in an object store: one object, replaced only by its owner.

``lease.json`` is created, renewed and taken over by conditional writes. Its age is the difference
of two times of the server's clock, that of the lease and that of an object written just now, so
no clock of the drivers' machines counts.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time

from evomerge.errors import RunLockedError
from evomerge.storage.lease import LEASE_SECONDS
from evomerge.storage.object_store import ObjectStore, Stored

NAME = "lease.json"
_PROBE = "lease-probe"


class RemoteLease:
    """The right to write one run in an object store."""

    def __init__(self, store: ObjectStore, place: str) -> None:
        """Take the lease.

        Args:
            store: The run.
            place: Name of the working folder, whose kernel lock the caller holds: a lease that
                was taken from there is that of a driver that is gone.

        Raises:
            RunLockedError: Another driver holds it; names host and process.
        """
        self._store = store
        self.driver = secrets.token_hex(8)
        self._beat = 0
        self._place = place
        found = store.get(NAME)
        before = {} if found is None else _body(found)
        last = before.get("epoch")
        self.epoch = 1 + (last if isinstance(last, int) else 0)
        is_own = before.get("place") == place
        if found is not None and not is_own and not before.get("released"):
            age = self._age(found)
            if age < LEASE_SECONDS:
                raise RunLockedError(
                    f"{store.url}: {holder(before)} is running this search. Follow it with "
                    "`evomerge status`, or stop it with Ctrl-C before this; if it is dead, wait "
                    f"{LEASE_SECONDS:.0f} seconds and try again."
                )
        data = self._data()
        version = (
            store.create(NAME, data) if found is None else store.replace(NAME, data, found.version)
        )
        if version is None:
            raise RunLockedError(f"{store.url}: another driver took this run just now")
        self._version = version

    def _age(self, lease: Stored) -> float:
        """Return the age of a lease in seconds of the server's clock."""
        self._store.put(_PROBE, self.driver.encode())
        now = self._store.get(_PROBE)
        return 0.0 if now is None else now.modified - lease.modified

    def _data(self, *, released: bool = False) -> bytes:
        body = {
            "driver": self.driver,
            "epoch": self.epoch,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "place": self._place,
            "beat": self._beat,  # no two writes alike
            "released": released,
        }
        return json.dumps(body).encode()

    def renew(self, *, released: bool = False) -> None:
        """Write the lease anew.

        Raises:
            RunLockedError: Another driver has taken the run over.
            RunError: The store cannot be reached.
        """
        self._beat += 1
        data = self._data(released=released)
        version = self._store.replace(NAME, data, self._version)
        if version is None:
            there = self._store.get(NAME)
            body = {} if there is None else _body(there)
            # An earlier renewal may have been carried out although it ended in an error.
            if there is not None and body.get("driver") == self.driver:
                version = self._store.replace(NAME, data, there.version)
            if version is None:
                raise RunLockedError(
                    f"{self._store.url}: {holder(body)} has taken this run over; this driver stops"
                )
        self._version = version


def is_fresh(store: ObjectStore, place: str) -> bool:
    """Return whether a driver renewed its lease lately, by this machine's clock; only reads.

    Args:
        store: The run.
        place: A working folder that nobody holds the lock of: no driver is there.
    """
    found = store.get(NAME)
    body = {} if found is None else _body(found)
    if found is None or body.get("released") or body.get("place") == place:
        return False
    return abs(time.time() - found.modified) < LEASE_SECONDS


def holder(body: dict[str, object]) -> str:
    """Return the host and process that a lease names."""
    return f"process {body.get('pid', '?')} on {body.get('host', 'another host')}"


def _body(lease: Stored) -> dict[str, object]:
    try:
        body = json.loads(lease.data)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}

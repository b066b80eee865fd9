import errno
import fcntl
import json
import os
import time

import pytest

from evomerge.errors import RunError
from evomerge.storage.lease import LEASE_SECONDS, Lease
from evomerge.storage.lease_probe import is_driven


def test_a_held_lease_is_seen_and_left_alone(tmp_path):
    assert not is_driven(tmp_path)
    assert not list(tmp_path.iterdir()), "looking writes nothing"
    lease = Lease(tmp_path)
    assert is_driven(tmp_path)
    lease.check()
    lease.release()
    assert not is_driven(tmp_path)
    Lease(tmp_path).release()


def test_a_fresh_lease_of_another_host_counts_until_it_is_old(tmp_path):
    path = tmp_path / "lease.json"
    path.write_text(json.dumps({"epoch": 1, "host": "elsewhere", "pid": 1}))
    assert is_driven(tmp_path)
    old = time.time() - LEASE_SECONDS - 1
    os.utime(path, (old, old))
    assert not is_driven(tmp_path)
    path.write_text("[")
    assert not is_driven(tmp_path)


def test_a_file_system_without_locks_is_not_taken_for_another_driver(tmp_path, monkeypatch):
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunError, match="lock: cannot be locked: No locks available"):
        Lease(tmp_path)

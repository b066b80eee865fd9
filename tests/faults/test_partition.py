"""A node that loses its network for a while, in a network namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.processes import finish, start_driver
from tests.faults.test_ray_faults import outcomes

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300)]


def why_not() -> str:
    """Return why this machine allows no network namespaces, "" where it does."""
    if os.geteuid() or shutil.which("ip") is None:
        return "network namespaces need root and iproute2"
    name = f"emtry{os.getpid() % 10_000}"
    tries = (
        ("ip", "netns", "add", name),
        ("ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b"),
        ("ip", "link", "del", f"{name}a"),
    )
    found = [subprocess.run(words, capture_output=True, text=True, check=False) for words in tries]
    subprocess.run(("ip", "netns", "del", name), capture_output=True, check=False)
    return next((done.stderr.strip() or "refused" for done in found if done.returncode), "")


def test_a_node_behind_a_dead_link_is_not_counted_twice_when_it_returns(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    lines = finish(start_driver("tests.faults.namespace_driver", tmp_path), within=200)
    found = outcomes(lines)  # which refuses a second outcome of one candidate
    (submitted,) = (int(line.split()[1]) for line in lines if line.startswith("submitted"))
    assert sorted(found) == list(range(submitted))
    assert {error for _, error in found.values()} == {"None"}
    again = [number for number, (attempt, _) in found.items() if attempt > 1]
    assert len(again) == 1, "what the node was scoring when it was cut off"
    begun = (tmp_path / "begun").read_text().splitlines()
    assert sum(line.split()[0] == str(again[0]) for line in begun) == 2, "scored there and here"
    assert any("deadline of 3 s passed" in line for line in lines)

"""Faults of Ray processes, really done: frozen workers and nodes, a dead control store, no memory.

Deaths of drivers, actors and raylets are in `test_kill_loop` and in `tests/cluster`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.processes import finish, start_driver
from tests.faults.ray_drivers import make_group

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(400)]


def drive(kind: str, folder: Path) -> list[str]:
    """Run one of `tests.faults.ray_drivers` to its end; returns the lines it printed."""
    return finish(start_driver("tests.faults.ray_drivers", kind, folder), within=300)


def outcomes(lines: list[str]) -> dict[int, tuple[int, str]]:
    """Return candidate -> (attempt, error); no candidate has two outcomes."""
    found: dict[int, tuple[int, str]] = {}
    for line in lines:
        if line.startswith("outcome "):
            _, number, attempt, error = line.split(maxsplit=3)
            assert int(number) not in found, f"candidate {number} came back twice"
            found[int(number)] = int(attempt), error
    return found


def test_a_frozen_worker_is_replaced_at_the_deadline(tmp_path: Path) -> None:
    lines = drive("stopped_worker", tmp_path)
    found = outcomes(lines)
    assert sorted(found) == list(range(len(found)))
    assert {error for _, error in found.values()} == {"None"}
    assert {number for number, (attempt, _) in found.items() if attempt > 1} == {0}
    assert "replaced" in lines
    assert "left behind False" in lines, "a frozen process must give its GPU back"
    assert any("deadline of 5 s passed" in line for line in lines)


def test_a_dead_control_store_ends_the_search_with_a_reason(tmp_path: Path) -> None:
    lines = drive("dead_gcs", tmp_path)
    assert "the private Ray cluster broke down: its gcs_server ended" in lines[-1]
    assert "resume the run" in lines[-1]


def test_a_private_cluster_that_dies_while_it_starts_is_an_error(tmp_path: Path) -> None:
    lines = drive("dead_at_birth", tmp_path)
    assert "no Ray cluster could be started on this machine: " in lines[-1]


def test_a_head_that_dies_elsewhere_ends_the_search_with_a_reason(tmp_path: Path) -> None:
    lines = drive("dead_head", tmp_path)
    late = lines.index("headless for 6 s")
    assert outcomes(lines[late:]), "workers go on while there is hope"
    assert "refused the control store of the Ray cluster has not answered for 12 s" in lines[-2]
    assert "resume the run when the cluster is back" in lines[-2]
    assert lines[-1] == "closed"


def test_a_worker_without_memory_costs_one_attempt(tmp_path: Path) -> None:
    found = outcomes(lines := drive("hungry_worker", tmp_path))
    assert sorted(found) == list(range(6))
    assert {error for _, error in found.values()} == {"None"}
    assert found[3][0] == 2
    assert any("MemoryError" in line for line in lines)


def test_a_worker_that_the_kernel_kills_for_its_memory_costs_one_attempt(tmp_path: Path) -> None:
    try:
        make_group(1 << 30).rmdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    found = outcomes(lines := drive("killed_for_memory", tmp_path))
    assert sorted(found) == list(range(6))
    assert {error for _, error in found.values()} == {"None"}
    assert found[3][0] == 2
    assert any("worker died" in line for line in lines)
    assert "oom_kill 1" in lines


def test_a_node_that_was_cut_off_and_returns_is_not_counted_twice(tmp_path: Path) -> None:
    found = outcomes(lines := drive("partition", tmp_path))
    assert sorted(found) == list(range(40))
    assert {error for _, error in found.values()} == {"None"}
    assert sum(attempt == 2 for attempt, _ in found.values()) == 1, "what it was scoring"
    assert "in all 40" in lines

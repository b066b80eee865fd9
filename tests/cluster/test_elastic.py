"""Nodes that join, that are told to go, and that are of several kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.processes import finish, start_driver

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300)]


def said(lines: list[str], what: str) -> str:
    return next(line for line in lines if line.startswith(what)).removeprefix(what).strip()


def drive(part: str, folder: Path) -> tuple[list[str], dict[int, list[str]]]:
    """Return all lines, and candidate -> (attempt, error); no candidate comes back twice."""
    lines = finish(start_driver("tests.cluster.elastic_driver", part, folder), within=200)
    outcomes = [line.split(maxsplit=3) for line in lines if line.startswith("outcome")]
    found = {int(number): [attempt, error] for _, number, attempt, error in outcomes}
    assert len(found) == len(outcomes)
    return lines, found


def test_nodes_come_and_go_and_no_candidate_pays_for_it(tmp_path: Path) -> None:
    lines, found = drive("come_and_go", tmp_path)
    assert all(outcome == ["1", "None"] for outcome in found.values()), "one attempt, none lost"
    # The worker of a drained node got no new work; that of the new node and the other one did.
    assert said(lines, "workers at the end") == "2"
    assert sum("its node is about to go" in line for line in lines) == 2
    assert any("its node has gone" in line for line in lines)


def test_every_kind_of_node_gets_the_workers_it_holds_and_the_autoscaler_the_rest(
    tmp_path: Path,
) -> None:
    lines, found = drive("kinds_of_nodes", tmp_path)
    assert json.loads(said(lines, "shapes")) == [[0.3333, 3], [1.0, 1]]
    assert {error for number, (_, error) in found.items() if number < 100} == {
        "CUDA_VISIBLE_DEVICES='0'"
    }
    assert json.loads(said(lines, "requested")) == [{"CPU": 1}] * 5
    assert json.loads(said(lines, "withdrawn")) == []
    assert any("1 of 5 workers have no room on the cluster" in line for line in lines)
